"""What was measured of N hosts of one structure, as arrays: all hosts of a world at once, or one packet as N = 1.

Shapes: ``N`` is the number of hosts, ``S`` of slots, ``r`` of rows of a table, ``e`` of edges of a relation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from envs.action_masks import mask_size, split_mask
from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from envs.vocabulary import BLENDING_METHODS, Blueprint, LifecycleOp
from policies.strategic.graph_columns import Columns
from policies.strategic.messages import KEYS, SeedState, SystemState
from policies.strategic.packet_values import METRICS

TABLES = {"layer": "layers", "seed": "seeds", "activation": "activations", "parameter": "parameters"}
"""Node type → its table in a packet."""
NODE_TABLES = ("layers", "activations", "parameters")
"""Tables of nodes, beside the slots."""
EDGE_TABLES = ("connects", "feeds", "influences", "tunes")
"""Tables of edges whose ends are rows of node tables."""
TEXTS = (
    *("layers.layer_type", "layers.activation_type", "activations.activation_type", "parameters.optimizer_family"),
    *("seeds.blueprint", "seeds.kind", "seeds.specialisation"),
)
"""Keys of names."""
SEED_NUMBERS = (
    *("seeds.scope", "seeds.risk_tolerance", "seeds.activity_level", "seeds.success_rate", "seeds.risk"),
    *("seeds.quarantine_only", "seeds.learning_rate", "seeds.layer_depth"),
)
"""Keys of what is measured of seeds beside Obs V3."""
NUMBERS = (
    "run.max_epochs",
    *(
        key
        for key in KEYS
        if key.partition(".")[0] in ("metrics", *NODE_TABLES, *EDGE_TABLES, "monitors") and key not in TEXTS
    ),
    *SEED_NUMBERS,
)
"""Keys of numbers; those of ``run`` and ``metrics`` have one row."""
BLUEPRINT_NAMES = tuple(blueprint.name.lower() for blueprint in Blueprint)
"""What blueprints are called in packets; blueprint k is the k-th."""
NOWHERE = SlotConfig.for_row(1)
"""Slots that stand for a host without any: one, which no mask admits."""


@dataclass(frozen=True)
class Names:
    """Names by row, as indices.

    Attributes:
        vocabulary: Different names.
        index: Into it, int64 ``[N, r]``; -1 where there is none.
    """

    vocabulary: tuple[str, ...]
    index: Tensor

    @classmethod
    def of(cls, names: Sequence[str | None]) -> Self:
        """One host's."""
        vocabulary = tuple(dict.fromkeys(name for name in names if name is not None))
        index = {name: at for at, name in enumerate(vocabulary)}
        return cls(vocabulary, torch.tensor([[-1 if name is None else index[name] for name in names]]).long())

    def expand(self, hosts: int) -> Names:
        """The same names in each of so many hosts."""
        return Names(self.vocabulary, self.index.expand(hosts, -1))


