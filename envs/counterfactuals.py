"""What each seed is worth: validation accuracy with everything on and with some seeds forced out, in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from envs.lifecycle import Lifecycle

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

PAIRWISE_RANGE = (2, 4)
"""Interactions are measured in members with this many active seeds, ends included."""


class Evaluate(Protocol):
    """Evaluates hosts on the validation split with some of their seeds forced out."""

    def __call__(self, hosts: IntArray, alpha: FloatArray, lifecycle: Lifecycle) -> tuple[FloatArray, FloatArray]:
        """Loss ``[J]`` and accuracy in percent ``[J]``.

        Args:
            hosts: ``[J]`` which ones; one may occur several times.
            alpha: ``[J, S]`` blend amplitudes to evaluate with.
            lifecycle: What the seeds are otherwise.
        """
        ...


@dataclass(frozen=True)
class Counterfactuals:
    """Results, each ``[N, S]``, in percentage points of validation accuracy; NaN where not measured.

    Attributes:
        contribution: Accuracy with everything on, minus accuracy with this slot alone at alpha 0.
        interaction_sum: Sum over the other active slots j of I_ij = f(ij) − f(i) − f(j) + f(∅), where f(T) is the
            accuracy with only the slots of T on.
        interaction_best: The largest positive I_ij, or 0.
    """

    contribution: FloatArray
    interaction_sum: FloatArray
    interaction_best: FloatArray

    def only(self, members: BoolArray) -> Counterfactuals:
        """The same of the marked members (``[N]``), the others being not measured."""
        return Counterfactuals(*(np.where(members[:, None], values, np.nan) for values in vars(self).values()))


def evaluate_with_counterfactuals(
    evaluate: Evaluate, lifecycle: Lifecycle, running: BoolArray, due: BoolArray, pairs: bool = True
) -> tuple[FloatArray, FloatArray, Counterfactuals]:
    """Evaluate hosts on the validation split as they are, and those that are due with some seeds forced out as well.

    It is one call, since a host as it is shares most of what is computed with the same host without a seed. A slot
    whose prune is ramping down is not measured and stays on in every subset.

    Args:
        evaluate: Gives the results.
        lifecycle: In sync with the hosts.
        running: ``[N]`` hosts to evaluate.
        due: ``[N]`` those among them to measure.
        pairs: Whether interactions are measured, beside contributions.

    Returns:
        Loss and accuracy, everything on, each ``[N]`` and 0 where a host does not run, and what was measured.
    """
    active = due[:, None] & (lifecycle.alpha > 0.0) & ~lifecycle.pruning
    paired = _pairwise(active) & pairs
    hosts, bits = np.arange(len(due)), 1 << np.arange(active.shape[1])
    everything = (active * bits).sum(axis=1)
    wanted = _wanted_subsets(active, paired, bits)
    wanted[running, everything[running]] = True
    members, subsets = np.nonzero(wanted)
    results = np.full((2, *wanted.shape), np.nan)
    if len(members):
        on = ((subsets[:, None] & bits) > 0) | ~active[members]
        alpha = np.where(on, lifecycle.alpha[members], 0.0)
        results[:, members, subsets] = evaluate(members, alpha, lifecycle)
    loss, accuracy = np.where(running, results[:, hosts, everything], 0.0)
    f = results[1]
    without = f[hosts[:, None], np.where(active, everything[:, None] & ~bits, 0)]
    contribution = np.where(active, accuracy[:, None] - without, np.nan)
    return loss, accuracy, Counterfactuals(contribution, *_interactions(f, active, paired, bits))


def _pairwise(active: BoolArray) -> BoolArray:
    count = active.sum(axis=1)
    return (count >= PAIRWISE_RANGE[0]) & (count <= PAIRWISE_RANGE[1])


def _wanted_subsets(active: BoolArray, paired: BoolArray, bits: IntArray) -> BoolArray:
    """``[N, 2^S]`` subsets of the active slots to measure by: all but one, and for interactions all small ones."""
    everything = (active * bits).sum(axis=1)
    subset = np.arange(1 << len(bits))
    size = ((subset[:, None] & bits) > 0).sum(axis=1)
    within = (subset & ~everything[:, None]) == 0
    count = active.sum(axis=1)[:, None]
    all_but_one = size == count - 1
    small = (size <= 2) & paired[:, None]
    return np.asarray(within & (all_but_one | small) & (count > 0))


def _interactions(f: FloatArray, active: BoolArray, paired: BoolArray, bits: IntArray) -> tuple[FloatArray, FloatArray]:
    first, second = np.triu_indices(len(bits), k=1)
    both = paired[:, None] & active[:, first] & active[:, second]
    pair = np.where(both, f[:, bits[first] + bits[second]] - f[:, bits[first]] - f[:, bits[second]] + f[:, :1], np.nan)
    belongs = (first[:, None] == np.arange(len(bits))) | (second[:, None] == np.arange(len(bits)))  # [pairs, S]
    of_slot = np.where(belongs & both[:, :, None], pair[:, :, None], 0.0)
    measured = (belongs & both[:, :, None]).any(axis=1)
    total = np.where(measured, of_slot.sum(axis=1), np.nan)
    best = np.where(measured, of_slot.max(axis=1, initial=0.0), np.nan)
    return total, best
