"""Running mean and deviation of what is measured, so that the network reads differences and not offsets."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from policies.running_moments import RunningMoments, power_sums


class ObservationScale(RunningMoments):
    """Shifts and scales every number of an observation by its mean and deviation in the rollouts so far.

    Most of an observation is nearly the same at every step. Unscaled, two hosts that need opposite decisions look
    alike to a fresh network, and what it learns about the one it believes of the other (docs/lab-book.md has figures).

    Args:
        num_features: Numbers per observation.
    """

    MINIMUM = 0.1
    """Smallest deviation to divide by: a number that hardly varies is not blown up."""
    LIMIT = 5.0
    """Largest magnitude of a scaled number: a flag seen for the first time must not drown all else."""

    def forward(self, numbers: Tensor) -> Tensor:
        """Scale ``[..., num_features]``; unchanged before anything was seen."""
        count, mean, _ = self.moments.unbind()
        scaled = (numbers - mean) / self.deviation(self.MINIMUM)
        return torch.where(count > 0, scaled.clamp(-self.LIMIT, self.LIMIT), numbers)

    def sums(self, obs: Mapping[str, Tensor], real: Tensor) -> Tensor:
        """Power sums of the numbers under ``obs`` at real steps (bool ``[...]``): float64 ``[3, num_features]``."""
        return power_sums(obs["obs"], real)
