"""Every number that the network reads: where it comes from, and its formula.

A formula maps what was not measured, NaN, to NaN. docs/inputs.md is written from this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from envs.vocabulary import BLENDING_METHODS
from policies.strategic.normaliser import (
    PARAMETER_FIELDS,
    SCALED_METRICS,
    MetricNormaliser,
    normalise_parameters,
    normalise_seed_statistics,
)
from policies.strategic.schema import CONTEXT, FORWARD_RELATIONS, NODE_TYPES, SLOT_NUMBERS, Columns

FARTHEST = 5.0
"""Orders of magnitude, or halves of them, that a logarithm is kept within; that of 0 would be infinite."""


@dataclass(frozen=True)
class Features:
    """Numbers of one kind that are computed alike.

    Attributes:
        columns: Their names in the schema, in its order.
        keys: Where each is in a packet.
        formulas: Of each, in words; ``x`` is what was measured.
        scaled: All of them ``[..., k]`` from what was measured ``[..., k]``.
    """

    columns: tuple[str, ...]
    keys: tuple[str, ...]
    formulas: tuple[str, ...]
    scaled: Callable[[Tensor, MetricNormaliser], Tensor]


def _alike(formula: str, scaled: Callable[[Tensor], Tensor], **keys: str) -> Features:
    """Features of one formula, column → key."""
    return Features(tuple(keys), tuple(keys.values()), (formula,) * len(keys), lambda x, _: scaled(x))


def _as_is(**keys: str) -> Features:
    return _alike("x", lambda x: x, **keys)


def _edges(relation: str) -> tuple[Features, ...]:
    """The attributes of a relation, which the batch divides by the largest of each graph."""
    names = next(of.attributes.names for of in FORWARD_RELATIONS if of.name == relation)
    formula = "x over the largest magnitude in the graph"
    return (Features(names, tuple(f"{relation}.{name}" for name in names), (formula,) * len(names), lambda x, _: x),)


def _magnitude(x: Tensor) -> Tensor:
    return x.log10().clamp(-FARTHEST, FARTHEST)


def _halved_magnitude(x: Tensor) -> Tensor:
    return ((x.log10() + 2.0) / 2.0).clamp(-FARTHEST, FARTHEST)


def _known(scaled: Tensor, measured: Tensor) -> Tensor:
    return torch.where(measured, scaled, torch.nan)


def _step_metrics(x: Tensor, normaliser: MetricNormaliser) -> Tensor:
    """Deviations, logarithmic far from the mean: no metric is so large that it drowns the others."""
    deviations = _known(*normaliser.normalise(x))
    return deviations.sign() * deviations.abs().log1p()


NODE_FEATURES: Mapping[str, tuple[Features, ...]] = MappingProxyType(
    {
        "layer": (
            _alike(
                "log(1 + x) / 7",
                lambda x: x.log1p() / 7.0,
                in_channels="layers.input_channels",
                out_channels="layers.output_channels",
            ),
            _as_is(dropout="layers.dropout_rate"),
            _alike("log(1 + x) / 3", lambda x: x.log1p() / 3.0, weight_norm="layers.weight_norm"),
            _alike("(log10 x + 2) / 2, within ±5", _halved_magnitude, gradient_norm="layers.gradient_norm"),
            _as_is(update_frequency="layers.update_frequency"),
            _alike("log(1 + x)", torch.log1p, in_degree="layers.in_degree", out_degree="layers.out_degree"),
            _as_is(depth="layers.depth"),
            Features(
                tuple(f"step_{metric}" for metric in SCALED_METRICS),
                tuple(f"metrics.{metric}" for metric in SCALED_METRICS),
                ("sign(z) · log(1 + abs z), where z is x in deviations from the running mean",) * len(SCALED_METRICS),
                _step_metrics,
            ),
        ),
        "seed": (
            _alike(
                "x, clamped to [0, 1]",
                lambda x: _known(*normalise_seed_statistics(x)),
                activity_level="seeds.activity_level",
                success_rate="seeds.success_rate",
                risk="seeds.risk",
            ),
            _as_is(scope="seeds.scope"),
            _alike("x, clamped to [0, 1]", lambda x: x.clamp(0.0, 1.0), risk_tolerance="seeds.risk_tolerance"),
            _as_is(quarantine_only="seeds.quarantine_only"),
        ),
        "activation": (
            _as_is(saturation_rate="activations.saturation_rate"),
            _alike("log10 x, within ±5", _magnitude, gradient_flow="activations.gradient_flow"),
            _alike("log(1 + x) / 10", lambda x: x.log1p() / 10.0, computational_cost="activations.computational_cost"),
        ),
        "parameter": (
            Features(
                PARAMETER_FIELDS,
                tuple(f"parameters.{name}" for name in PARAMETER_FIELDS),
                (
                    "(log(1 + x) − 9) / 3, within ±5",
                    "log10 x + 2, within ±5",
                    "(x − 0.9) / 0.05, within ±5",
                    "(log10 x + 3) / 1.5, within ±5",
                ),
                lambda x, _: _known(*normalise_parameters(x)),
            ),
        ),
    }
)
"""Node type → its numbers, but for those of seeds that come from Obs V3 and from what they allow."""

CONTEXT_FEATURES = (
    _alike("x / 100", lambda x: x / 100.0, gpu_util_percent="metrics.gpu_util_percent"),
    _alike("log(1 + x) / 4", lambda x: x.log1p() / 4.0, gpu_mem_free_gb="metrics.gpu_mem_free_gb"),
    _alike("x / 100", lambda x: x / 100.0, cpu_util_percent="metrics.cpu_util_percent"),
    _as_is(process_memory_share="metrics.process_memory_share"),
)
"""The context's numbers, but for those of Obs V3."""

