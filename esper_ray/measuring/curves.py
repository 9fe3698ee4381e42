"""Reads runs' learning curves back from their TensorBoard files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One number over a training.

    Attributes:
        epochs: ``[I]`` host epochs trained, rising.
        values: ``[I]``.
    """

    epochs: FloatArray
    values: FloatArray

    def at(self, epochs: FloatArray) -> FloatArray:
        """Values at other epochs, interpolated; NaN before the first and after the last."""
        if not len(self.epochs):
            return np.full(len(epochs), np.nan)
        return np.interp(epochs, self.epochs, self.values, left=np.nan, right=np.nan)


def read_curves(path: Path, tags: list[str]) -> dict[str, Curve]:
    """Curves of a run.

    Args:
        path: Run directory.
        tags: As in TensorBoard; one that was never written gives an empty curve.
    """
    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 1, "tensors": 1}).Reload()
    known = set(events.Tags()["scalars"])
    curves = {}
    for tag in tags:
        # A run that was killed and went on has written some epochs twice: the later value counts.
        points = {event.step: event.value for event in events.Scalars(tag)} if tag in known else {}
        steps = sorted(points)
        curves[tag] = Curve(np.array(steps, float), np.array([points[step] for step in steps], float))
    return curves
