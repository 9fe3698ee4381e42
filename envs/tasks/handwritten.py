"""What tasks on images of handwritten digits have in common: their hosts, how images are split, and the mixture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

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
"""Those that a mixture draws. They were chosen on ``digits_mixed``, where three are best left alone, although they end
with different accuracies, one needs a seed in its first slot, and to one that is no use, but a seed in the second is
(docs/looking-pays.md)."""


def handwritten_splits(
    images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: int
) -> dict[SplitName, Split]:
    """Stratified 60/20/20 split, the same for everybody; pixels standardised with the training images' moments.

    Args:
        images: ``[n, H, W, 1]``.
        labels: ``[n]``, the digits.
        classes: Only images of the first this many digits; the split and the moments are those of all.
    """
    train, rest = stratified_split(labels, held_out=0.4)
    validation, test = (rest[part] for part in stratified_split(labels[rest], held_out=0.5))
    pixels = (images - images[train].mean()) / images[train].std()

    def split(index: npt.NDArray[np.int64]) -> Split:
        index = index[labels[index] < classes]
        return Split(torch.from_numpy(pixels[index]), torch.from_numpy(labels[index]))

    return {"train": split(train), "validation": split(validation), "test": split(test)}


def handwritten_task(
    name: str,
    splits: Mapping[SplitName, Split],
    variants: tuple[CnnVariant, ...],
    path_rent: float = 0.0,
    internal_levels: bool = False,
    lr_spread: float = 1.0,
    classes: int = NUM_CLASSES,
) -> Task:
    """A task on such images: grey, in the first ``classes`` digits; the other arguments are those of :class:`Task`."""
    widest = CnnVariant.widest(variants)
    return Task(
        name=name,
        host=CnnHost(widest, in_channels=1, num_classes=classes),
        variants=variants,
        slots=SlotConfig.for_row(len(widest.widths), internal_levels),
        num_classes=classes,
        splits=splits,
        path_rent=path_rent,
        lr_spread=lr_spread,
    )


def handwritten_mixture(
    name: str,
    splits: Callable[[int], Mapping[SplitName, Split]],
    variants: str | None,
    lr_spread: float,
    classes: int,
    depth: int,
) -> Task:
    """Each episode draws one of several hosts and how fast it learns, so that no fixed schedule is good everywhere.

    Args:
        name: Of the task.
        splits: Splits of the images of the first this many digits.
        variants: Names of hosts in :data:`MIXED`, separated by commas; one that is named twice is drawn twice as
            often. None: each of :data:`DRAWN` once.
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
    return handwritten_task(name, splits(classes), hosts, path_rent=0.05, lr_spread=lr_spread, classes=classes)
