"""Scikit-learn's bundled handwritten digits: 1,797 real 8×8 images, nothing to download."""

from __future__ import annotations

from functools import cache
from importlib.metadata import distribution

import numpy as np
import numpy.typing as npt

from envs.hosts.cnn import CnnVariant
from envs.tasks.base import Split, SplitName, Task
from envs.tasks.handwritten import (
    HEALTHY,
    IMPAIRED,
    NUM_CLASSES,
    handwritten_mixture,
    handwritten_splits,
    handwritten_task,
)

IMPAIRED_DEEP = CnnVariant(widths=(8, 16, 16, 32, 32), kernels=(1, 1, 1, 1, 1))


@cache
def digits_splits(classes: int = NUM_CLASSES) -> dict[SplitName, Split]:
    """Of the images of the first ``classes`` digits; see :func:`envs.tasks.handwritten.handwritten_splits`."""
    images, labels = _load()
    return handwritten_splits(images.reshape(-1, 8, 8, 1).astype(np.float32), labels, classes)


def _load() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Pixels ``[1797, 64]`` and labels, from scikit-learn's file: importing the package would take 70 MB."""
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(path), delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)


def digits() -> Task:
    """A healthy host, best left alone: growing costs rent and gains next to nothing."""
    return handwritten_task("digits", digits_splits(), (HEALTHY,))


def digits_impaired() -> Task:
    """A host that cannot mix space: slot, blueprint and time of growing all matter."""
    return handwritten_task("digits_impaired", digits_splits(), (IMPAIRED,))


def digits_mixed(
    variants: str | None = None, lr_spread: float = 2.0, classes: int = NUM_CLASSES, depth: int = 1
) -> Task:
    """Several hosts that learn faster or slower: see :func:`envs.tasks.handwritten.handwritten_mixture`."""
    return handwritten_mixture("digits_mixed", digits_splits, variants, lr_spread, classes, depth)


def digits_scale() -> Task:
    """Five impaired blocks, five slots, and seeds that can be grown and shrunk inside."""
    return handwritten_task("digits_scale", digits_splits(), (IMPAIRED_DEEP,), internal_levels=True)
