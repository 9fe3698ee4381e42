"""What the greenhouse measured of its hosts, as a packet's arrays: all hosts of a world at once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from envs.action_masks import mask_size
from envs.graph.layout import BLUEPRINTS, OBSERVATION, GraphLayout
from envs.observation import ObservationLayout
from envs.vocabulary import BLENDING_METHODS, SeedStage
from policies.strategic.builder import vocabulary
from policies.strategic.measured import BLUEPRINT_NAMES, NODE_TABLES, NUMBERS, TEXTS, Measured, Names
from policies.strategic.registries import Capacities, RegistryViews


def measured(layout: GraphLayout, vectors: Tensor, action_mask: Tensor) -> Measured:
    """What was measured of N hosts of one world.

    Args:
        layout: Of the world's vectors.
        vectors: ``[N, layout.size]``.
        action_mask: Flat mask ``[N, mask_size]`` of the slots' heads, or of more slots than the hosts have.
    """
    structure, views, hosts = layout.structure, layout.views(vectors), len(vectors)
    observation = views[OBSERVATION]
    edges = {name: torch.from_numpy(ends).to(vectors.device) for name, ends in structure.edges.items()}
    ends = {name: of.expand(hosts, -1, -1) for name, of in edges.items()}
    slots = structure.slots.num_slots
    texts = {key: _on(Names.of(structure.names[key]), vectors).expand(hosts) for key in TEXTS if key in structure.names}
    return Measured(
        slots=structure.slots,
        present=layout.present(vectors),
        nodes={name: tuple(str(of) for of in structure.names[f"{name}.name"]) for name in NODE_TABLES},
        ends=ends | {"allowed": ends["tunes"].new_empty(hosts, 0, 2)},  # the greenhouse blends by other means
        methods=ends["tunes"].new_empty(hosts, 0),
        watched=vectors.new_ones(hosts, slots, dtype=torch.bool),
        numbers={key: views[key] for key in NUMBERS if key in views},
        texts=texts | {"seeds.blueprint": Names(BLUEPRINT_NAMES, views[BLUEPRINTS].long())},
        allowed_methods=vectors.new_full((hosts, slots, len(BLENDING_METHODS)), torch.nan),
        stages=_stages(ObservationLayout(structure.slots), observation),
        observation=observation,
        action_mask=action_mask,
        layer_count=len(structure.layers),
    )


def registry_names(layouts: Iterable[GraphLayout]) -> dict[str, tuple[str, ...]]:
    """Registry family → the names that the hosts of some worlds use, first seen first, and those it begins with."""
    names = {family: dict.fromkeys(first) for family, first in RegistryViews.fresh(Capacities()).names.items()}
    for layout in layouts:
        none = measured(layout, torch.empty(0, layout.size), torch.empty(0, mask_size(layout.structure.slots.heads)))
        for family, used in vocabulary(none).items():
            names[family].update(dict.fromkeys(used))
    return {family: tuple(used) for family, used in names.items()}


def _on(names: Names, other: Tensor) -> Names:
    return Names(names.vocabulary, names.index.to(other.device))


def _stages(layout: ObservationLayout, observation: Tensor) -> Tensor:
    """``SeedStage`` of every slot, int64 ``[N, S]``; a slot without any is DORMANT."""
    index = {field.name: at for at, field in enumerate(layout.fields)}
    places = [[index[f"{slot}.stage_{stage.name}"] for stage in SeedStage] for slot in layout.slots.slot_ids]
    flags = observation[:, torch.tensor(places, device=observation.device)] > 0
    return torch.where(flags.any(dim=-1), flags.int().argmax(dim=-1), int(SeedStage.DORMANT))
