"""What an optimiser's steps did to a model's parameters, summed up as they happen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from envs.live.optimizer import with_gradients

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Motion:
    """An epoch of P parameters. All of it is NaN where there was no step.

    Attributes:
        steps: Steps that there were.
        sizes: Numbers in each parameter ``[P]``.
        start: Squared norm of each before the first step ``[P]``.
        square: Likewise now ``[P]``.
        change: Squared norm of its change in the steps ``[P]``.
        gradient: Squared norm of its gradient, mean over steps ``[P]``.
        spread: Sum over its numbers of their gradient's variance over the steps ``[P]``.
        updated: Share of the steps that moved it ``[P]``, by a gradient that is not 0 or by momentum of one before.
        norm: Norm of the whole gradient, mean over steps.
        hook_ms: Time that measuring took in the last step, milliseconds.
        step_ms: Time from the last step but one to the last, milliseconds.
        seconds: Time from the first step to the last.
        hook_seconds: Time that measuring took in all steps.
    """

    steps: int
    sizes: FloatArray
    start: FloatArray
    square: FloatArray
    change: FloatArray
    gradient: FloatArray
    spread: FloatArray
    updated: FloatArray
    norm: float
    hook_ms: float
    step_ms: float
    seconds: float
    hook_seconds: float


def momentum_of(group: Mapping[str, Any]) -> float | None:
    """Momentum of SGD, or the first beta of Adam and its like; None of an optimiser that has neither."""
    said = group.get("momentum", group.get("betas"))
    return None if said is None else float(said[0] if isinstance(said, Sequence) else said)


class StepMeter:
    """Watches the parameters of a model in an optimiser's steps, of which it changes nothing.

    It keeps the parameters as they were before an epoch's first step, and a sum of their gradients: twice their memory.
    So whatever is loaded into the model between two epochs is none of its changes.

    Args:
        parameters: P of them. Of one whose gradients are sparse nothing is known of its gradients.
        optimizer: That trains them.
        on_first: Called before the first step of every epoch.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], optimizer: Optimizer, on_first: Callable[[], None] = lambda: None
    ) -> None:
        self.parameters = tuple(parameters)
        self._optimizer, self._on_first = optimizer, on_first
        self._moving = torch.zeros(len(self.parameters), dtype=torch.bool)
        self._handle = optimizer.register_step_pre_hook(self._before_step)
        self._due = False
        self.begin()

    def remove(self) -> None:
        """Watch no longer."""
        self._handle.remove()

    @torch.no_grad()
    def begin(self) -> None:
        """Begin an epoch."""
        self._start: list[Tensor] | None = None
        self._sums = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._device = self.parameters[0].device if self.parameters else torch.device("cpu")
        zeros = torch.zeros(len(self.parameters), device=self._device)
        carried = {of for group in self._optimizer.param_groups if momentum_of(group) for of in group["params"]}
        self._carried = torch.tensor(
            [parameter in carried for parameter in self.parameters], device=self._device
        ).bool()
        self._moving = self._moving.to(self._device)
        self._squares, self._updates, self._norms = zeros, zeros.clone(), zeros.new_zeros(())
        self._steps, self._times, self._hook_ms, self._hook_seconds = 0, list[float](), math.nan, 0.0

    def state_dict(self) -> dict[str, Any]:
        """What the next epoch depends on, beside the model and its optimiser: which parameters momentum moves."""
        return {"moving": self._moving.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the one that gave :meth:`state_dict`.

        Raises:
            ValueError: it watched another number of parameters.
        """
        if state["moving"].shape != self._moving.shape:
            raise ValueError(f"the state is of {len(state['moving'])} parameters, here are {len(self._moving)}")
        self._moving = state["moving"].to(self._device, copy=True)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        self._due = True
        if self._start is None:
            started = time.perf_counter()
            with torch.no_grad():
                self._start = [parameter.clone() for parameter in self.parameters]
            self._on_first()
            self._hook_seconds += time.perf_counter() - started
        return with_gradients(args, kwargs, self._look)

    @torch.no_grad()
    def _look(self) -> None:
        """Take in a step's gradients; of a closure that is called again in the step the first ones."""
        if not self._due:
            return
        self._due, started = False, time.perf_counter()
        gradients: dict[int, Tensor] = {}
        for row, parameter in enumerate(self.parameters):
            if parameter.grad is not None and parameter.grad.layout == torch.strided:
                gradients[row] = parameter.grad
            elif parameter.grad is not None:
                self._squares[row] = self._updates[row] = torch.nan
        if gradients:
            self._add(gradients)
        self._steps += 1
        ended = time.perf_counter()
        self._times = [*self._times[:1], *self._times[1:][-1:], ended]
        self._hook_ms, self._hook_seconds = 1e3 * (ended - started), self._hook_seconds + ended - started

    def _add(self, gradients: Mapping[int, Tensor]) -> None:
        """Sum up a step's gradients, by row."""
        for row, gradient in gradients.items():
            if gradient.get_device() != self._sums[row].get_device():
                self._sums[row] = self._sums[row].to(gradient.device)  # where the model was moved to
        values = list(gradients.values())
        torch._foreach_add_([self._sums[row] for row in gradients], values)
        squares = torch.stack([norm.to(self._device, torch.float32) for norm in _norms(values)]).square_()
        given = None
        if len(gradients) < len(self.parameters):
            rows = torch.tensor(list(gradients), device=self._device)
            squares = torch.zeros_like(self._squares).index_copy_(0, rows, squares)
            given = torch.zeros_like(self._moving).index_fill_(0, rows, True)
        self._squares += squares
        self._moving = (squares > 0) | (self._moving & self._carried)
        self._updates += self._moving if given is None else self._moving & given
        self._norms += squares.sum().sqrt()

    @torch.no_grad()
    def end(self) -> Motion:
        """What there was since :meth:`begin`."""
        steps = self._steps or math.nan
        squares = self._numbers(list(self._squares))
        sums = self._squared(self._sums)
        sizes = np.array([float(parameter.numel()) for parameter in self.parameters])
        start: Sequence[Tensor] = self.parameters if self._start is None else self._start
        changes = [now - before.to(now.device) for now, before in zip(self.parameters, start, strict=True)]
        return Motion(
            steps=self._steps,
            sizes=sizes,
            start=self._squared(start),
            square=self._squared(self.parameters),
            change=self._squared(changes) + 0.0 * steps,
            gradient=squares / steps,
            spread=np.maximum(squares / steps - sums / steps**2, 0.0),
            updated=self._numbers(list(self._updates)) / steps,
            norm=self._norms.item() / steps,
            hook_ms=self._hook_ms,
            step_ms=1e3 * (self._times[-1] - self._times[-2]) if len(self._times) > 1 else math.nan,
            seconds=self._times[-1] - self._times[0] if len(self._times) > 1 else math.nan,
            hook_seconds=self._hook_seconds,
        )

    def _squared(self, tensors: Sequence[Tensor]) -> FloatArray:
        """Squared norms ``[P]``."""
        return self._numbers(_norms(tensors)) ** 2 if tensors else np.zeros(0)

    def _numbers(self, scalars: Sequence[Tensor]) -> FloatArray:
        """Scalars of any device ``[P]``, read at once."""
        if not scalars:
            return np.zeros(0)
        return torch.stack([scalar.to(self._device) for scalar in scalars]).cpu().double().numpy()


def _norms(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Norms of tensors of any types, in float32 or what holds more."""
    widest = reduce(torch.promote_types, {tensor.dtype for tensor in tensors}, torch.float32)
    return torch._foreach_norm(list(tensors), dtype=widest)
