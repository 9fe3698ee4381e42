"""Seeds in somebody's own optimiser: they join its groups, are clipped one by one, and leave no trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Muon, Optimizer, SparseAdam
from torch.utils.hooks import RemovableHandle

from envs.live.errors import LiveError
from envs.live.slot import GROWTH, LiveSlot
from envs.population.optimizer import CLIP_NORM, GradientHealth, GradientMeter

_UNFIT: dict[type[Optimizer], str] = {
    LBFGS: "keeps one flat history of all parameters and cannot take new ones",
    Muon: "takes matrices only, and seeds have vectors and kernels too",
    SparseAdam: "takes sparse gradients only, and seeds have none",
}
Owner = tuple[LiveSlot, str]
"""Whose parameter it is: the slot, and the name in its seed."""


def check_hooks(optimizer: object) -> None:
    """Refuse what cannot be watched while it steps.

    Raises:
        LiveError: no optimiser of torch, or one that takes no hooks.
    """
    if not isinstance(optimizer, Optimizer):
        raise LiveError(f"the optimizer must be a torch.optim.Optimizer, got a {type(optimizer).__name__}")
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise LiveError(
            f"the {type(optimizer).__name__} wraps an optimizer and takes no hooks: pass the torch.optim.Optimizer "
            "that it wraps"
        )


def with_gradients(args: Any, kwargs: Any, act: Callable[[], None]) -> tuple[Any, Any] | None:
    """Act in a step's pre-hook when its gradients are there: at once, or after the closure that makes them.

    Args:
        args: Of the hook, positional ones of the step; the first one is the optimiser itself.
        kwargs: Likewise those by name.
        act: Called after each call of the closure.

    Returns:
        What the hook returns: the arguments with a closure that acts, or None where there is no closure.
    """
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        act()
        return None

    def acting() -> Any:
        result = closure()
        act()
        return result

    return ((args[0], acting), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": acting})


def _is_matrix(parameter: Tensor) -> bool:
    """Whether it is a matrix or a kernel: no bias, no scale."""
    return parameter.dim() > 1


class SeedOptimizer:
    """Lets the user's optimiser train the seeds beside the host.

    A seed's parameters are appended to the group that trains the slot's module, in the order in which they were born;
    where its matrices are in another group than its vectors, so are the seed's. No group is added (many schedulers
    cannot bear a late one), and the host's own entries keep their places. Just before a step each seed's gradient is
    measured and clipped to norm 1 as if the seed were alone; a gradient that is not finite is dropped. Whatever else
    the optimiser does it does with seeds as with all parameters of the group.

    While a seed incubates, and nobody else sees its parameters, what is not finite does not even reach its gradients: a
    gradient scaler would skip the host's step for it, and a loop that clears the model's gradients would not clear it.

    Args:
        optimizer: Of the host.
        model: The host.
        slots: Of the host.
        lr_scale: Share of a step that seeds take.

    Raises:
        LiveError: an optimiser that takes no groups of parameters, or has none of the host's.

    Attributes:
        rate: Factor on that share now.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, slots: list[LiveSlot], lr_scale: float) -> None:
        check_hooks(optimizer)
        for kind, reason in _UNFIT.items():
            if isinstance(optimizer, kind):
                raise LiveError(f"{kind.__name__} {reason}: grow with SGD, Adam or AdamW")
        self.optimizer, self._slots, self._lr_scale, self.rate = optimizer, slots, lr_scale, 1.0
        self._groups = {
            (slot, matrices): self._group_of(model, slot.place.name, matrices)
            for slot in slots
            for matrices in (True, False)
        }
        self._owners: dict[nn.Parameter, Owner] = {}
        self._meters = {slot: GradientMeter() for slot in slots}
        self._measured: set[LiveSlot] = set()
        self._before: list[tuple[nn.Parameter, Tensor]] = []
        self._aside: list[tuple[nn.Parameter, Tensor]] = []
        self._guards: dict[nn.Parameter, RemovableHandle] = {}
        self._broken: dict[LiveSlot, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def _group_of(self, model: nn.Module, name: str, matrices: bool) -> int:
        """Index of the group that trains the slot's module, or what it is a part of.

        Decay is often for matrices and kernels alone, which are in a group of their own then: what is alike goes with
        what is alike. Of several groups it is the one that has most of it.
        """
        owner = {
            id(parameter): at for at, group in enumerate(self.optimizer.param_groups) for parameter in group["params"]
        }
        own = name.split(".")
        parts = [model.get_submodule(".".join(own[:levels])) for levels in range(len(own), -1, -1)]
        for alike in (True, False):
            for part in parts:
                sizes: dict[int, int] = {}
                for parameter in part.parameters():
                    if id(parameter) in owner and (not alike or _is_matrix(parameter) == matrices):
                        group = owner[id(parameter)]
                        sizes[group] = sizes.get(group, 0) + parameter.numel()
                if sizes:
                    return max(sizes, key=lambda group: sizes[group])
        raise LiveError(
            "the optimizer has none of the model's parameters: build it from model.parameters() and pass both"
        )

    # ------------------------------------------------------------------ membership
    @property
    def order(self) -> list[Owner]:
        """Whose parameters they are, in the order of their birth."""
        return list(self._owners.values())

    def follow(self) -> None:
        """Train what the slots' seeds have now: what is new comes last and has no momentum, what is gone leaves."""
        held = {parameter: (slot, name) for slot in self._slots for name, parameter in slot.named().items()}
        self._remove([parameter for parameter in self._owners if parameter not in held])
        for parameter, owner in held.items():
            if parameter not in self._owners:
                self._add(parameter, owner)
        self._guard()
        self._attend_steps()

    def _attend_steps(self) -> None:
        """While nothing grows a step is the user's alone, and costs what it costs without us."""
        grows = any(slot.seed_kind is not None for slot in self._slots)
        if grows and not self._handles:
            self._handles = [
                self.optimizer.register_step_pre_hook(self._before_step),
                self.optimizer.register_step_post_hook(self._after_step),
            ]
        if not grows:
            self._ignore_steps()

    def _ignore_steps(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _guard(self) -> None:
        """Watch over the gradients of parameters that nobody else sees, and of no others."""
        for parameter, (slot, _) in self._owners.items():
            if slot.incubating and parameter not in self._guards:
                self._guards[parameter] = parameter.register_hook(self._keeps_finite(slot))
        for parameter in list(self._guards):
            if parameter not in self._owners or not self._owners[parameter][0].incubating:
                self._guards.pop(parameter).remove()

    def _keeps_finite(self, slot: LiveSlot) -> Callable[[Tensor], Tensor]:
        def keep(gradient: Tensor) -> Tensor:
            finite = gradient.isfinite()
            broken = self._broken.get(slot)
            self._broken[slot] = ~finite.all() if broken is None else broken | ~finite.all()
            return torch.where(finite, gradient, 0.0)

        return keep

    def _add(self, parameter: nn.Parameter, owner: Owner) -> None:
        slot, name = owner
        group = self.optimizer.param_groups[self._groups[slot, _is_matrix(parameter)]]
        self._owners[parameter] = owner
        group["params"].append(parameter)
        if "param_names" in group:
            group["param_names"].append(f"{GROWTH}.{slot.place.key}.{name}")
        self._forget_gradients(slot)

    def _remove(self, parameters: list[nn.Parameter]) -> None:
        doomed = {id(parameter) for parameter in parameters}
        for group in self.optimizer.param_groups:
            kept = [at for at, parameter in enumerate(group["params"]) if id(parameter) not in doomed]
            if len(kept) < len(group["params"]):
                if "param_names" in group:
                    group["param_names"][:] = [group["param_names"][at] for at in kept]
                group["params"][:] = [group["params"][at] for at in kept]
        for parameter in parameters:
            slot, _ = self._owners.pop(parameter)
            self.optimizer.state.pop(parameter, None)
            self._forget_gradients(slot)

    def _forget_gradients(self, slot: LiveSlot) -> None:
        self._meters[slot] = GradientMeter()
        self._measured.discard(slot)

    def reorder(self, order: Sequence[Owner]) -> None:
        """Take the seeds out of the groups and append them anew in this order of all of their parameters."""
        held = {owner: parameter for parameter, owner in self._owners.items()}
        states = [(p, self.optimizer.state[p]) for p in self._owners if p in self.optimizer.state]
        self._remove(list(held.values()))
        for owner in order:
            self._add(held[owner], owner)
        for parameter, state in states:
            self.optimizer.state[parameter].update(state)

    def release(self) -> None:
        """Leave the seeds to the optimiser as ordinary parameters."""
        self._ignore_steps()
        for handle in self._guards.values():
            handle.remove()

    # ------------------------------------------------------------------ a step
    @property
    def _share(self) -> float:
        """Of a step that seeds take now."""
        return self._lr_scale * self.rate

    def set_rate(self, rate: float) -> None:
        """Multiply the share by this factor from now on; the groups' own rates are the host's, and left alone."""
        self.rate = rate

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        return with_gradients(args, kwargs, self._treat)

    def set_gradients_aside(self) -> None:
        """Let nobody see the seeds' gradients until the step, which has them back."""
        self._aside = [(parameter, parameter.grad) for parameter in self._owners if parameter.grad is not None]
        for parameter, _ in self._aside:
            parameter.grad = None

    @torch.no_grad()
    def _treat(self) -> None:
        """Measure and clip each seed's gradient."""
        for parameter, gradient in self._aside:
            parameter.grad = gradient
        self._aside = []
        scale = getattr(self.optimizer, "grad_scale", None)  # what a fused optimiser has yet to divide by
        factor = 1.0 if scale is None else float(scale)
        parameters_of: dict[LiveSlot, list[nn.Parameter]] = {slot: [] for slot in self._slots}
        for parameter, (slot, _) in self._owners.items():
            parameters_of[slot].append(parameter)
        for slot, parameters in parameters_of.items():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if slot.seed_kind is None or (parameters and not gradients):
                continue  # nothing that trains, or it took no part in this step
            none = torch.zeros((), device=slot.like.device)
            sizes = [none if p.grad is None else p.grad.float().norm() for p in parameters]
            norms = torch.stack([none, *sizes])[1:] / factor  # with its levels off a seed may have no parameters
            if (broken := self._broken.pop(slot, None)) is not None:
                norms = torch.where(broken, torch.inf, norms)
            self._meters[slot].add(norms.square()[None])
            self._measured.add(slot)
            norm = float(norms.norm())
            if not math.isfinite(norm):
                slot.drop_gradients()
            elif norm > CLIP_NORM:
                torch._foreach_mul_(gradients, CLIP_NORM / norm)
        if self._share != 1.0:
            self._before = [(parameter, parameter.detach().clone()) for parameter in self._owners]

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            for parameter, before in self._before:
                parameter.copy_(torch.lerp(before, parameter, self._share))
        self._before = []
        for slot in self._slots:
            if slot.incubating:
                slot.drop_gradients()  # nobody else sees that they are there

    def has_trained(self, slot: LiveSlot) -> bool:
        """Whether a slot's seed was in a step since the last call of :meth:`read`."""
        return slot in self._measured

    def read(self) -> dict[LiveSlot, GradientHealth]:
        """The statistics of the gradients of each seed that was trained since the last call."""
        health = {}
        for slot in self._measured:
            columns = sum(owner is slot for owner, _ in self._owners.values())
            health[slot] = self._meters[slot].read(torch.ones(1, columns, dtype=torch.bool, device=slot.like.device))
        self._measured.clear()
        return health
