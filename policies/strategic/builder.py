"""From what was measured to the arrays that a batch of graphs is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from envs.vocabulary import BLENDING_METHODS
from policies.strategic.encoding import KEPT
from policies.strategic.features import (
    CODES,
    CONTEXT_FEATURES,
    EDGE_FEATURES,
    NODE_FEATURES,
    OBSERVED,
    Features,
)
from policies.strategic.graph import EdgeArrays, GraphArrays, NodeArrays
from policies.strategic.measured import TABLES, Measured, Names
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.registries import UNKNOWN, Capacities, RegistryView, RegistryViews
from policies.strategic.schema import FORWARD_RELATIONS, NODE_TYPES, SLOT_NUMBERS

MOST_GUESSED = 3
"""Layers that a slot is taken to monitor where nobody says: those with the largest loss share."""
_NOBODY = -1


class GraphBuilder:
    """Makes the arrays of N graphs at once. It changes neither names nor moments.

    Args:
        registries: Numbers of names. What they do not have is unknown.
        normaliser: Scale of the metrics.

    Raises:
        ValueError: a registry has room for more names than the network has embeddings.
    """

    def __init__(self, registries: RegistryViews, normaliser: MetricNormaliser) -> None:
        for kind in NODE_TYPES.values():
            for code in kind.codes:
                if code.name in registries.views and registries[code.name].capacity > code.capacity:
                    raise ValueError(
                        f"the registry of {code.name} has room for {registries[code.name].capacity} names, the "
                        f"network for {code.capacity}"
                    )
        self.registries, self.normaliser = registries, normaliser

    def build(self, measured: Measured) -> GraphArrays:
        """The graphs of N hosts.

        Args:
            measured: Of the hosts, S slots each.

        Returns:
            Arrays with the leading axis ``[N]``, as many rows as the tables of ``measured`` have, and S seed nodes.
        """
        layer_types = self._codes(measured, "layer.layer_type")
        codes = {
            "layer": [layer_types, self._codes(measured, "layer.activation_type")],
            "seed": [*(self._codes(measured, f"seed.{name}") for name in _SEED_NAMES), measured.stages],
            "activation": [
                self._codes(measured, "activation.activation_type"),
                _of_feeding(measured.ends["feeds"], layer_types, measured.rows("activations")),
            ],
            "parameter": [self._codes(measured, "parameter.optimizer_family")],
        }
        values = self._numbers(measured)
        values["seed"] = _seed_numbers(measured, values["seed"])
        nodes = {
            name: NodeArrays(
                measured.present.unsqueeze(1).expand(-1, values[name].shape[1]),
                values[name].float(),
                torch.stack(codes[name], dim=-1),
            )
            for name in NODE_TYPES
        }
        context = torch.cat([_base_numbers(measured), values["context"].squeeze(1)], dim=1).float()
        return GraphArrays(nodes, self._edges(measured, values), _seeds(measured), context, measured.action_mask)

    def _numbers(self, measured: Measured) -> dict[str, Tensor]:
        """Scaled numbers ``[N, rows, k]`` by kind of ``_FEATURES``; what is measured of a whole host is every row's."""
        given = {key: measured.numbers[key] for key in _KEYS if key in measured.numbers}
        unknown = measured.observation.new_full((len(measured), 1), torch.nan)
        rows = tuple(1 if kind == "context" else measured.rows(TABLES.get(kind, kind)) for kind in _FEATURES)
        widths = tuple((key, of.shape[1]) for key, of in given.items())
        shapes, index = _columns(widths, rows, unknown.device)
        known = torch.cat([*given.values(), unknown], dim=1)[:, index]
        parts = iter(known.split([count * width for count, width in shapes], dim=1))
        scaled = {}
        for kind, count in zip(_FEATURES, rows, strict=True):
            given_to = [(of, next(parts).view(len(known), count, len(of.keys))) for of in _FEATURES[kind]]
            scaled[kind] = torch.cat([of.scaled(x, self.normaliser) for of, x in given_to], dim=-1)
        return scaled

    def _codes(self, measured: Measured, code: str) -> Tensor:
        """Registry numbers of a code's names, int64 ``[N, rows]``."""
        key = CODES[code]
        names = measured.texts.get(key)
        if names is None:
            return measured.stages.new_full((len(measured), measured.rows(key)), UNKNOWN)
        return _numbered(names, self.registries, code.partition(".")[2])

    @staticmethod
    def _edges(measured: Measured, values: Mapping[str, Tensor]) -> dict[str, EdgeArrays]:
        edges = {name: EdgeArrays(measured.ends[name], values[name].float()) for name in EDGE_FEATURES}
        said = edges["monitors"]
        if not measured.watched.all():
            guessed = _guessed_monitors(measured)
            edges["monitors"] = EdgeArrays(
                torch.cat([said.ends, guessed], dim=1),
                F.pad(said.values, (0, 0, 0, guessed.shape[1]), value=torch.nan),
            )
        methods = F.one_hot(measured.methods, len(BLENDING_METHODS))
        edges["allowed"] = EdgeArrays(measured.ends["allowed"], methods.to(said.values.dtype))
        return {relation.name: edges[relation.name] for relation in FORWARD_RELATIONS}


