"""Running scale of returns: the one place that says how critic outputs turn into reward units."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from policies.running_moments import RunningMoments, power_sums

WORLD = "world"
"""Leaf of an observation: int64 ``[..., 1]``, which of several worlds it is from. Absent where there is one."""


class ReturnScale(RunningMoments):
    """Exponentially forgetting standard deviation of the returns seen in training.

    The critic regresses on ``returns / scale``; ``critic output * scale`` is in reward units. Only a factor, no
    shift, so a value of 0 means the same in both. Every world has its own (van Hasselt et al., 2016): one whose scores
    differ more would leave the critic little to learn in the others.

    Args:
        num_worlds: K; several are told apart by the observations' leaf ``world``.
    """

    MINIMUM = 1e-3
    """Smallest scale, in reward units: nearly equal returns are not blown up to unit size."""

    def __init__(self, num_worlds: int = 1) -> None:
        super().__init__(*((num_worlds,) if num_worlds > 1 else ()))

    @property
    def value(self) -> Tensor:
        """The scale, a scalar in reward units, or ``[K]`` of several worlds; 1 before any return was seen."""
        return self.deviation(self.MINIMUM)

    def of(self, obs: Mapping[str, Tensor]) -> Tensor:
        """The scale at some observations: the scalar, or of several worlds ``[...]``."""
        return self.value[obs[WORLD].squeeze(-1)] if self.value.ndim else self.value

    def sums(self, returns: Tensor, real: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """Power sums of the returns ``[...]`` at real steps, ``[3]``, or of several worlds ``[3, K]``."""
        sums = torch.stack([power_sums(returns, steps) for steps in self.by_world(real, obs)], dim=-1)
        return sums if self.value.ndim else sums.squeeze(-1)

    def by_world(self, steps: Tensor, obs: Mapping[str, Tensor]) -> list[Tensor]:
        """Which of some steps, bool ``[...]``, are of each world."""
        if not self.value.ndim:
            return [steps]
        world = obs[WORLD].squeeze(-1)
        return [steps & (world == k) for k in range(len(self.value))]
