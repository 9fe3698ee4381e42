"""One slot of a live host: the seed that grows on a module's output, and what it makes of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from envs.batched.kernels.operators import TorchAlone
from envs.batched.parameters import ParameterSpecs
from envs.blueprints import blueprints_for
from envs.blueprints.base import LadderModule
from envs.live.errors import LiveError
from envs.live.hooking import SlotHook
from envs.live.places import Place
from envs.population.blending import GATE_BIAS, GATE_WEIGHT, LIMIT_EPS, gate_parameters
from envs.vocabulary import INTERNAL_MAX_LEVEL, AlphaAlgorithm, Blueprint

GROWTH = "growth"
"""Name of the submodule that holds the slots."""
STATE = ("blueprint", "algorithm", "level", "alpha")
"""Buffers of a slot with a seed: what it computes follows from them and the seed's parameters."""


MOST_LEVELS = max(INTERNAL_MAX_LEVEL.values())


class _Incubate(torch.autograd.Function):
    """The host's activation bit for bit, and its gradient to the host and to what the seed would add."""

    @staticmethod
    def forward(h: Tensor, effect: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Nothing to keep."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[0]


class LiveSlot(nn.Module):
    """A place to grow, and its seed if it has one.

    While a seed incubates its parameters are hidden from ``parameters()`` (whoever clips the model's gradients must
    not count them) and yet part of the state dict. A slot without a seed has neither parameters nor buffers.

    Args:
        place: Where it is.
        device: Where seeds are born; they move with the model.
    """

    alpha: Tensor
    like: Tensor
    _watching: SlotHook | None = None

    def __init__(self, place: Place, device: torch.device) -> None:
        super().__init__()
        self.place = place
        self._modules_offered = blueprints_for(place.kind.topology)
        # Moves and is converted with the model, so that a seed is born where its host is, and of its type.
        self.register_buffer("like", torch.empty(0, dtype=place.dtype, device=device), persistent=False)
        self.empty()

    def empty(self) -> None:
        """Be without a seed."""
        self.seed_kind: Blueprint | None = None
        self.seed_algorithm, self.seed_level = AlphaAlgorithm.ADD, 0
        self.incubating, self.attached, self.muted = False, True, False
        self._hidden: dict[str, nn.Parameter] = {}
        self._parameters.clear()
        for name in STATE:
            self._buffers.pop(name, None)
        self._follow_seed()

    # ------------------------------------------------------------------ its module
    def watch(self, model: nn.Module) -> None:
        """Change what a model's module gives, from now on."""
        self._watching = SlotHook(model, self.place.name, self.hook)
        self._follow_seed()

    def unwatch(self) -> None:
        """Let it be again."""
        if self._watching is not None:
            self._watching.remove()
        self._watching = None

    def _follow_seed(self) -> None:
        if self._watching is not None:
            self._watching.follow(self.seed_kind is not None)

    # ------------------------------------------------------------------ the seed
    def specs(self, kind: Blueprint, algorithm: AlphaAlgorithm, level: int) -> ParameterSpecs:
        """The parameters of a seed as it is: those of its levels, and its gate's if it has one."""
        width = self.place.width
        own = {
            name: spec for name, spec in self._modules_offered[kind].parameters(width).items() if spec.level <= level
        }
        return own | gate_parameters(width) if algorithm is AlphaAlgorithm.GATE else own

    def plant(self, kind: Blueprint) -> None:
        """Put a seed in that has neither levels nor parameters yet."""
        self.seed_kind = kind
        device = self.like.device
        for name, value in (("blueprint", int(kind)), ("algorithm", int(AlphaAlgorithm.ADD)), ("level", 0)):
            self.register_buffer(name, torch.tensor(value, device=device))
        self.register_buffer("alpha", torch.zeros((), device=device))
        self._follow_seed()

    def set_form(self, algorithm: AlphaAlgorithm, level: int, generator: np.random.Generator) -> None:
        """Let the seed blend by an algorithm and have these internal levels.

        Args:
            algorithm: GATE brings a gate, the others have none.
            level: Highest level that takes part.
            generator: Draws what is new; the same values whatever the form, and those that the greenhouse draws.
        """
        held, wanted = self.named(), self.specs(self._kind(), algorithm, level)
        if not wanted.keys() <= held.keys():
            held = self._drawn(generator) | held
        self._hold({name: held[name] for name in wanted})
        self.seed_algorithm, self.seed_level = algorithm, level
        self._write_form()

    def _write_form(self) -> None:
        if self.seed_kind is not None:
            form = (self.seed_kind, self.seed_algorithm, self.seed_level)
            for name, value in zip(STATE, form, strict=False):
                self.get_buffer(name).fill_(int(value))

    def _drawn(self, generator: np.random.Generator) -> dict[str, nn.Parameter]:
        """A fresh seed with all that it can have."""
        specs = self.specs(self._kind(), AlphaAlgorithm.GATE, MOST_LEVELS)
        return {
            name: nn.Parameter(torch.from_numpy(spec.draw(generator)).to(self.like)) for name, spec in specs.items()
        }

    def set_stage(self, incubating: bool, attached: bool) -> None:
        """Say whether the seed trains behind the host, and whether its input's gradient reaches the host."""
        if incubating != self.incubating:
            held = self.named()
            self.incubating = incubating
            self._hold(held)
        self.attached = attached

    def set_alpha(self, alpha: float) -> None:
        """Blend with this amplitude; at 0 the seed is not run."""
        self.alpha.fill_(alpha)
        self.muted = alpha == 0.0

    def named(self) -> dict[str, nn.Parameter]:
        """The seed's parameters, hidden or not, in the order of its blueprint."""
        shown = {name: parameter for name, parameter in self._parameters.items() if parameter is not None}
        return self._hidden or shown

    def drop_gradients(self) -> None:
        """Have no gradient, which an optimiser takes for nothing to do."""
        with self._all_shown():
            self.zero_grad()

    def _hold(self, parameters: dict[str, nn.Parameter]) -> None:
        self._parameters.clear()
        self._hidden = parameters if self.incubating else {}
        for name, parameter in parameters.items():
            if not self.incubating:
                self.register_parameter(name, parameter)

    def _kind(self) -> Blueprint:
        if self.seed_kind is None:
            raise RuntimeError(f"the slot {self.place.name!r} has no seed")
        return self.seed_kind

    # ------------------------------------------------------------------ computing
    def hook(self, module: nn.Module, args: Any, output: Any) -> Any:
        """What the rest of the host sees of a module's output (a forward hook); None where it is the output."""
        if self.seed_kind is None:
            return None
        place = self.place
        h = place.activation(output)
        unseen = self.incubating or (not torch.compiler.is_compiling() and self.muted)
        if unseen and not torch.is_grad_enabled():
            return None
        blended = self._blend(h)
        if place.item is None:
            return blended
        rest = [blended if index == place.item else value for index, value in enumerate(output)]
        return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)

    def _blend(self, h: Tensor) -> Tensor:
        parameters = {name: parameter.unsqueeze(0) for name, parameter in self.named().items()}
        carrier = self.place.members_first(h.detach() if self.incubating else h)
        # Where there are no gradients nothing is asked that would make torch.compile trace once more.
        apart = torch.is_grad_enabled() and (self.incubating or not self.attached)
        u = carrier.detach() if apart else carrier
        delta = self._delta(parameters, u)
        effect = delta * self._strength(delta, u, parameters)
        if self.seed_algorithm is AlphaAlgorithm.MULTIPLY:
            effect = carrier * effect.tanh()
        effect = self.place.members_gone(effect).to(h.dtype)
        if self.incubating:
            return _Incubate.apply(h, effect)  # type: ignore[no-untyped-call]
        # Chosen, so that at alpha 0 not even an effect that is not finite can be seen.
        return torch.where(self.alpha != 0.0, h + self.alpha * effect, h)

    def _delta(self, parameters: dict[str, Tensor], u: Tensor) -> Tensor:
        seed = self._modules_offered[self._kind()]
        if isinstance(seed, LadderModule):
            if self.seed_level == 0:
                return torch.zeros_like(u)
            seed = seed.shortened(self.seed_level)
        with TorchAlone():
            return seed.delta(parameters, u, None)

    def _strength(self, delta: Tensor, u: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """What each sample's (each token's) delta is multiplied by: at most to the host's own norm, and the gate."""
        activations = self.place.kind.activations
        axes = (*activations.pooled_axes, -1)

        def norm(x: Tensor) -> Tensor:
            wide = torch.promote_types(x.dtype, torch.float32)  # squares of half precision would overflow
            return torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=wide)

        size = (norm(delta).square() + LIMIT_EPS**2).sqrt()
        strength = (norm(u.detach()) / size).clamp(max=1.0)
        if self.seed_algorithm is AlphaAlgorithm.GATE:
            logit = (activations.pooled(u) * activations.per_member(parameters[GATE_WEIGHT])).sum(-1, keepdim=True)
            strength = strength * (logit + activations.per_member(parameters[GATE_BIAS])).sigmoid()
        return strength.to(delta.dtype)

    # ------------------------------------------------------------------ keeping
    def follow(self, other: LiveSlot) -> None:
        """Have the seed that another slot has, in its form and stage; what is new takes over its values.

        So does what was hidden until now, which nobody averages.
        """
        if self.seed_kind is not other.seed_kind:
            self.empty()
        if other.seed_kind is None:
            return
        if self.seed_kind is None:
            self.plant(other.seed_kind)
        held = set() if self.incubating else set(self.named())
        self.set_stage(other.incubating, other.attached)
        self.set_form(other.seed_algorithm, other.seed_level, np.random.default_rng(0))
        self.set_alpha(float(other.alpha))
        with torch.no_grad():
            for name, parameter in self.named().items():
                if name not in held:
                    parameter.copy_(other.named()[name])

    def adopt(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Have a seed of the form that a state dict describes, its values yet to be loaded.

        Args:
            state: Of the model.
            prefix: Of this slot's keys in it.
        """
        if any(prefix + name not in state for name in STATE):
            return
        kind, algorithm, level = (int(state[prefix + name]) for name in STATE[:3])
        known = kind in self._modules_offered and algorithm in list(AlphaAlgorithm) and 0 <= level <= MOST_LEVELS
        if not known:
            raise LiveError(
                f"the state dict names a seed in {self.place.name!r} that there is not (kind {kind}, algorithm "
                f"{algorithm}, level {level}): an average of such numbers is no seed, mirror() the copy instead"
            )
        if self.seed_kind != kind:
            self.empty()
            self.plant(Blueprint(kind))
        if (self.seed_algorithm, self.seed_level) != (algorithm, level) or not self.named():
            self.set_form(AlphaAlgorithm(algorithm), level, np.random.default_rng(0))

    @contextmanager
    def _all_shown(self) -> Iterator[None]:
        """Hidden parameters are among the others in here."""
        hidden = list(self._hidden)
        self._parameters.update(self._hidden)
        try:
            yield
        finally:
            self._hidden = {name: self._parameters.pop(name) for name in hidden}  # type: ignore[misc]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._write_form()  # an average of buffers may have made something else of it
        with self._all_shown():
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        with self._all_shown():
            super()._load_from_state_dict(state_dict, prefix, *args)
        if self.seed_kind is not None:
            self.muted = float(self.alpha) == 0.0

    def _apply(self, fn: Any, recurse: bool = True) -> LiveSlot:
        with self._all_shown():
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class Growth(nn.Module):
    """All slots of a host, as one submodule of it whose forward is the identity.

    Args:
        places: Of the slots, in the order in which data passes them.
        devices: For each where its seeds are born.
    """

    def __init__(self, places: Sequence[Place], devices: Sequence[torch.device]) -> None:
        super().__init__()
        for place, device in zip(places, devices, strict=True):
            self.add_module(place.key, LiveSlot(place, device))

    def named_slots(self) -> Iterator[tuple[str, LiveSlot]]:
        """The slots by their keys, in the order in which data passes them."""
        return ((name, slot) for name, slot in self.named_children() if isinstance(slot, LiveSlot))

    def slots(self) -> list[LiveSlot]:
        """In the order in which data passes them."""
        return [slot for _, slot in self.named_slots()]

    def follow(self, other: Growth) -> None:
        """Have the seeds that another growth has; what is new takes over its values, what is there keeps its own.

        Raises:
            ValueError: the other one has a slot that this one lacks.
        """
        own = dict(self.named_slots())
        for name, slot in other.named_slots():
            if name not in own:
                raise ValueError(f"there is no slot {slot.place.name!r} here")
        theirs = dict(other.named_slots())
        for name, slot in own.items():
            if name in theirs:
                slot.follow(theirs[name])
            else:
                slot.empty()

    def forward(self, x: Any) -> Any:
        """The identity: a host that is an ``nn.Sequential`` runs its growth like any other of its modules."""
        return x

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Seeds that the state dict has are planted here, before the slots load theirs."""
        for name, slot in self.named_slots():
            slot.adopt(state_dict, f"{prefix}{name}.")
        super()._load_from_state_dict(state_dict, prefix, *args)