_FEATURES: Mapping[str, tuple[Features, ...]] = {**NODE_FEATURES, **EDGE_FEATURES, "context": CONTEXT_FEATURES}
_KEYS = tuple(dict.fromkeys(key for features in _FEATURES.values() for of in features for key in of.keys))


@lru_cache(KEPT)
def _columns(
    widths: tuple[tuple[str, int], ...], rows: tuple[int, ...], device: torch.device
) -> tuple[list[tuple[int, int]], Tensor]:
    """What each of ``_FEATURES`` is computed from, among what is known, key by key, and one column that is unknown.

    Args:
        widths: Columns of each key that is known.
        rows: Of each kind.
        device: Of the columns.

    Returns:
        Rows and numbers of all features, and the columns of all of them, row by row of one after the other.
    """
    starts = accumulate((width for _, width in widths), initial=0)
    known = {key: torch.arange(start, start + width) for (key, width), start in zip(widths, starts, strict=False)}
    unknown, shapes, index = torch.tensor([sum(width for _, width in widths)]), [], []
    for features, count in zip(_FEATURES.values(), rows, strict=True):
        for of in features:
            shapes.append((count, len(of.keys)))
            index.append(torch.stack([known.get(key, unknown).expand(count) for key in of.keys], dim=1).flatten())
    return shapes, torch.cat(index).to(device)


_SEED_NAMES = tuple(code.name for code in NODE_TYPES["seed"].codes if f"seed.{code.name}" in CODES)


def numbered(worlds: Iterable[Measured]) -> RegistryViews:
    """Numbers for the names that hosts of some worlds use, first seen first.

    Names for which there is no room read as unknown; the first of each family is logged.
    """
    names: dict[str, dict[str, None]] = {}
    for measured in worlds:
        for family, used in vocabulary(measured).items():
            names.setdefault(family, {}).update(dict.fromkeys(used))
    return RegistryViews.fresh(Capacities()).extended(names)


def vocabulary(measured: Measured) -> Mapping[str, tuple[str, ...]]:
    """Registry family → the names that hosts use, for :meth:`policies.strategic.registries.RegistryViews.extended`."""
    families: dict[str, dict[str, None]] = {}
    for code, key in CODES.items():
        names = measured.texts.get(key)
        families.setdefault(code.partition(".")[2], {}).update(dict.fromkeys(() if names is None else names.vocabulary))
    return {family: tuple(names) for family, names in families.items()}


def _numbered(names: Names, registries: RegistryViews, family: str) -> Tensor:
    return _indices(registries[family], names.vocabulary, names.index.device)[names.index]


