"""What an epoch's training does to the hosts, for whoever wants to know: collected only where somebody asks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
        moved: ``[N, n]`` share of the steps that changed the parameter.
        squared_change: ``[N, n]`` squared norm of what the epoch changed.
    """

    loss: FloatArray
    gradient_norm: FloatArray
    squared_gradient: FloatArray
    squared_mean_gradient: FloatArray
    moved: FloatArray
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
        # Once there was a gradient, momentum changes a parameter at every step.
        self._moves_at_once = hosts.layout.norms(hosts.momentum) != 0.0
        self._moved = torch.zeros_like(self._moves_at_once, dtype=torch.float32)
        self._loss = hosts.flat.new_zeros(len(hosts.flat))
        self._norm = torch.zeros_like(self._loss)
        self._sum = [torch.zeros_like(view) for view in hosts.layout.views(hosts.flat).values()]
        self._squares = torch.zeros_like(self._moved)
        self._steps = self._loss.new_zeros(())

    def add(self, losses: Tensor, gradients: tuple[Tensor, ...], optimizer: EpochOptimizer) -> None:
        """Take in a step.

        Args:
            losses: Of each host, ``[N]``.
            gradients: Of each of the hosts' parameters, ``[N, *shape]``.
            optimizer: That has just taken the step; hosts are the first of its rows, and of its leaves.
        """
        hosts, parameters = self._moved.shape
        self._steps += 1.0
        self._loss += losses
        self._norm += optimizer.squared_norms[:hosts].sqrt()
        torch._foreach_add_(self._sum, gradients)
        self._squares.copy_(optimizer.squares[:hosts, :parameters])
        self._moved += self._moves_at_once | (self._squares != 0.0)

    def read(self) -> HostMotion:
        """What the epoch did; its results must have been written back to the hosts."""
        layout, held = self._hosts.layout, self._hosts.held
        mean = torch.cat([total.flatten(1) for total in self._sum], dim=1) / self._steps
        mean = mean if held is None else mean.masked_fill(held, 0.0)
        per_step = (self._loss, self._norm, self._squares)
        loss, norm, squares = (_numbers(total / self._steps) for total in per_step)
        return HostMotion(
            loss=loss,
            gradient_norm=norm,
            squared_gradient=squares,
            squared_mean_gradient=_numbers(layout.norms(mean)) ** 2,
            moved=_numbers(self._moved / self._steps),
            squared_change=_numbers(layout.norms(self._hosts.flat - self._before)) ** 2,
        )


def _numbers(values: Tensor) -> FloatArray:
    numbers: FloatArray = values.double().cpu().numpy()
    return numbers
