"""Alpha curves: how a blend amplitude moves along a ramp."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from envs.vocabulary import SIGMOID_STEEPNESS, AlphaCurve


def curve_value(curve: npt.NDArray[np.integer], progress: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Share of a ramp's way that is done after ``progress`` of its epochs.

    Args:
        curve: ``AlphaCurve`` indices, any shape.
        progress: Elapsed share of the ramp in [0, 1], same shape.

    Returns:
        Values in [0, 1]; exactly 0 at 0 and exactly 1 at 1 for every curve (sigmoids are rescaled to reach both).
    """
    progress = np.asarray(progress, dtype=np.float64)
    value = np.where(curve == AlphaCurve.COSINE, 0.5 - 0.5 * np.cos(np.pi * progress), progress)
    for kind, steepness in SIGMOID_STEEPNESS.items():
        low, high = _sigmoid(-0.5 * steepness), _sigmoid(0.5 * steepness)
        value = np.where(curve == kind, (_sigmoid(steepness * (progress - 0.5)) - low) / (high - low), value)
    return np.where(progress >= 1.0, 1.0, np.where(progress <= 0.0, 0.0, value))


def _sigmoid(x: npt.ArrayLike) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.asarray(x, dtype=np.float64)))
    return result
