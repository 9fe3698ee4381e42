"""Scikit-learn's bundled handwritten digits: 1,797 real 8×8 images, nothing to download."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from importlib.metadata import distribution

import numpy as np
import numpy.typing as npt
import torch

from envs.hosts.cnn import CnnHost, CnnVariant
from envs.slots import SlotConfig
from envs.tasks.base import Split, SplitName, Task, TaskError
from envs.tasks.splits import stratified_split

NUM_CLASSES = 10

HEALTHY = CnnVariant(widths=(8, 16, 32), kernels=(3, 3, 3))
IMPAIRED = CnnVariant(widths=(8, 16, 32), kernels=(1, 1, 1))
MIXED = {
    "healthy": HEALTHY,
    "first_healthy": CnnVariant(widths=(8, 16, 32), kernels=(3, 1, 1)),
    "wide_first": CnnVariant(widths=(16, 4, 16), kernels=(1, 1, 1)),
    "narrow_first": CnnVariant(widths=(1, 16, 16), kernels=(1, 1, 1)),
    "narrow_middle": CnnVariant(widths=(8, 2, 16), kernels=(3, 3, 3)),
    "narrow_last": CnnVariant(widths=(8, 16, 3), kernels=(3, 3, 3)),
    "late": CnnVariant(widths=(2, 4, 32), kernels=(1, 1, 1)),
    "even": IMPAIRED,
    "level": CnnVariant(widths=(12, 12, 12), kernels=(1, 1, 1)),
}
"""Hosts by what is special about them: none, which blocks mix space, or where the width is."""

DRAWN = ("first_healthy", "narrow_middle", "narrow_last", "wide_first", "narrow_first")
"""Those that ``digits_mixed`` draws: three that are best left alone, although they end with different accuracies, one
that needs a seed in its first slot and one to which that is no use, but a seed in the second is (docs/looking-pays.md).
"""


IMPAIRED_DEEP = CnnVariant(widths=(8, 16, 16, 32, 32), kernels=(1, 1, 1, 1, 1))


@cache
def digits_splits(classes: int = NUM_CLASSES) -> dict[SplitName, Split]:
    """Stratified 60/20/20 split, the same for everybody; pixels standardised with the training images' moments.

    Args:
        classes: Only images of the first this many digits; the split and the moments are those of all.
    """
    images, labels = _load()
    train, rest = stratified_split(labels, held_out=0.4)
    validation, test = (rest[part] for part in stratified_split(labels[rest], held_out=0.5))
    pixels = images.reshape(-1, 8, 8, 1).astype(np.float32)
    pixels = (pixels - pixels[train].mean()) / pixels[train].std()

    def split(index: npt.NDArray[np.int64]) -> Split:
        index = index[labels[index] < classes]
        return Split(torch.from_numpy(pixels[index]), torch.from_numpy(labels[index]))

    return {"train": split(train), "validation": split(validation), "test": split(test)}


def _load() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Pixels ``[1797, 64]`` and labels, from scikit-learn's file: importing the package would take 70 MB."""
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(path), delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)


def _digits(
    name: str,
    variants: tuple[CnnVariant, ...],
    path_rent: float = 0.0,
    internal_levels: bool = False,
    lr_spread: float = 1.0,
    classes: int = NUM_CLASSES,
) -> Task:
    widest = CnnVariant.widest(variants)
    return Task(
        name=name,
        host=CnnHost(widest, in_channels=1, num_classes=classes),
        variants=variants,
        slots=SlotConfig.for_row(len(widest.widths), internal_levels),
        num_classes=classes,
        splits=digits_splits(classes),
        path_rent=path_rent,
        lr_spread=lr_spread,
    )


def digits() -> Task:
    """A healthy host, best left alone: growing costs rent and gains next to nothing."""
    return _digits("digits", (HEALTHY,))


def digits_impaired() -> Task:
    """A host that cannot mix space: slot, blueprint and time of growing all matter."""
    return _digits("digits_impaired", (IMPAIRED,))


def digits_mixed(
    variants: str | None = None, lr_spread: float = 2.0, classes: int = NUM_CLASSES, depth: int = 1
) -> Task:
    """Each episode draws one of several hosts and how fast it learns, so that no fixed schedule is good everywhere.

    Args:
        variants: Names of hosts in :data:`MIXED`, separated by commas; one that is named twice is drawn twice as
            often. By default each of :data:`DRAWN` once.
        lr_spread: Factor by which a host may learn faster or slower than at 0.02 (see :class:`Task`).
        classes: Of the digits, only the first this many.
        depth: Convolutions in each of a host's three blocks.

    Raises:
        TaskError: an unknown name, a spread below 1, classes that are not 2 to 10, or a depth below 1.
    """
    if not 1.0 <= lr_spread < math.inf:
        raise TaskError(f"lr_spread must be a number of at least 1, got {lr_spread:g}")
    if not 2 <= classes <= NUM_CLASSES:
        raise TaskError(f"classes must be 2 to {NUM_CLASSES}, got {classes}")
    if depth < 1:
        raise TaskError(f"depth must be at least 1, got {depth}")
    names = list(DRAWN) if variants is None else variants.split(",")
    unknown = [name for name in names if name not in MIXED]
    if unknown:
        raise TaskError(f"variants names {', '.join(unknown)}: choose among {', '.join(MIXED)}, separated by commas")
    hosts = tuple(replace(MIXED[name], depth=depth) for name in names)
    return _digits("digits_mixed", hosts, path_rent=0.05, lr_spread=lr_spread, classes=classes)


def digits_scale() -> Task:
    """Five impaired blocks, five slots, and seeds that can be grown and shrunk inside."""
    return _digits("digits_scale", (IMPAIRED_DEEP,), internal_levels=True)
