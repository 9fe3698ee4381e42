"""How a seed enters its host: limited, gated, blended, and kept apart while it trains.

Everything is exact identity at alpha 0, whatever the delta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from envs.batched.activations import ActivationLayout, stack
from envs.batched.kernels.operators import compiled
from envs.batched.parameters import Init, ParameterLayout, ParameterSpec, ParameterSpecs
from envs.blueprints.base import SeedModule
from envs.population.merging import MergePlan, layers_of

LIMIT_EPS = 1e-6
GATE_WEIGHT, GATE_BIAS = "gate_weight", "gate_bias"


def gate_parameters(width: int) -> ParameterSpecs:
    """The learned gate of the GATE algorithm: one logit from the pooled seed input; it starts three quarters open."""
    return {GATE_WEIGHT: ParameterSpec((width,), Init.ZEROS), GATE_BIAS: ParameterSpec((1,), Init.ONES)}


class _Enter(torch.autograd.Function):
    """The host activation as it is, and the seeds' inputs: some members' parts of it.

    Only the attached seeds' gradients return, added in place to the activation's own, which must therefore be nobody
    else's (:class:`_Graft` makes a fresh one).

    Args (of ``apply``): host activation, the slot's seeds.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, seeds: SlotSeeds) -> tuple[Tensor, Tensor]:
        ctx.seeds = seeds
        return h, h.index_select(0, seeds.members)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        seeds, (to_host, to_inputs) = ctx.seeds, grads
        if len(seeds.attached):
            # Chosen, not multiplied by 0: 0 × NaN would carry a broken seed's gradient into the host.
            chosen = to_inputs.index_select(0, seeds.attached)
            to_host.index_add_(0, seeds.attached_members, chosen)
        return to_host, None


