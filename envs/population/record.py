"""What an epoch's training does to the hosts, for whoever wants to know: collected only where somebody asks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from envs.batched.parameters import packed, unpacked
from envs.population.optimizer import EpochOptimizer, TrainedRows

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HostMotion:
    """How the parameters of N hosts were trained in an epoch; n is the number of a host's parameters (its tensors).

    Gradients are those before clipping.

    Attributes:
        loss: ``[N]`` training loss, mean over the epoch's samples.
        gradient_norm: ``[N]`` norm of the whole gradient, mean over the steps.
        squared_gradient: ``[N, n]`` squared norm of each parameter's gradient, mean over the steps.
        squared_mean_gradient: ``[N, n]`` squared norm of the gradient's mean over the steps.
        pushed: ``[N, n]`` share of the steps by which the parameter had got a gradient in this epoch.
        squared_change: ``[N, n]`` squared norm of what the epoch changed.
    """

    loss: FloatArray
    gradient_norm: FloatArray
    squared_gradient: FloatArray
    squared_mean_gradient: FloatArray
    pushed: FloatArray
    squared_change: FloatArray


@dataclass(frozen=True)
class EpochMotion:
    """How everything was trained in an epoch.

    Attributes:
        hosts: Of the hosts.
        seed_change: ``[N, S]`` norm of what each seed's parameters changed by, over their norm; NaN where a slot has
            no seed that trains.
    """

    hosts: HostMotion
    seed_change: FloatArray


class EpochRecord:
    """Collects :class:`HostMotion`, mini-batch by mini-batch.

    Like a step itself it reads and writes nothing but tensors that live through the epoch.

    Args:
        hosts: As they are before the epoch.
    """

    def __init__(self, hosts: TrainedRows) -> None:
        self._hosts, self._before = hosts, hosts.flat.clone()
        self._pushed = hosts.flat.new_zeros(len(hosts.flat), len(hosts.layout.specs))
        self._loss = hosts.flat.new_zeros(len(hosts.flat))
        self._norm = torch.zeros_like(self._loss)
        views = hosts.layout.views(hosts.flat).values()
        self._sum = [torch.zeros(packed(view).shape, device=view.device) for view in views]
        self._squares = self._pushed
        self._steps = self._loss.new_zeros(())

    def add(self, losses: Tensor, gradients: tuple[Tensor, ...], optimizer: EpochOptimizer) -> None:
        """Take in a step.

        Args:
            losses: Of each host, ``[N]``.
            gradients: Of each of the hosts' parameters, ``[N, *shape]``.
            optimizer: That has just taken the step; hosts are the first of its rows, and of its leaves.
        """
        hosts, parameters = self._pushed.shape
        self._steps += 1.0
        self._loss += losses
        self._norm += optimizer.squared_norms[:hosts].sqrt()
        torch._foreach_add_(self._sum, tuple(packed(gradient) for gradient in gradients))
        self._squares = optimizer.squares[:hosts, :parameters]  # the same tensor all through the epoch
        self._pushed += self._squares != 0.0

    def read(self) -> HostMotion:
        """What the epoch did; its results must have been written back to the hosts."""
        layout, held = self._hosts.layout, self._hosts.held
        total = torch.cat([unpacked(of_one).flatten(1) for of_one in self._sum], dim=1)
        if held is not None:
            total.masked_fill_(held, 0.0)
        change = torch.sub(self._hosts.flat, self._before, out=self._before)
        loss, norm, squares, pushed, mean = (
            _numbers(values / self._steps)
            for values in (self._loss, self._norm, self._squares, self._pushed, layout.norms(total))
        )
        return HostMotion(loss, norm, squares, mean**2, pushed, _numbers(layout.norms(change)) ** 2)


def _numbers(values: Tensor) -> FloatArray:
    numbers: FloatArray = values.double().cpu().numpy()
    return numbers
