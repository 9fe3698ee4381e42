"""How each host's training goes: recent losses and accuracies, plateaus, stability."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from envs.episode_state import EpisodeArrays, per_host

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

HISTORY = 5
STABLE_IMPROVEMENT = 0.03
STABLE_EPOCHS = 3
PLATEAU_GAIN = 0.5


class HostProgress(EpisodeArrays):
    """Validation results over an episode; index 0 of a history is the oldest, and NaN means not yet measured.

    Attributes:
        loss: ``[N, HISTORY]`` validation losses, the newest last; the untrained host's is the first.
        accuracy: ``[N, HISTORY]`` percent.
        best_loss: ``[N]``.
        best_accuracy: ``[N]``.
        plateau_epochs: ``[N]`` epochs in a row in which accuracy gained less than 0.5 points.
        stabilized: ``[N]`` latched by 3 epochs in a row with less than 3 % relative loss improvement.
    """

    loss: FloatArray = per_host(np.nan, HISTORY)
    accuracy: FloatArray = per_host(np.nan, HISTORY)
    best_loss: FloatArray = per_host(np.inf)
    best_accuracy: FloatArray = per_host(0.0)
    plateau_epochs: IntArray = per_host(0)
    stabilized: BoolArray = per_host(False)
    _stable_epochs: IntArray = per_host(0)

    def open(self, hosts: IntArray, loss: FloatArray, accuracy: FloatArray) -> None:
        """Take in the untrained results ``[m]`` of hosts whose episode begins; the others' stay as they are."""
        loss = np.where(np.isfinite(loss), loss, np.inf)
        self.loss[hosts, -1], self.accuracy[hosts, -1] = loss, accuracy
        self.best_loss[hosts], self.best_accuracy[hosts] = loss, accuracy

    def observe(self, loss: FloatArray, accuracy: FloatArray) -> None:
        """Take in this epoch's results, ``[N]`` each; a loss that is not finite counts as infinite."""
        loss = np.where(np.isfinite(loss), loss, np.inf)
        self.loss = np.concatenate([self.loss[:, 1:], loss[:, None]], axis=1)
        self.accuracy = np.concatenate([self.accuracy[:, 1:], accuracy[:, None]], axis=1)
        self.best_loss = np.minimum(self.best_loss, loss)
        self.best_accuracy = np.maximum(self.best_accuracy, accuracy)
        previous = self.loss[:, -2]
        begun = ~np.isnan(previous)
        with np.errstate(invalid="ignore"):  # inf - inf, in a host that is beyond help
            improved = (previous - loss) >= STABLE_IMPROVEMENT * previous
        self._stable_epochs = np.where(begun & ~improved, self._stable_epochs + 1, 0)
        self.stabilized |= self._stable_epochs >= STABLE_EPOCHS
        flat = begun & ~(self.accuracy_change >= PLATEAU_GAIN)
        self.plateau_epochs = np.where(flat, self.plateau_epochs + 1, 0)

    @property
    def loss_change(self) -> FloatArray:
        """``[N]`` against the epoch before; 0 at an episode's start, +inf where the loss became infinite."""
        with np.errstate(invalid="ignore"):
            change = self.loss[:, -1] - self.loss[:, -2]
        change = np.where(np.isinf(self.loss[:, -1]), np.inf, change)
        return np.where(np.isnan(self.loss[:, -2]), 0.0, change)

    @property
    def accuracy_change(self) -> FloatArray:
        """``[N]`` points against the epoch before; 0 at an episode's start."""
        return np.nan_to_num(self.accuracy[:, -1] - self.accuracy[:, -2])
