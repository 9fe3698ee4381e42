"""Watches every host for a training that cannot recover."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from envs.episode_state import EpisodeArrays, per_host
from envs.warning import warn_user

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

PATIENCE = 3
SNAPSHOT_INTERVAL = 5
COLLAPSED, LEARNT = 1.2, 2.0  # in multiples of chance
LOSS_FLOOR, LOSS_SIGMAS, LOSS_FACTOR = 12.0, 6.0, 3.0


class Panic(IntEnum):
    """Why the governor stopped an episode."""

    NONE = 0
    NON_FINITE = 1
    COLLAPSE = 2
    DIVERGENCE = 3


class Governor(EpisodeArrays):
    """Three alarms per host, and the rhythm of snapshots.

    NON_FINITE: the validation loss is not finite. COLLAPSE: accuracy at most 1.2 × chance for 3 epochs in a row,
    after a best of at least 2 × chance. DIVERGENCE: for 3 epochs in a row a loss above 12, above mean + 6σ and
    above 3 × mean of the healthy epochs before.

    An epoch is healthy where none of the three holds.

    Args:
        num_hosts: N.
        chance_accuracy: Accuracy of guessing, in percent. Where it is above 50 no host can reach twice as much, and
            COLLAPSE never fires: a warning says so. None: it is not known, and COLLAPSE never fires either.
    """

    _best: FloatArray = per_host(0.0)
    _collapsed: IntArray = per_host(0)
    _diverging: IntArray = per_host(0)
    _healthy: IntArray = per_host(0)
    _count: FloatArray = per_host(0.0)
    _mean: FloatArray = per_host(0.0)
    _squares: FloatArray = per_host(0.0)

    def __init__(self, num_hosts: int, chance_accuracy: float | None) -> None:
        super().__init__(num_hosts)
        self.chance = np.inf if chance_accuracy is None else chance_accuracy
        if chance_accuracy is not None and LEARNT * chance_accuracy > 100.0:
            warn_user(
                f"always guessing the commonest label is right in {chance_accuracy:.1f} % of these data, and a host "
                f"counts as having learnt something at {LEARNT:g} times that: its collapse will not be noticed (a "
                "loss that diverges or is not finite will)"
            )

    def judge(self, loss: FloatArray, accuracy: FloatArray, committed: BoolArray) -> IntArray:
        """Look at one epoch's results.

        Args:
            loss: ``[N]`` validation loss.
            accuracy: ``[N]`` percent.
            committed: ``[N]`` hosts evaluated after the unfinished seeds were removed; of those only a loss that is
                not finite is judged.

        Returns:
            ``[N]`` ``Panic`` codes.
        """
        finite = np.isfinite(loss)
        low = (accuracy <= COLLAPSED * self.chance) & (self._best >= LEARNT * self.chance)
        sigma = np.sqrt(self._squares / np.maximum(self._count, 1))
        limit = np.maximum(LOSS_FLOOR, np.maximum(self._mean + LOSS_SIGMAS * sigma, LOSS_FACTOR * self._mean))
        high = (loss > limit) & (self._count > 0)
        self._collapsed = np.where(low & ~committed, self._collapsed + 1, 0)
        self._diverging = np.where(high & ~committed, self._diverging + 1, 0)
        self._best = np.maximum(self._best, accuracy)
        healthy = finite & ~low & ~high
        self._healthy = np.where(healthy, self._healthy + 1, 0)
        self._remember(np.where(healthy, loss, self._mean), healthy)
        panic = np.where(self._diverging >= PATIENCE, Panic.DIVERGENCE, Panic.NONE)
        panic = np.where(self._collapsed >= PATIENCE, Panic.COLLAPSE, panic)
        return np.where(finite, panic, Panic.NON_FINITE)

    @property
    def healthy(self) -> BoolArray:
        """``[N]`` hosts whose latest epoch was healthy."""
        return self._healthy > 0

    def snapshot_due(self) -> BoolArray:
        """``[N]`` hosts with another five healthy epochs behind them."""
        return self.healthy & (self._healthy % SNAPSHOT_INTERVAL == 0)

    def _remember(self, loss: FloatArray, healthy: BoolArray) -> None:
        """Welford's running mean and sum of squared deviations, of healthy epochs only."""
        self._count += healthy
        deviation = loss - self._mean
        self._mean = self._mean + np.where(healthy, deviation / np.maximum(self._count, 1), 0.0)
        self._squares += np.where(healthy, deviation * (loss - self._mean), 0.0)
