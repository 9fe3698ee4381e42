"""Running scale of returns: the one place that says how critic outputs turn into reward units."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ReturnScale(nn.Module):
    """Exponentially forgetting standard deviation of the returns seen in training (LEARNER.md section 3).

    The critic regresses on ``returns / scale``; ``critic output * scale`` is in reward units. Only a factor, no
    shift, so a value of 0 means the same in both. Moments are buffers: they travel with the weights, into every
    checkpoint and to every env runner.

    Attributes:
        moments: float32 ``[3]``: effective number of returns, their mean, their summed squared deviation.
    """

    MINIMUM = 1e-3
    """Smallest scale, in reward units: nearly equal returns are not blown up to unit size."""

    moments: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("moments", torch.zeros(3))

    @property
    def value(self) -> Tensor:
        """The scale, a scalar in reward units; 1 before any return was seen."""
        count, _, deviation = self.moments.unbind()
        scale = (deviation / count.clamp(min=1.0)).sqrt().clamp(min=self.MINIMUM)
        return torch.where(count > 0, scale, 1.0)

    @torch.no_grad()
    def update(self, sums: Tensor, decay: float) -> None:
        """Merge a batch of returns, after forgetting a part of what was seen before.

        The merge is that of Chan, Golub and LeVeque (1983), in float64: exact where the mean is far above the
        spread.

        Args:
            sums: float64 ``[3]``: number of returns, their sum, the sum of their squares. Over several learners
                pass averages over the learners, so that all keep the same scale.
            decay: Weight kept by the past, in [0, 1]; 1 never forgets.
        """
        count, total, squares = sums.double().unbind()
        if count <= 0:
            return
        old_count, old_mean, old_deviation = (self.moments.double() * self._forgetting(decay)).unbind()
        mean = total / count
        deviation = (squares - count * mean**2).clamp(min=0.0)
        merged = old_count + count
        delta = mean - old_mean
        self.moments.copy_(
            torch.stack(
                [
                    merged,
                    old_mean + delta * count / merged,
                    old_deviation + deviation + delta**2 * old_count * count / merged,
                ]
            )
        )

    def _forgetting(self, decay: float) -> Tensor:
        """Factor per moment: count and deviation fade, the mean stays."""
        return torch.tensor([decay, 1.0, decay], dtype=torch.float64, device=self.moments.device)
