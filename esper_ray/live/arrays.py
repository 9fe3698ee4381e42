"""A model that somebody trains as arrays: what a traced forward and an epoch of steps say of its graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from envs.action_masks import mask_size
from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from envs.vocabulary import BLENDING_METHODS, SeedStage
from esper_ray.live.metering import Motion, momentum_of
from esper_ray.live.tracing import FUNCTION_FLOPS, ActivationSeen, LayerSeen, Trace
from policies.strategic.measured import NOWHERE, Measured, Names

FloatArray = npt.NDArray[np.float64]
Numbers = dict[str, FloatArray]


def model_arrays(
    seen: Trace,
    motion: Motion,
    parameters: Sequence[nn.Parameter],
    optimizer: Optimizer,
    before: Mapping[str, float],
    watched: Mapping[int, Sequence[int]],
    slots: SlotConfig | None,
) -> Measured:
    """The graph of a model, N = 1, whole.

    Args:
        seen: A forward.
        motion: An epoch of its parameters.
        parameters: Those of the motion, in its order.
        optimizer: That trains them.
        before: Update magnitudes of the epoch before, by layer.
        watched: Layers that each slot monitors, by slot.
        slots: Of the model; None where it has none.
    """
    groups = optimizer.param_groups
    tunes = _tunes(seen.layers, groups)
    with np.errstate(divide="ignore", invalid="ignore"):  # what comes out is not finite, and so not known
        own = _layer_motion(seen.layers, motion, parameters)
        change = np.sqrt(own["change"] / own["start"])
        last = _column(before.get(layer.name) for layer in seen.layers)
        numbers = _layers(seen, own) | _activations(seen, own) | _edges(seen) | _groups(groups, motion, parameters)
        tuned = np.array([target for _, target in tunes], np.int64)
        numbers["tunes.update_magnitude"] = change[tuned]
        numbers["tunes.convergence_rate"] = (1.0 - change / last)[tuned]
    monitors = [(slot, layer) for slot, layers in watched.items() for layer in layers]
    ends = {
        "connects": list(seen.connects),
        "feeds": seen.feeds,
        "influences": seen.influences,
        "tunes": tunes,
        "allowed": [],
        "monitors": monitors,
    }
    count = 0 if slots is None else slots.num_slots
    world = slots or NOWHERE
    return Measured(
        slots=world,
        present=torch.ones(1, dtype=torch.bool),
        nodes={
            "layers": tuple(layer.name for layer in seen.layers),
            "activations": tuple(activation.name for activation in seen.activations),
            "parameters": tuple(f"group {at}" for at in range(len(groups))),
        },
        ends={name: _pairs(pairs) for name, pairs in ends.items()},
        methods=torch.zeros(1, 0, dtype=torch.int64),
        watched=torch.tensor([[slot in watched for slot in range(count)]]).bool(),
        numbers={key: _row(values) for key, values in numbers.items()},
        texts={
            "layers.layer_type": Names.of([layer.layer_type for layer in seen.layers]),
            "layers.activation_type": Names.of(_following(seen)),
            "activations.activation_type": Names.of([activation.function for activation in seen.activations]),
            "parameters.optimizer_family": Names.of([type(optimizer).__name__.lower()] * len(groups)),
        },
        allowed_methods=torch.full((1, count, len(BLENDING_METHODS)), torch.nan),
        stages=torch.full((1, count), int(SeedStage.UNKNOWN)),
        observation=torch.full((1, ObservationLayout(world).size), torch.nan),
        action_mask=torch.zeros(1, mask_size(world.heads), dtype=torch.int8),
        layer_count=len(seen.layers),
        sampled=False,
    )


def update_magnitudes(measured: Measured) -> dict[str, float]:
    """Layer → norm of its change in the epoch over the norm of its parameters."""
    targets = measured.ends["tunes"][0, :, 1].tolist()
    values = measured.number("tunes.update_magnitude")[0].tolist()
    return {measured.nodes["layers"][target]: value for target, value in zip(targets, values, strict=True)}


def _pairs(pairs: Iterable[tuple[int, int]]) -> Tensor:
    return torch.tensor(list(pairs), dtype=torch.int64).reshape(1, -1, 2)


def _row(values: FloatArray) -> Tensor:
    """float64 ``[1, r]``; what is not finite was not measured."""
    return torch.from_numpy(np.where(np.isfinite(values), values, np.nan)).double().unsqueeze(0)


def _column(values: Iterable[float | None]) -> FloatArray:
    return np.array(list(values), np.float64)  # numpy reads None as NaN


# ------------------------------------------------------------------ nodes
def _layer_motion(layers: Sequence[LayerSeen], motion: Motion, parameters: Sequence[nn.Parameter]) -> Numbers:
    """Sums over each layer's parameters, and the most updated of them; NaN where one is not watched."""
    rows = {parameter: at for at, parameter in enumerate(parameters)}
    of = [[rows.get(parameter, -1) for parameter in layer.parameters] for layer in layers]
    summed = {name: np.append(getattr(motion, name), np.nan) for name in ("start", "square", "change", "gradient")}
    own = {name: _column(values[rows].sum() for rows in of) for name, values in summed.items()}
    updated = np.append(motion.updated, np.nan)
    return own | {"updated": _column(updated[rows].max() for rows in of)}


