"""Stratified splits, the same as scikit-learn's, without its import: 70 MB in every process that trains hosts."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def stratified_split(labels: npt.NDArray[np.integer], held_out: float, seed: int = 0) -> tuple[IntArray, IntArray]:
    """Deal samples at random into two parts in which labels are as frequent as in the whole.

    Draws the same indices as ``sklearn.model_selection.train_test_split`` with ``stratify=labels``, which the first
    results of this project were made with.

    Args:
        labels: ``[n]``.
        held_out: Share of the samples in the second part, rounded up.
        seed: Of the draw.

    Returns:
        Indices of the first and of the second part, each in random order.
    """
    rng = np.random.RandomState(seed)
    _, label, counts = np.unique(labels, return_inverse=True, return_counts=True)
    num_held_out = math.ceil(held_out * len(labels))
    kept = _proportional(counts, len(labels) - num_held_out, rng)
    left = _proportional(counts - kept, num_held_out, rng)
    of_label = np.split(np.argsort(label, kind="stable"), np.cumsum(counts)[:-1])
    first: list[IntArray] = []
    second: list[IntArray] = []
    for samples, k, m in zip(of_label, kept, left, strict=True):
        shuffled = samples[rng.permutation(len(samples))]
        first.append(shuffled[:k])
        second.append(shuffled[k : k + m])
    return rng.permutation(np.concatenate(first)), rng.permutation(np.concatenate(second))


def _proportional(counts: IntArray, total: int, rng: np.random.RandomState) -> IntArray:
    """How many of ``total`` draws fall on each label; those that rounding leaves over go to the largest remainders."""
    exact = counts / counts.sum() * total
    draws = np.floor(exact)
    remainder = exact - draws
    missing = int(total - draws.sum())
    for value in np.unique(remainder)[::-1]:
        if missing == 0:
            break
        tied = np.flatnonzero(remainder == value)
        chosen = rng.choice(tied, size=min(len(tied), missing), replace=False)
        draws[chosen] += 1
        missing -= len(chosen)
    return draws.astype(np.int64)
