"""Running count, mean and squared deviation, as buffers of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningMoments(nn.Module):
    """What has been seen of one number or of several, each on its own.

    Moments are buffers: they travel with the weights, into every checkpoint and to every env runner. They change by a
    transaction, which does not travel (see :class:`policies.normalisers.Normalisers`).

    Args:
        shape: Of what is seen at a time, ``()`` for one number.

    Attributes:
        moments: float32 ``[3, *shape]``: effective count, mean, summed squared deviation.
    """

    moments: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("moments", torch.zeros(3, *shape))
        self._before: Tensor = self.moments
        self._collected: Tensor | None = None

    def begin(self) -> None:
        """Start a transaction: nothing is collected."""
        self._before, self._collected = self.moments.clone(), None

    def collect(self, sums: Tensor) -> None:
        """Add sums ``[3, *shape]`` (see :meth:`update`) to what is collected; the moments stay."""
        self._collected = sums if self._collected is None else self._collected + sums

    def commit(self, decay: float) -> None:
        """Merge what is collected into the moments, if anything is (see :meth:`update`)."""
        if self._collected is not None:
            self.update(self._collected, decay)
        self._collected = None

    def roll_back(self) -> None:
        """The moments as they were at :meth:`begin`."""
        self.moments.copy_(self._before)
        self._collected = None

    @torch.no_grad()
    def update(self, sums: Tensor, decay: float) -> None:
        """Merge a batch, after forgetting a part of what was seen before; an empty one changes nothing.

        The merge is that of Chan, Golub and LeVeque (1983), in float64: exact where the mean is far above the
        spread.

        Args:
            sums: float64 ``[3, *shape]``, see :func:`power_sums`. Over several learners pass averages over the
                learners, so that all keep the same moments.
            decay: Weight kept by the past, in [0, 1]; 1 never forgets.
        """
        count, total, squares = sums.double().unbind()
        old_count, old_mean, old_deviation = self.moments.double().unbind()
        old_count, old_deviation = old_count * decay, old_deviation * decay
        mean = total / count
        deviation = (squares - count * mean**2).clamp(min=0.0)
        merged = old_count + count
        delta = mean - old_mean
        moments = [
            merged,
            old_mean + delta * count / merged,
            old_deviation + deviation + delta**2 * old_count * count / merged,
        ]
        self.moments.copy_(torch.where(count > 0, torch.stack(moments), self.moments))

    def deviation(self, minimum: float) -> Tensor:
        """Standard deviation, ``[*shape]``, at least ``minimum``; 1 before anything was seen."""
        count, _, squared = self.moments.unbind()
        return torch.where(count > 0, (squared / count.clamp(min=1.0)).sqrt().clamp(min=minimum), 1.0)


def power_sums(values: Tensor, counted: Tensor) -> Tensor:
    """Count, sum and sum of squares of what counts.

    Args:
        values: ``[..., *shape]``.
        counted: bool ``[...]``.

    Returns:
        float64 ``[3, *shape]``.
    """
    axes = tuple(range(counted.ndim))
    counted = counted.reshape(*counted.shape, *[1] * (values.ndim - counted.ndim)).expand_as(values)
    # where, not a product: what does not count may be infinite.
    values = torch.where(counted, values.double(), 0.0)
    return torch.stack([counted.sum(axes).double(), values.sum(axes), values.square().sum(axes)])