def _layers(seen: Trace, own: Numbers) -> Numbers:
    count = len(seen.layers)
    reads, is_read = np.zeros(count), np.zeros(count)
    for source, target in seen.connects:
        reads[target] += 1
        is_read[source] += 1
    followed = np.array([layer.followed for layer in seen.layers], bool)
    return {
        "layers.input_channels": _column(layer.inputs for layer in seen.layers),
        "layers.output_channels": _column(layer.outputs for layer in seen.layers),
        "layers.dropout_rate": _column(layer.dropout for layer in seen.layers),
        "layers.weight_norm": np.sqrt(own["square"]),
        "layers.gradient_norm": np.sqrt(own["gradient"]),
        "layers.update_frequency": own["updated"],
        "layers.loss_share": np.minimum(own["gradient"] / own["gradient"].sum(), 1.0),
        "layers.in_degree": np.where(followed, reads, np.nan),
        "layers.out_degree": is_read,
        "layers.depth": np.arange(count) / max(count - 1, 1),
    }


def _following(seen: Trace) -> list[str | None]:
    """The first activation function that reads each layer."""
    names: list[str | None] = [None] * len(seen.layers)
    for layer, activation in reversed(seen.feeds):
        names[layer] = seen.activations[activation].function
    return names


def _activations(seen: Trace, own: Numbers) -> Numbers:
    squares, count = own["gradient"], len(seen.activations)
    before = _summed(squares, seen.feeds, count)
    after = _summed(squares, ((layer, activation) for activation, layer in seen.influences), count)
    return {
        "activations.saturation_rate": _column(activation.saturated for activation in seen.activations),
        "activations.gradient_flow": np.sqrt(before / after),
        "activations.computational_cost": _column(
            activation.volume * FUNCTION_FLOPS[activation.function] for activation in seen.activations
        ),
    }


def _summed(values: FloatArray, pairs: Iterable[tuple[int, int]], size: int) -> FloatArray:
    """For each of ``size`` rows the sum of the values that it is paired with, (value, row); NaN where there is none."""
    of: list[list[int]] = [[] for _ in range(size)]
    for value, row in pairs:
        of[row].append(value)
    return _column(values[rows].sum() if rows else None for rows in of)


def _groups(groups: Sequence[Mapping[str, Any]], motion: Motion, parameters: Sequence[nn.Parameter]) -> Numbers:
    rows = {parameter: at for at, parameter in enumerate(parameters)}
    of = [[rows[parameter] for parameter in group["params"] if parameter in rows] for group in groups]
    return {
        "parameters.count": _column(sum(parameter.numel() for parameter in group["params"]) for group in groups),
        "parameters.learning_rate": _column(float(group.get("lr", np.nan)) for group in groups),
        "parameters.momentum": _column(momentum_of(group) for group in groups),
        "parameters.gradient_variance": _column(
            motion.spread[rows].sum() / motion.sizes[rows].sum() if rows else None for rows in of
        ),
    }


# ------------------------------------------------------------------ edges
def _tunes(layers: Sequence[LayerSeen], groups: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """(group, layer) where a group has some of a layer's parameters."""
    group_of = {parameter: at for at, group in enumerate(groups) for parameter in group["params"]}
    return [
        (group, at)
        for at, layer in enumerate(layers)
        for group in sorted({group_of[parameter] for parameter in layer.parameters if parameter in group_of})
    ]


def _edges(seen: Trace) -> Numbers:
    feeding: list[ActivationSeen] = [seen.activations[activation] for _, activation in seen.feeds]
    influencing = [seen.activations[activation] for activation, _ in seen.influences]
    readers = np.bincount([at for at, _ in seen.influences], minlength=len(seen.activations))
    return {
        # What is added up comes in as one: all weights read each part of it. Of what lies side by side some do.
        "connects.connection_strength": _column(None if way.beside else 1.0 for way in seen.connects.values()),
        "connects.data_flow_volume": _column(way.volume for way in seen.connects.values()),
        "feeds.activation_frequency": _column(activation.active for activation in feeding),
        "feeds.saturation_events": _column(activation.saturated * activation.volume for activation in feeding),
        # All gradient comes back along the only edge; how several share it is not measured.
        "influences.gradient_contribution": _column(1.0 if readers[at] == 1 else None for at, _ in seen.influences),
        "influences.nonlinearity_strength": _column(activation.unexplained for activation in influencing),
    }