class _Graft(torch.autograd.Function):
    """Limit each delta, gate it, multiply where asked, and add ``alpha`` times the effect to the host activation.

    A seed in TRAINING has alpha 0 and gradient weight 1: the host's values and gradients pass bit for bit, while
    the seed receives the gradient of its would-be output (straight-through). Members with alpha 0 keep h itself,
    so that not even a non-finite effect can be seen.

    Args (of ``apply``): host activation, the gates' weights ``[m, C]`` and biases ``[m, 1]`` or None, the slot's
    seeds, the topology's layout, deltas.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        gate_weight: Tensor | None,
        gate_bias: Tensor | None,
        seeds: SlotSeeds,
        activations: ActivationLayout,
        *deltas: Tensor,
    ) -> Tensor:
        h, pieces = h.contiguous(), [delta.contiguous() for delta in deltas]
        if gate_weight is not None and gate_bias is not None:
            gate_weight, gate_bias = gate_weight.contiguous(), gate_bias.contiguous()
        out, statistics = torch.ops.esper.graft(
            *(activations.units(h), [activations.units(piece) for piece in pieces]),
            *(seeds.members, seeds.alpha, seeds.multiplies, seeds.gated, gate_weight, gate_bias, LIMIT_EPS),
        )
        ctx.seeds, ctx.activations = seeds, activations
        ctx.save_for_backward(h, gate_weight, gate_bias, statistics, *pieces)
        return out.view(h.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, gate_weight, gate_bias, statistics, *deltas = ctx.saved_tensors
        seeds, units = ctx.seeds, ctx.activations.units
        to_host, to_deltas, to_weight, to_bias = torch.ops.esper.graft_backward(
            *(units(grads[0].contiguous()), units(h), [units(delta) for delta in deltas]),
            *(seeds.members, seeds.gradient_weight, seeds.multiplies, seeds.incubating, seeds.is_attached),
            *(seeds.gated, gate_weight, gate_bias, statistics),
        )
        gates = (None, None) if gate_weight is None else (to_weight, to_bias)
        back = (to_delta.view(delta.shape) for to_delta, delta in zip(to_deltas, deltas, strict=True))
        return to_host.view(h.shape), *gates, None, None, *back


class _GraftByTorch(torch.autograd.Function):
    """The same in torch's own operators. Written out by hand, since autograd takes three times as many passes.

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
        spread = activations.per_member
        size = (activations.norm_squared(delta) + LIMIT_EPS**2).sqrt()
        shortening = activations.norm_squared(rows).sqrt() / size
        limited = shortening.clamp(max=1.0)
        factor = limited if gate is None else limited * gate
        effect = delta * factor
        squashed = carrier = None
        if len(seeds.multiplying):
            squashed = effect.index_select(0, seeds.multiplying).tanh_()
            carrier = rows.index_select(0, seeds.multiplying)
            effect.index_copy_(0, seeds.multiplying, carrier * squashed)
        blended = torch.addcmul(rows, effect, spread(seeds.alpha)).index_select(0, seeds.visible)
        ctx.seeds, ctx.activations = seeds, activations
        ctx.save_for_backward(delta, size, shortening, factor, gate, squashed, carrier)
        return h.index_copy(0, seeds.visible_members, blended)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, Tensor | None, None, None]:
        delta, size, shortening, factor, gate, squashed, carrier = ctx.saved_tensors
        seeds, activations, to_host = ctx.seeds, ctx.activations, grads[0].clone()
        effect = grads[0].index_select(0, seeds.members).mul_(activations.per_member(seeds.gradient_weight))
        if squashed is not None:
            product = effect.index_select(0, seeds.multiplying)
            effect.index_copy_(0, seeds.multiplying, product * carrier * (1.0 - squashed.square()))
            to_carrier = (product * squashed).index_select(0, seeds.carrying)
            to_host.index_add_(0, seeds.carrying_members, to_carrier)
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
        members: ``[m]`` their places on the activations' member axis, int64.
        alpha: ``[m]`` blend amplitude; 0 in TRAINING.
        gradient_weight: ``[m]`` weight of the effect's gradient: alpha, but 1 in TRAINING.
        attached: ``[m]`` whether the gradient reaches the host through the seed's input (HOLDING, FOSSILIZED).
        incubating: ``[m]`` TRAINING.
        multiplies: ``[m]`` members that blend by MULTIPLY.
        gated: ``[m]`` members that blend by GATE.
        present: int64 ``[m]``, how many channels exist, or None if all do.
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

    Made once per epoch, or evaluation, with all that a mini-batch needs of it: the seeds themselves do not change in
    between.

    Args:
        runs: One per blueprint in use; a member appears in one of them at most.

    Attributes:
        members: ``[m]`` places on the activations' member axis, the runs' one after the other.
        alpha: ``[m]``.
        gradient_weight: ``[m]``.
        incubating: ``[m]``; likewise ``multiplies``, ``gated`` and ``is_attached``.
        attached: Indices into ``members`` of the seeds that are attached; likewise ``multiplying``, ``gating``,
            ``visible`` for those whose alpha is not 0, and, into ``multiplying``, ``carrying`` for those through which
            a gradient reaches the host.
        attached_members: Their ``members``; likewise ``visible_members`` and ``carrying_members``.
    """

    def __init__(self, runs: Sequence[SeedRun]) -> None:
        specs = [_own_parameters(run.layout.specs) for run in runs]
        chains = [layers_of(run.module, own) for run, own in zip(runs, specs, strict=True)]
        self.runs = runs
        self.plan = MergePlan(chains, specs, [len(run.members) for run in runs], [run.present for run in runs])
        self.members = stack([run.members for run in runs])
        self.alpha = stack([run.alpha for run in runs])
        self.gradient_weight = stack([run.gradient_weight for run in runs])
        self.incubating = stack([run.incubating for run in runs])
        self.multiplies = stack([run.multiplies for run in runs])
        self.gated = stack([run.gated for run in runs])
        self.is_attached = stack([run.attached for run in runs])
        self.attached, self.attached_members = self._where(self.is_attached)
        self.visible, self.visible_members = self._where(self.alpha != 0.0)
        self.gating, _ = self._where(self.gated)
        self.multiplying, multiplying_members = self._where(self.multiplies)
        self.carrying = (~self.incubating[self.multiplying]).nonzero().squeeze(1)
        self.carrying_members = multiplying_members[self.carrying]
        self.parts = [merged.parts for merged in self.plan.parameters]
        if len(self.gating):
            self.parts += [tuple((run, name) for run in range(len(runs))) for name in (GATE_WEIGHT, GATE_BIAS)]

    def _where(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        index = mask.nonzero().squeeze(1)
        return index, self.members[index]

    @cached_property
    def parameters(self) -> list[Tensor]:
        """As :meth:`merge` gives them from the runs' flat ones, or what :meth:`run_with` was given."""
        return self.merge([run.flat for run in self.runs])

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
    h, u = _Enter.apply(h, seeds)  # type: ignore[no-untyped-call]
    deltas = seeds.plan.compute(u, seeds.parameters)
    gates = seeds.parameters[-2:] if len(seeds.gating) else (None, None)
    if compiled(h):
        return _Graft.apply(h, *gates, seeds, activations, *deltas)  # type: ignore[no-untyped-call]
    gate = _gate(u, seeds, activations) if len(seeds.gating) else None
    return _GraftByTorch.apply(h, u.detach(), stack(deltas), gate, seeds, activations)  # type: ignore[no-untyped-call]


def _gate(u: Tensor, seeds: SlotSeeds, activations: ActivationLayout) -> Tensor:
    """What each effect is multiplied by: the learned gate of the seeds that have one, 1 for the others."""
    spread = activations.per_member
    weight, bias = (spread(values.index_select(0, seeds.gating)) for values in seeds.parameters[-2:])
    pooled = activations.pooled(u.index_select(0, seeds.gating))
    opening = ((pooled * weight).sum(-1, keepdim=True) + bias).sigmoid()
    return opening.new_ones(len(seeds.members), *opening.shape[1:]).index_copy(0, seeds.gating, opening)
