"""What has been measured of each slot's seed: gradients every epoch, counterfactuals every few."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from envs.population.counterfactuals import Counterfactuals
from envs.population.population import SeedGradients

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


class SlotMeasurements:
    """Latest measurements, ``[N, S]`` each; NaN where nothing was measured of the seed that lives there now.

    Attributes:
        contribution: Percentage points of accuracy that the seed is worth.
        contribution_change: Against the measurement before.
        interaction_sum: See :class:`envs.population.counterfactuals.Counterfactuals`.
        interaction_best: Likewise.
        epochs_since: Epochs since the counterfactual was measured.
        gradient_norm: See :class:`envs.population.optimizer.GradientHealth`; so are the three that follow.
        vanishing: Share of tensors.
        exploding: Share of tensors.
        health: In [0, 1].
        previous_health: The epoch before's; 1 at a seed's birth.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        def unmeasured() -> FloatArray:
            return np.full(shape, np.nan)

        self.contribution = unmeasured()
        self.contribution_change = unmeasured()
        self.interaction_sum = unmeasured()
        self.interaction_best = unmeasured()
        self.epochs_since = unmeasured()
        self.gradient_norm = unmeasured()
        self.vanishing = unmeasured()
        self.exploding = unmeasured()
        self.health = unmeasured()
        self.previous_health = np.ones(shape)

    def take_gradients(self, gradients: SeedGradients) -> None:
        """Book one epoch's gradient statistics."""
        self.previous_health = np.where(np.isnan(self.health), 1.0, self.health)
        self.gradient_norm, self.health = gradients.norm, gradients.health
        self.vanishing, self.exploding = gradients.vanishing, gradients.exploding

    def take_counterfactuals(self, measured: Counterfactuals | None) -> None:
        """Book one epoch's counterfactuals, or that none were due."""
        self.epochs_since += 1
        if measured is None:
            return
        fresh = ~np.isnan(measured.contribution)
        self.contribution_change[fresh] = (measured.contribution - self.contribution)[fresh]
        self.contribution[fresh] = measured.contribution[fresh]
        self.interaction_sum[fresh] = measured.interaction_sum[fresh]
        self.interaction_best[fresh] = measured.interaction_best[fresh]
        self.epochs_since[fresh] = 0

    def forget(self, empty: BoolArray) -> None:
        """Drop what was measured of seeds that are gone (``empty`` is ``[N, S]``)."""
        for name, array in vars(self).items():
            array[empty] = 1.0 if name == "previous_health" else np.nan
