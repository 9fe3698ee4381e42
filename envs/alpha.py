"""Alpha curves and ramps: how a blend amplitude moves along its way."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from envs.vocabulary import RAMP_SIGMOID_STEEPNESS, SIGMOID_STEEPNESS, AlphaCurve, RampShape


def curve_value(curve: npt.NDArray[np.integer], progress: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Share of a ramp's way that is done after ``progress`` of its epochs.

    Args:
        curve: ``AlphaCurve`` indices, any shape.
        progress: Elapsed share of the ramp in [0, 1], same shape.

    Returns:
        Values in [0, 1]; exactly 0 at 0 and exactly 1 at 1 for every curve (sigmoids are rescaled to reach both).
    """
    progress = np.asarray(progress, dtype=np.float64)
    value = np.where(curve == AlphaCurve.COSINE, _cosine(progress), progress)
    for kind, steepness in SIGMOID_STEEPNESS.items():
        value = np.where(curve == kind, _rescaled_sigmoid(progress, steepness), value)
    return np.where(progress >= 1.0, 1.0, np.where(progress <= 0.0, 0.0, value))


def ramp_value(
    shape: npt.ArrayLike, start: npt.ArrayLike, end: npt.ArrayLike, elapsed: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Blend amplitude, as a share of its target, at a point of a blending window.

    With u = clip((elapsed − start) / (end − start), 0, 1): LINEAR is u, COSINE (1 − cos πu)/2, SIGMOID the logistic
    curve of steepness 10 about u = ½, rescaled to run from 0 to 1. WARMUP_HOLD is u/2, rests at ½ from ``end`` on, and
    is 1 at the window's end. Each rises or rests, and is 1 at the window's end.

    Args:
        shape: ``RampShape`` indices; this and all others broadcast.
        start: Share of the window that passes before the ramp begins.
        end: Share of the window at which it ends.
        elapsed: Share of the window that has passed; below 0 is before it, above 1 after it.

    Raises:
        ValueError: not 0 <= start < end <= 1.
    """
    shape, start, end, elapsed = np.broadcast_arrays(shape, *(np.asarray(x, np.float64) for x in (start, end, elapsed)))
    wrong = ~((start >= 0.0) & (start < end) & (end <= 1.0))
    if wrong.any():
        cell = tuple(np.argwhere(wrong)[0])
        raise ValueError(f"a ramp must have 0 <= start < end <= 1, got start {start[cell]:g} and end {end[cell]:g}")
    progress = np.clip((elapsed - start) / (end - start), 0.0, 1.0)
    value = np.select(
        [shape == RampShape.COSINE, shape == RampShape.WARMUP_HOLD, shape == RampShape.SIGMOID],
        [_cosine(progress), 0.5 * progress, _rescaled_sigmoid(progress, RAMP_SIGMOID_STEEPNESS)],
        progress,
    )
    return np.where(elapsed >= 1.0, 1.0, value)


def _cosine(progress: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    return 0.5 - 0.5 * np.cos(np.pi * progress)


def _rescaled_sigmoid(progress: npt.NDArray[np.floating], steepness: float) -> npt.NDArray[np.float64]:
    """Runs from 0 to 1 as ``progress`` does."""
    low, high = _sigmoid(-0.5 * steepness), _sigmoid(0.5 * steepness)
    return (_sigmoid(steepness * (progress - 0.5)) - low) / (high - low)


def _sigmoid(x: npt.ArrayLike) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.asarray(x, dtype=np.float64)))
    return result
