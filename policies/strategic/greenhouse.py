"""The world's own observations as what was measured: the way of all hosts of a world at once into graphs.

Shapes: ``N`` is the number of hosts, ``S`` of slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from envs.graph.layout import BLUEPRINTS, OBSERVATION, GraphLayout
from envs.observation import ObservationLayout
from envs.vocabulary import BLENDING_METHODS, SeedStage
from policies.strategic.encoding import KEPT
from policies.strategic.measured import BLUEPRINT_NAMES, EDGE_TABLES, NODE_TABLES, NUMBERS, TEXTS, Measured, Names

GRAPH, ACTION_MASK = "graph", "action_mask"
"""Leaves of an observation: the layout's vector, and the flat mask."""


class GreenhouseReader:
    """Reads the observations of one world.

    Args:
        layout: Of the world's vectors.
        methods_allowed: Whether seeds may be blended in by any method. If not, none says which it allows, and linear is
            left.
    """

    def __init__(self, layout: GraphLayout, methods_allowed: bool = False) -> None:
        self.layout, self._allowed = layout, 1.0 if methods_allowed else torch.nan
        self.slots = layout.structure.slots

    def flat(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the flat policy reads: the leaves ``obs``, ``blueprint_indices`` and ``action_mask``, ``[N, ...]``."""
        views = self.layout.views(observations[GRAPH])
        return {
            "obs": views[OBSERVATION],
            "blueprint_indices": views[BLUEPRINTS].long(),
            "action_mask": observations[ACTION_MASK],
        }

    def measured(self, observations: Mapping[str, Tensor]) -> Measured:
        """What was measured of N hosts.

        Args:
            observations: The leaves ``graph`` float32 ``[N, layout.size]`` and ``action_mask`` ``[N, mask_size]``.
        """
        vectors = observations[GRAPH]
        views, same = self.layout.views(vectors), _same(self, len(vectors), vectors.device)
        blueprints = Names(BLUEPRINT_NAMES, views[BLUEPRINTS].long())
        return replace(
            same,
            present=self.layout.present(vectors),
            numbers={key: views[key] for key in NUMBERS if key in views},
            texts={**same.texts, "seeds.blueprint": blueprints},
            stages=self._stages(views[OBSERVATION]),
            observation=views[OBSERVATION],
            action_mask=observations[ACTION_MASK],
        )

    def same(self, hosts: int, device: torch.device) -> Measured:
        """What is known of so many hosts before anything is measured."""
        slots, nothing = self.slots.num_slots, torch.zeros(hosts, 0, device=device)
        return Measured(
            slots=self.slots,
            present=nothing,
            nodes=self._nodes,
            ends={name: of.to(device).expand(hosts, -1, -1) for name, of in self._ends.items()},
            methods=nothing.long(),
            watched=torch.ones(hosts, slots, dtype=torch.bool, device=device),
            numbers={},
            texts={key: Names(of.vocabulary, of.index.to(device)).expand(hosts) for key, of in self._names.items()},
            allowed_methods=torch.full((hosts, slots, len(BLENDING_METHODS)), self._allowed, device=device),
            stages=nothing,
            observation=nothing,
            action_mask=nothing,
            layer_count=len(self.layout.structure.layers),
            sampled=False,
        )

    @cached_property
    def _ends(self) -> dict[str, Tensor]:
        """Relation → ends ``[e, 2]``. Hosts grow by lifecycle, not by methods of blending that somebody allows."""
        edges = self.layout.structure.edges
        ends = {name: torch.from_numpy(edges[name]) for name in (*EDGE_TABLES, "monitors")}
        return ends | {"allowed": torch.zeros(0, 2, dtype=torch.int64)}

    @cached_property
    def _nodes(self) -> dict[str, tuple[str, ...]]:
        names = self.layout.structure.names
        return {table: tuple(map(str, names[f"{table}.name"])) for table in NODE_TABLES}

    @cached_property
    def _names(self) -> dict[str, Names]:
        """One host's."""
        names = self.layout.structure.names
        return {key: Names.of(names[key]) for key in TEXTS if key in names}

    def _stages(self, observation: Tensor) -> Tensor:
        """``SeedStage`` of each slot, int64 ``[N, S]``; where no flag is set it is DORMANT."""
        flags = observation[:, self._stage_places.to(observation.device)]
        return torch.where((flags > 0).any(dim=-1), flags.argmax(dim=-1), int(SeedStage.DORMANT))

    @cached_property
    def _stage_places(self) -> Tensor:
        """Where Obs V3 has each slot's flags of stages, ``[S, stages]``."""
        index = {field.name: at for at, field in enumerate(ObservationLayout(self.slots).fields)}
        return torch.tensor([[index[f"{slot}.stage_{s.name}"] for s in SeedStage] for slot in self.slots.slot_ids])


_same = lru_cache(KEPT)(GreenhouseReader.same)
