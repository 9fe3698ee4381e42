"""How a seed enters its host: limited, gated, blended, and kept apart while it trains.

Everything is exact identity at alpha 0, whatever the delta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.batched.activations import ActivationLayout
from envs.batched.parameters import Init, ParameterLayout, ParameterSpec, ParameterSpecs
from envs.blueprints.base import SeedModule
from envs.population.merging import MergePlan, layers_of, stack

LIMIT_EPS = 1e-6
GATE_WEIGHT, GATE_BIAS = "gate_weight", "gate_bias"


def gate_parameters(width: int) -> ParameterSpecs:
    """The learned gate of the GATE algorithm: one logit from the pooled seed input; it starts three quarters open."""
    return {GATE_WEIGHT: ParameterSpec((width,), Init.ZEROS), GATE_BIAS: ParameterSpec((1,), Init.ONES)}


class _Enter(torch.autograd.Function):
    """The seeds' inputs: some members' activations, through which only the attached seeds' gradients return.

    Args (of ``apply``): host activation, member axis, members, and which of them are attached (indices).
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, axis: int, members: Tensor, attached: Tensor) -> Tensor:
        ctx.axis, ctx.shape = axis, h.shape
        ctx.save_for_backward(members, attached)
        return h.index_select(axis, members)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        members, attached = ctx.saved_tensors
        if not len(attached):
            return None, None, None, None
        # Chosen, not multiplied by 0: 0 × NaN would carry a broken seed's gradient into the host.
        chosen = grads[0].index_select(ctx.axis, attached)
        return grads[0].new_zeros(ctx.shape).index_copy_(ctx.axis, members[attached], chosen), None, None, None


