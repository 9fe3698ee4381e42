"""How a seed enters its host: limited, gated, blended, and kept apart while it trains.

Everything is exact identity at alpha 0, whatever the delta (design: WORLD.md section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.blueprints.base import SeedModule
from envs.population.activations import ActivationLayout
from envs.population.parameters import Init, ParameterLayout, ParameterSpec, ParameterSpecs

LIMIT_EPS = 1e-6
GATE_WEIGHT, GATE_BIAS = "gate_weight", "gate_bias"


def gate_parameters(width: int) -> ParameterSpecs:
    """The learned gate of the GATE algorithm: one logit from the pooled seed input; it starts three quarters open."""
    return {GATE_WEIGHT: ParameterSpec((width,), Init.ZEROS), GATE_BIAS: ParameterSpec((1,), Init.ONES)}


class _GradientGate(torch.autograd.Function):
    """Identity whose gradient flows only for some members, so that a detached one costs no second forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, is_open: Tensor) -> Tensor:
        ctx.save_for_backward(is_open)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (is_open,) = ctx.saved_tensors
        # where, not a product: 0 × NaN would carry a broken seed's gradient into the host.
        return torch.where(is_open, grads[0], 0.0), None


class _Blend(torch.autograd.Function):
    """``h + alpha·e``, with a gradient for e that may differ from alpha.

    A seed in TRAINING has alpha 0 and gradient weight 1: the host's values and gradients pass bit for bit, while
    the seed receives the gradient of its would-be output (straight-through). Members with alpha 0 return h itself,
    so that not even a non-finite e can be seen. ``alpha`` and ``gradient_weight`` broadcast against h.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, e: Tensor, alpha: Tensor, gradient_weight: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_weight)
        return torch.where(alpha == 0.0, h, torch.addcmul(h, e, alpha))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient_weight,) = ctx.saved_tensors
        return grads[0], grads[0] * gradient_weight, None, None


@dataclass(frozen=True)
class SeedRun:
    """The seeds of one blueprint in one slot, as one forward needs them (m of the population's members).

    Attributes:
        slot: Index of the slot.
        module: The blueprint.
        layout: Names of the flat parameters, gate included.
        flat: ``[m, P]`` parameters.
        members: ``[m]`` their places on the activations' member axis.
        alpha: ``[m]`` blend amplitude; 0 in TRAINING.
        gradient_weight: ``[m]`` weight of the effect's gradient: alpha, but 1 in TRAINING.
        attached: ``[m]`` whether the gradient reaches the host through the seed's input (HOLDING, FOSSILIZED).
        incubating: ``[m]`` TRAINING.
        multiplies: ``[m]`` members that blend by MULTIPLY.
        gated: ``[m]`` members that blend by GATE.
        present: ``[m, C]`` channels that exist, or None if all do.
    """

    slot: int
    module: SeedModule
    layout: ParameterLayout
    flat: Tensor
    members: Tensor
    alpha: Tensor
    gradient_weight: Tensor
    attached: Tensor
    incubating: Tensor
    multiplies: Tensor
    gated: Tensor
    present: Tensor | None


class SlotSeeds:
    """All seeds of one slot: each blueprint computes its own deltas, everything else is done for all of them at once.

    Args:
        runs: One per blueprint in use; a member appears in one of them at most.
    """

    def __init__(self, runs: Sequence[SeedRun]) -> None:
        self.runs = runs
        self.counts = [len(run.members) for run in runs]
        self.members = torch.cat([run.members for run in runs])
        self.alpha = torch.cat([run.alpha for run in runs])
        self.gradient_weight = torch.cat([run.gradient_weight for run in runs])
        self.attached = torch.cat([run.attached for run in runs])
        self.incubating = torch.cat([run.incubating for run in runs])
        self.multiplies = torch.cat([run.multiplies for run in runs])
        self.gated = torch.cat([run.gated for run in runs])
        self.any_multiplies, self.any_gated = bool(self.multiplies.any()), bool(self.gated.any())


def limit(d: Tensor, h: Tensor, activations: ActivationLayout) -> Tensor:
    """Scale each sample's delta (each token's in a sequence) down to at most the norm of its host activation.

    A delta trained straight-through never sees its own effect and would grow without limit.

    Args:
        d: In the topology's layout, m members.
        h: Same shape; takes no gradient.
        activations: The topology's layout.
    """
    host_norm = activations.norm_squared(h.detach()).sqrt()
    # The tiny term keeps the square root differentiable at a seed's birth, where d is exactly 0.
    delta_norm = (activations.norm_squared(d) + LIMIT_EPS**2).sqrt()
    return d * (host_norm / delta_norm).clamp(max=1.0)


def grow(h: Tensor, seeds: SlotSeeds, activations: ActivationLayout) -> Tensor:
    """A slot: run each blueprint in use once over the members that have it, limit, gate and blend.

    Args:
        h: Host activation in the topology's layout.
        seeds: The slot's seeds.
        activations: The topology's layout.

    Returns:
        The activation that the rest of the host sees, same shape.
    """
    axis, spread = activations.member_axis, activations.per_member
    rows = h.index_select(axis, seeds.members)
    u = _GradientGate.apply(rows, spread(seeds.attached))  # type: ignore[no-untyped-call]
    parameters = [run.layout.views(run.flat) for run in seeds.runs]
    inputs = torch.split(u, seeds.counts, dim=axis)
    deltas = [run.module.delta(p, x, run.present) for run, p, x in zip(seeds.runs, parameters, inputs, strict=True)]
    effect = limit(torch.cat(deltas, dim=axis), rows, activations)
    if seeds.any_gated:
        weight = spread(torch.cat([p[GATE_WEIGHT] for p in parameters]))
        bias = spread(torch.cat([p[GATE_BIAS] for p in parameters]))
        logit = (activations.pooled(u) * weight).sum(-1, keepdim=True) + bias
        effect = effect * torch.where(spread(seeds.gated), logit.sigmoid(), 1.0)
    if seeds.any_multiplies:
        carrier = _GradientGate.apply(rows, spread(~seeds.incubating))  # type: ignore[no-untyped-call]
        effect = torch.where(spread(seeds.multiplies), carrier * effect.tanh(), effect)
    blended = _Blend.apply(rows, effect, spread(seeds.alpha), spread(seeds.gradient_weight))  # type: ignore[no-untyped-call]
    return h.index_copy(axis, seeds.members, blended)
