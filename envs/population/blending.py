"""How a seed enters its host: limited, gated, blended, and kept apart while it trains.

Everything is exact identity at alpha 0, whatever the delta (design: WORLD.md section 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.blueprints.base import SeedModule
from envs.population.layers import global_average_pool
from envs.population.parameters import Init, ParameterLayout, ParameterSpec, ParameterSpecs

LIMIT_EPS = 1e-6
GATE_WEIGHT, GATE_BIAS = "gate_weight", "gate_bias"


def gate_parameters(width: int) -> ParameterSpecs:
    """The learned gate of the GATE algorithm: one logit from the pooled seed input; it starts three quarters open."""
    return {GATE_WEIGHT: ParameterSpec((width,), Init.ZEROS), GATE_BIAS: ParameterSpec((1,), Init.ONES)}


class _GradientGate(torch.autograd.Function):
    """Identity whose gradient flows only for some members, so that a detached one costs no second forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, open_members: Tensor) -> Tensor:
        ctx.save_for_backward(open_members)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (open_members,) = ctx.saved_tensors
        # where, not a product: 0 × NaN would carry a broken seed's gradient into the host.
        return torch.where(open_members[:, None], grads[0], 0.0), None


class _Blend(torch.autograd.Function):
    """``h + alpha·e``, with a gradient for e that may differ from alpha.

    A seed in TRAINING has alpha 0 and gradient weight 1: the host's values and gradients pass bit for bit, while
    the seed receives the gradient of its would-be output (straight-through). Members with alpha 0 return h itself,
    so that not even a non-finite e can be seen.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, e: Tensor, alpha: Tensor, gradient_weight: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_weight)
        return torch.where(alpha[:, None] == 0.0, h, torch.addcmul(h, e, alpha[:, None]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient_weight,) = ctx.saved_tensors
        return grads[0], grads[0] * gradient_weight[:, None], None, None


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
        multiplies: ``[m]`` members that blend by MULTIPLY, or None if there are none.
        gated: ``[m]`` members that blend by GATE, or None if there are none.
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
    multiplies: Tensor | None
    gated: Tensor | None
    present: Tensor | None


def limit(d: Tensor, h: Tensor) -> Tensor:
    """Scale each sample's delta down to at most the norm of its host activation.

    A delta trained straight-through never sees its own effect and would grow without limit.

    Args:
        d: ``[B, H, W, m, C]``.
        h: Same shape; takes no gradient.
    """
    dims = (1, 2, 4)
    host_norm = h.detach().square().sum(dims, keepdim=True).sqrt()
    # The tiny term keeps the square root differentiable at a seed's birth, where d is exactly 0.
    delta_norm = (d.square().sum(dims, keepdim=True) + LIMIT_EPS**2).sqrt()
    return d * (host_norm / delta_norm).clamp(max=1.0)


def grow(h: Tensor, runs: list[SeedRun]) -> Tensor:
    """A slot: run each blueprint in use once over the members that have it, and blend.

    Args:
        h: Host activation ``[B, H, W, M, C]``.
        runs: The slot's seeds; a member appears in one run at most.

    Returns:
        The activation that the rest of the host sees, same shape.
    """
    for run in runs:
        rows = h.index_select(3, run.members)
        h = h.index_copy(3, run.members, _blend(rows, run))
    return h


def _blend(h: Tensor, run: SeedRun) -> Tensor:
    parameters = run.layout.views(run.flat)
    u = _GradientGate.apply(h, run.attached)  # type: ignore[no-untyped-call]
    effect = limit(run.module.delta(parameters, u, run.present), h)
    if run.gated is not None:
        logit = (global_average_pool(u) * parameters[GATE_WEIGHT]).sum(-1) + parameters[GATE_BIAS][:, 0]
        gate = torch.where(run.gated, logit.sigmoid(), 1.0)
        effect = effect * gate[:, None, None, :, None]
    if run.multiplies is not None:
        carrier = _GradientGate.apply(h, ~run.incubating)  # type: ignore[no-untyped-call]
        effect = torch.where(run.multiplies[:, None], carrier * effect.tanh(), effect)
    return _Blend.apply(h, effect, run.alpha, run.gradient_weight)  # type: ignore[no-untyped-call]