class _Graft(torch.autograd.Function):
    """Limit each delta, gate it, multiply where asked, and add ``alpha`` times the effect to the host activation.

    Written out by hand, since it runs over every activation of every seed, and autograd takes three times as many
    passes over memory.

    A seed in TRAINING has alpha 0 and gradient weight 1: the host's values and gradients pass bit for bit, while
    the seed receives the gradient of its would-be output (straight-through). Members with alpha 0 keep h itself,
    so that not even a non-finite effect can be seen.

    Args (of ``apply``): host activation, its rows of the seeds' members, deltas, gate values or None (broadcasting
    against the deltas), the slot's seeds, the topology's layout.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        rows: Tensor,
        delta: Tensor,
        gate: Tensor | None,
        seeds: SlotSeeds,
        activations: ActivationLayout,
    ) -> Tensor:
        axis, spread = activations.member_axis, activations.per_member
        size = (activations.norm_squared(delta) + LIMIT_EPS**2).sqrt()
        shortening = activations.norm_squared(rows).sqrt() / size
        limited = shortening.clamp(max=1.0)
        factor = limited if gate is None else limited * gate
        effect = delta * factor
        squashed = carrier = None
        if len(seeds.multiplying):
            squashed = effect.index_select(axis, seeds.multiplying).tanh_()
            carrier = rows.index_select(axis, seeds.multiplying)
            effect.index_copy_(axis, seeds.multiplying, carrier * squashed)
        blended = torch.addcmul(rows, effect, spread(seeds.alpha))
        if len(seeds.visible) < len(seeds.members):
            blended = blended.index_select(axis, seeds.visible)
        ctx.seeds, ctx.activations = seeds, activations
        ctx.save_for_backward(delta, size, shortening, factor, gate, squashed, carrier)
        return h.index_copy(axis, seeds.members[seeds.visible], blended)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, Tensor | None, None, None]:
        delta, size, shortening, factor, gate, squashed, carrier = ctx.saved_tensors
        seeds, activations = ctx.seeds, ctx.activations
        axis, to_host = activations.member_axis, grads[0]
        effect = to_host.index_select(axis, seeds.members).mul_(activations.per_member(seeds.gradient_weight))
        if squashed is not None:
            product = effect.index_select(axis, seeds.multiplying)
            effect.index_copy_(axis, seeds.multiplying, product * carrier * (1.0 - squashed.square()))
            carries = ~seeds.incubating[seeds.multiplying]
            if carries.any():
                chosen = carries.nonzero().squeeze(1)
                to_carrier = (product * squashed).index_select(axis, chosen)
                to_host = to_host.index_add(axis, seeds.members[seeds.multiplying[chosen]], to_carrier)
        along = activations.inner(effect, delta)
        to_gate = None if gate is None else along * shortening.clamp(max=1.0)
        # The limit's own gradient, where it binds: a longer delta is shortened more.
        pull = torch.where(shortening <= 1.0, along * factor / size.square(), 0.0)
        return to_host, None, effect.mul_(factor).addcmul_(delta, pull, value=-1.0), to_gate, None, None


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
    """All seeds of one slot: layers that blueprints share, and all that follows, are computed for all at once.

    Args:
        runs: One per blueprint in use; a member appears in one of them at most.

    Attributes:
        members: ``[m]`` places on the activations' member axis, the runs' one after the other.
        alpha: ``[m]``.
        gradient_weight: ``[m]``.
        incubating: ``[m]``.
        attached: Indices into ``members`` of the seeds that are attached; likewise ``multiplying``, ``gating``, and
            ``visible`` for those whose alpha is not 0.
        parameters: As :meth:`merge` gives them, from the runs' flat ones.
    """

    def __init__(self, runs: Sequence[SeedRun]) -> None:
        specs = [_own_parameters(run.layout.specs) for run in runs]
        chains = [layers_of(run.module, own) for run, own in zip(runs, specs, strict=True)]
        self.runs = runs
        self.plan = MergePlan(chains, specs, [len(run.members) for run in runs])
        self.members = stack([run.members for run in runs])
        self.alpha = stack([run.alpha for run in runs])
        self.gradient_weight = stack([run.gradient_weight for run in runs])
        self.incubating = stack([run.incubating for run in runs])
        self.attached, self.multiplying, self.gating, self.visible = (
            mask.nonzero().squeeze(1)
            for mask in (
                stack([run.attached for run in runs]),
                stack([run.multiplies for run in runs]),
                stack([run.gated for run in runs]),
                self.alpha != 0.0,
            )
        )
        self.parts = [merged.parts for merged in self.plan.parameters]
        if len(self.gating):
            self.parts += [tuple((run, name) for run in range(len(runs))) for name in (GATE_WEIGHT, GATE_BIAS)]
        self.parameters = self.merge([run.flat for run in runs])

    def run_with(self, parameters: list[Tensor]) -> None:
        """Compute with these merged parameters from now on, in the order of ``parts``."""
        self.parameters = parameters

    def merge(self, flat: Sequence[Tensor]) -> list[Tensor]:
        """Each merged parameter, ``[members, *shape]``, from one flat ``[m, P]`` per run: the plan's, then the gates'.

        Args:
            flat: Parameters of the runs, or their momentum.
        """
        views = [run.layout.views(values) for run, values in zip(self.runs, flat, strict=True)]
        return [stack([views[run][name] for run, name in parts]) for parts in self.parts]


def _own_parameters(specs: ParameterSpecs) -> ParameterSpecs:
    return {name: spec for name, spec in specs.items() if name not in (GATE_WEIGHT, GATE_BIAS)}


def grow(h: Tensor, seeds: SlotSeeds, activations: ActivationLayout) -> Tensor:
    """A slot: compute all deltas, limit, gate and blend them.

    A delta trained straight-through never sees its own effect and would grow without limit: each sample's (each
    token's in a sequence) is scaled down to at most the norm of its host activation.

    Args:
        h: Host activation in the topology's layout.
        seeds: The slot's seeds.
        activations: The topology's layout.

    Returns:
        The activation that the rest of the host sees, same shape.
    """
    axis = activations.member_axis
    u = _Enter.apply(h, axis, seeds.members, seeds.attached)  # type: ignore[no-untyped-call]
    delta = seeds.plan.compute(u, seeds.parameters, [run.present for run in seeds.runs], axis)
    gate = _gate(u, seeds, activations) if len(seeds.gating) else None
    return _Graft.apply(h, u.detach(), delta, gate, seeds, activations)  # type: ignore[no-untyped-call]


def _gate(u: Tensor, seeds: SlotSeeds, activations: ActivationLayout) -> Tensor:
    """What each effect is multiplied by: the learned gate of the seeds that have one, 1 for the others."""
    axis, spread = activations.member_axis, activations.per_member
    weight, bias = (spread(values[seeds.gating]) for values in seeds.parameters[-2:])
    pooled = activations.pooled(u.index_select(axis, seeds.gating))
    opening = ((pooled * weight).sum(-1, keepdim=True) + bias).sigmoid()
    shape = [*opening.shape]
    shape[axis] = len(seeds.members)
    return opening.new_ones(shape).index_copy(axis, seeds.gating, opening)
