"""What has been measured of each slot's seed: gradients every epoch, counterfactuals every few."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from envs.counterfactuals import Counterfactuals
from envs.episode_state import EpisodeArrays, per_slot

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SeedGradients:
    """Gradient statistics of an epoch, ``[N, S]``, NaN where a slot has no seed that trains (see GradientHealth)."""

    norm: FloatArray
    vanishing: FloatArray
    exploding: FloatArray
    health: FloatArray


class SlotMeasurements(EpisodeArrays):
    """Latest measurements, ``[N, S]`` each; NaN where nothing was measured of the seed that lives there now.

    Attributes:
        contribution: Percentage points of accuracy that the seed is worth.
        contribution_change: Against the measurement before.
        interaction_sum: See :class:`envs.counterfactuals.Counterfactuals`.
        interaction_best: Likewise.
        epochs_since: Epochs since the counterfactual was measured.
        gradient_norm: See :class:`envs.population.optimizer.GradientHealth`; so are the three that follow.
        vanishing: Share of tensors.
        exploding: Share of tensors.
        health: In [0, 1].
        previous_health: The epoch before's; 1 at a seed's birth.
    """

    contribution: FloatArray = per_slot(np.nan)
    contribution_change: FloatArray = per_slot(np.nan)
    interaction_sum: FloatArray = per_slot(np.nan)
    interaction_best: FloatArray = per_slot(np.nan)
    epochs_since: FloatArray = per_slot(np.nan)
    gradient_norm: FloatArray = per_slot(np.nan)
    vanishing: FloatArray = per_slot(np.nan)
    exploding: FloatArray = per_slot(np.nan)
    health: FloatArray = per_slot(np.nan)
    previous_health: FloatArray = per_slot(1.0)

    def take_gradients(self, gradients: SeedGradients) -> None:
        """Book one epoch's gradient statistics."""
        self.previous_health = np.where(np.isnan(self.health), 1.0, self.health)
        self.gradient_norm, self.health = gradients.norm, gradients.health
        self.vanishing, self.exploding = gradients.vanishing, gradients.exploding

    def take_counterfactuals(self, measured: Counterfactuals) -> None:
        """Book one epoch's counterfactuals; most are of no member that was due."""
        self.epochs_since += 1
        fresh = ~np.isnan(measured.contribution)
        self.contribution_change[fresh] = (measured.contribution - self.contribution)[fresh]
        self.contribution[fresh] = measured.contribution[fresh]
        self.interaction_sum[fresh] = measured.interaction_sum[fresh]
        self.interaction_best[fresh] = measured.interaction_best[fresh]
        self.epochs_since[fresh] = 0

    def forget(self, empty: BoolArray) -> None:
        """Drop what was measured of seeds that are gone (``empty`` is ``[N, S]``)."""
        self._empty(empty)
