"""How each host's training goes: recent losses and accuracies, plateaus, stability."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

HISTORY = 5
STABLE_IMPROVEMENT = 0.03
STABLE_EPOCHS = 3
PLATEAU_GAIN = 0.5


class HostProgress:
    """Validation results over an episode; index 0 of a history is the oldest, and NaN means not yet measured.

    Attributes:
        loss: ``[N, HISTORY]`` validation losses, the newest last; the untrained host's is the first.
        accuracy: ``[N, HISTORY]`` percent.
        best_loss: ``[N]``.
        best_accuracy: ``[N]``.
        plateau_epochs: ``[N]`` epochs in a row in which accuracy gained less than 0.5 points.
        stabilized: ``[N]`` latched by 3 epochs in a row with less than 3 % relative loss improvement.
    """

    def __init__(self, num_hosts: int) -> None:
        self.loss = np.full((num_hosts, HISTORY), np.nan)
        self.accuracy = np.full((num_hosts, HISTORY), np.nan)
        self.best_loss = np.full(num_hosts, np.inf)
        self.best_accuracy = np.zeros(num_hosts)
        self.plateau_epochs = np.zeros(num_hosts, np.int64)
        self.stabilized = np.zeros(num_hosts, bool)
        self._stable_epochs = np.zeros(num_hosts, np.int64)

    def start(self, hosts: IntArray) -> None:
        """Forget these hosts: an episode begins."""
        self.loss[hosts] = np.nan
        self.accuracy[hosts] = np.nan
        self.best_loss[hosts] = np.inf
        self.best_accuracy[hosts] = 0.0
        self.plateau_epochs[hosts] = 0
        self.stabilized[hosts] = False
        self._stable_epochs[hosts] = 0

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