@lru_cache(len(CODES) * KEPT)
def _indices(view: RegistryView, vocabulary: tuple[str, ...], device: torch.device) -> Tensor:
    """Numbers of some names; the last one is read by -1, which is none."""
    return torch.tensor([*map(view.index, vocabulary), UNKNOWN], device=device)


def _of_feeding(feeds: Tensor, layer_types: Tensor, activations: int) -> Tensor:
    """Code of the layer that feeds each activation, int64 ``[N, activations]``; of several the largest."""
    source, target = feeds.unbind(-1)
    exists = (source >= 0) & (target >= 0)
    if not layer_types.shape[1]:
        return layer_types.new_zeros(len(layer_types), activations)
    codes = layer_types.gather(1, source.clamp(min=0)).where(exists, UNKNOWN)
    found = layer_types.new_full((len(layer_types), activations + 1), UNKNOWN)  # the last is where nobody goes
    return found.scatter_reduce(1, target.where(exists, activations), codes, "amax")[:, :-1]


def _guessed_monitors(measured: Measured) -> Tensor:
    """What slots are taken to monitor of which nobody says it, ``[N, S·3, 2]``: the largest loss shares."""
    slots, layers = measured.stages.shape[1], measured.rows("layers")
    shares = measured.number("layers.loss_share")
    largest = shares.nan_to_num(nan=-1.0).topk(min(MOST_GUESSED, layers), dim=1)
    layer = largest.indices.where(largest.values >= 0, _NOBODY)
    target = layer.unsqueeze(1).expand(-1, slots, -1).where(~measured.watched.unsqueeze(-1), _NOBODY)
    source = torch.arange(slots, device=layer.device).unsqueeze(-1).expand_as(target)
    return torch.stack([source, target], dim=-1).flatten(1, 2)


# ------------------------------------------------------------------ Obs V3
@cache
def _places(slots: SlotConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Where Obs V3 has the context's numbers ``[b]``, each slot's ``[S, n]``, and internal levels ``[S]``.

    What a world does not have stands behind all (last ops) or one further (internal levels).
    """
    layout = ObservationLayout(slots)
    index = {field.name: at for at, field in enumerate(layout.fields)}
    base = [index.get(name, layout.size) for name in OBSERVED]
    numbers = [[index[f"{slot}.{name}"] for name in SLOT_NUMBERS] for slot in slots.slot_ids]
    levels = [index.get(f"{slot}.internal_level", layout.size) for slot in slots.slot_ids]
    return torch.tensor(base), torch.tensor(numbers), torch.tensor(levels)


def _base_numbers(measured: Measured) -> Tensor:
    """The context's numbers of Obs V3 ``[N, b]``. The flag of an op that a world does not have is 0."""
    places, _, _ = _places(measured.slots)
    observation = measured.observation
    never = torch.where(observation[:, :1].isnan(), torch.nan, 0.0)
    return torch.cat([observation, never], dim=1)[:, places.to(observation.device)]


def _seed_numbers(measured: Measured, other: Tensor) -> Tensor:
    """All numbers of slots ``[N, S, k]``: Obs V3's, the ``other`` ones, internal level and methods."""
    if not measured.stages.shape[1]:
        return other.new_empty(len(measured), 0, NODE_TYPES["seed"].columns.width)
    _, numbers, levels = (places.to(other.device) for places in _places(measured.slots))
    observation = F.pad(measured.observation, (0, 1), value=torch.nan)
    level = observation[:, levels].unsqueeze(-1)
    return torch.cat([observation[:, numbers], other, level, measured.allowed_methods], dim=-1)


def _seeds(measured: Measured) -> Tensor:
    """The seed node of each slot, int64 ``[N, S]``; -1 for the slot that stands for none."""
    slots = measured.stages.shape[1]
    nodes = torch.arange(slots, device=measured.stages.device) if slots else measured.stages.new_full((1,), _NOBODY)
    return nodes.expand(len(measured), -1)
