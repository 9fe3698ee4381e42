"""Running scale of returns: the one place that says how critic outputs turn into reward units."""

from __future__ import annotations

from torch import Tensor

from policies.running_moments import RunningMoments


class ReturnScale(RunningMoments):
    """Exponentially forgetting standard deviation of the returns seen in training.

    The critic regresses on ``returns / scale``; ``critic output * scale`` is in reward units. Only a factor, no
    shift, so a value of 0 means the same in both.
    """

    MINIMUM = 1e-3
    """Smallest scale, in reward units: nearly equal returns are not blown up to unit size."""

    @property
    def value(self) -> Tensor:
        """The scale, a scalar in reward units; 1 before any return was seen."""
        return self.deviation(self.MINIMUM)