@dataclass(frozen=True)
class Measured:
    """What was measured of N hosts, under the keys of a packet. What was not is NaN, or is left out.

    Attributes:
        slots: The hosts' slots; :data:`NOWHERE` where they have none.
        present: Whether each host exists, bool ``[N]``; a padded row has no nodes.
        nodes: Table of ``NODE_TABLES`` → the names of its rows.
        ends: Relation → source and target of its edges, int64 ``[N, e, 2]``; -1 is nobody. There are those of
            ``EDGE_TABLES``, ``allowed`` (slot to parameter) and ``monitors`` (slot to layer).
        methods: Blending method of each edge of ``allowed``, int64 ``[N, e]``.
        watched: Whether it is known what a slot monitors, bool ``[N, S]``.
        numbers: Key of ``NUMBERS`` → float ``[N, r]``.
        texts: Key of ``TEXTS`` → names.
        allowed_methods: Whether each slot's seed allows each blending method, float ``[N, S, 4]``.
        stages: ``SeedStage`` of each slot, int64 ``[N, S]``; ``[N, 0]`` of a host without slots.
        observation: Obs V3, float ``[N, size]``.
        action_mask: Flat mask of the slots' heads ``[N, mask_size]``.
        layer_count: Layers of the model, of which ``layers`` may be a sample.
        sampled: Whether any nodes or edges of the model are left out.
    """

    slots: SlotConfig
    present: Tensor
    nodes: Mapping[str, tuple[str, ...]]
    ends: Mapping[str, Tensor]
    methods: Tensor
    watched: Tensor
    numbers: Mapping[str, Tensor]
    texts: Mapping[str, Names]
    allowed_methods: Tensor
    stages: Tensor
    observation: Tensor
    action_mask: Tensor
    layer_count: int
    sampled: bool

    def __len__(self) -> int:
        """Number of hosts."""
        return len(self.present)

    def rows(self, key: str) -> int:
        """Rows of a key's table, in each host."""
        kind = key.partition(".")[0]
        if kind in ("run", "metrics"):
            return 1
        if kind == "seeds":
            return self.stages.shape[1]
        return len(self.nodes[kind]) if kind in self.nodes else self.ends[kind].shape[1]

    def number(self, key: str) -> Tensor:
        """Numbers ``[N, r]``, NaN where not measured."""
        values = self.numbers.get(key)
        return self.observation.new_full((len(self), self.rows(key)), torch.nan) if values is None else values

    @classmethod
    def of(cls, state: SystemState) -> Self:
        """Of a packet, N = 1."""
        graph, seeds = state.graph, state.seeds
        tables: dict[str, Columns] = {name: getattr(graph, name) for name in (*NODE_TABLES, *EDGE_TABLES)}
        numbers = {"run.max_epochs": _floats([state.max_epochs])}
        numbers |= {f"metrics.{name}": _floats([state.metrics.get(name)]) for name in METRICS}
        numbers |= {key: _floats(_column(tables, seeds, key)) for key in NUMBERS if key not in numbers}
        slots = SlotConfig.for_row(len(seeds), state.internal_levels) if seeds else NOWHERE
        watching = [(at, seed.monitored_layers) for at, seed in enumerate(seeds)]
        ends = {name: _pairs(table.source, table.target) for name, table in _edges(graph).items()}
        ends["monitors"] = _pairs(
            [at for at, table in watching if table is not None for _ in table.layer],
            [layer for _, table in watching if table is not None for layer in table.layer],
        )
        return cls(
            slots=slots,
            present=torch.ones(1, dtype=torch.bool),
            nodes={name: getattr(graph, name).name for name in NODE_TABLES},
            ends=ends,
            methods=torch.tensor([[BLENDING_METHODS.index(method) for method in graph.allowed.method]]).long(),
            watched=torch.tensor([[table is not None for _, table in watching]]).bool(),
            numbers=numbers,
            texts={key: Names.of(_column(tables, seeds, key)) for key in TEXTS},
            allowed_methods=_methods(seeds),
            stages=torch.tensor([[int(seed.stage) for seed in seeds]]).long(),
            observation=_floats(state.observation or (None,) * ObservationLayout(slots).size),
            action_mask=_mask(state.action_mask, slots),
            layer_count=graph.layer_count,
            sampled=graph.sampled,
        )


def _edges(graph: Any) -> dict[str, Any]:
    return {name: getattr(graph, name) for name in (*EDGE_TABLES, "allowed")}


def _column(tables: Mapping[str, Columns], seeds: Iterable[SeedState], key: str) -> Sequence[Any]:
    kind, name = key.split(".")
    if kind == "seeds":
        return [getattr(seed, name) for seed in seeds]
    if kind == "monitors":
        watched = [seed.monitored_layers for seed in seeds if seed.monitored_layers is not None]
        return [value for table in watched for value in table.column(name)]
    return tables[kind].column(name)


def _floats(values: Sequence[float | None]) -> Tensor:
    """A row, float32 ``[1, r]``."""
    return torch.from_numpy(np.array([values], np.float32)).reshape(1, -1)  # numpy reads None as NaN


def _pairs(source: Sequence[int], target: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.array([source, target], np.int64).reshape(2, -1).T.copy()).unsqueeze(0)


def _methods(seeds: Sequence[SeedState]) -> Tensor:
    """Whether each seed allows each method, ``[1, S, 4]``; NaN where it does not say."""
    allowed = [seed.allowed_blending_methods for seed in seeds]
    rows = [[None if of is None else method in of for method in BLENDING_METHODS] for of in allowed]
    return torch.from_numpy(np.array(rows, np.float32).reshape(1, -1, len(BLENDING_METHODS)))


def _mask(mask: Sequence[int] | None, slots: SlotConfig) -> Tensor:
    """The flat mask ``[1, mask_size]``; of a host that does not say what it admits it admits to wait."""
    if mask:
        return torch.tensor([mask], dtype=torch.int8)
    waiting = torch.zeros(1, mask_size(slots.heads), dtype=torch.int8)
    split_mask(waiting, slots.heads)["op"][:, LifecycleOp.WAIT] = 1
    return waiting