EDGE_FEATURES: Mapping[str, tuple[Features, ...]] = MappingProxyType(
    {relation: _edges(relation) for relation in ("connects", "monitors", "feeds", "influences", "tunes")}
)
"""Relation → its numbers. Those of ``allowed`` are its method."""

CODES: Mapping[str, str] = MappingProxyType(
    {
        "layer.layer_type": "layers.layer_type",
        "layer.activation_type": "layers.activation_type",
        "seed.blueprint": "seeds.blueprint",
        "seed.seed_kind": "seeds.kind",
        "seed.specialisation": "seeds.specialisation",
        "activation.activation_type": "activations.activation_type",
        "parameter.optimizer_family": "parameters.optimizer_family",
    }
)
"""NODE TYPE.CODE of names that registries number → its key. A seed's stage is a number of its own."""


def names_of(features: tuple[Features, ...]) -> tuple[str, ...]:
    """Their columns."""
    return tuple(name for of in features for name in of.columns)


def _check(what: str, columns: Columns, *parts: tuple[str, ...]) -> None:
    given = tuple(name for part in parts for name in part)
    if given != columns.names:
        raise ValueError(f"the formulas of {what} are of {given}, its schema says {columns.names}")


OBSERVED = CONTEXT.names[: CONTEXT.width - len(names_of(CONTEXT_FEATURES))]
"""The context's numbers that are Obs V3's, in front of its others."""
LEVEL_AND_METHODS = ("internal_level", *(f"allows_{method}" for method in BLENDING_METHODS))
"""A seed's last numbers, behind those of ``SLOT_NUMBERS`` and its others: of Obs V3, and the methods that it allows."""

_check("the context", CONTEXT, OBSERVED, names_of(CONTEXT_FEATURES))
_check("seeds", NODE_TYPES["seed"].columns, SLOT_NUMBERS, names_of(NODE_FEATURES["seed"]), LEVEL_AND_METHODS)
for _name in ("layer", "activation", "parameter"):
    _check(_name, NODE_TYPES[_name].columns, names_of(NODE_FEATURES[_name]))
