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
    wanted = _wanted(active, paired, running)
    f = _results(evaluate, lifecycle, active, wanted)
    loss, accuracy = np.where(running, f[:, :, 0], 0.0)
    number = active.shape[1]
    contribution = np.where(active, accuracy[:, None] - f[1, :, 1 : 1 + number], np.nan)
    return loss, accuracy, Counterfactuals(contribution, *_interactions(f[1, :, 1 + number :], active, paired))


def _pairwise(active: BoolArray) -> BoolArray:
    count = active.sum(axis=1)
    return (count >= PAIRWISE_RANGE[0]) & (count <= PAIRWISE_RANGE[1])


def _subsets(num_slots: int) -> BoolArray:
    """``[K, S]`` subsets of slots: all; all but each one; and for interactions none, each one, and each pair."""
    one = np.eye(num_slots, dtype=bool)
    first, second = np.triu_indices(num_slots, k=1)
    return np.concatenate([np.ones_like(one[:1]), ~one, np.zeros_like(one[:1]), one, one[first] | one[second]])


def _wanted(active: BoolArray, paired: BoolArray, running: BoolArray) -> BoolArray:
    """``[N, K]`` which subsets' results are needed of each host."""
    first, second = np.triu_indices(active.shape[1], k=1)
    small = np.concatenate([np.ones_like(active[:, :1]), active, active[:, first] & active[:, second]], axis=1)
    return np.concatenate([running[:, None], active, small & paired[:, None]], axis=1)


def _results(evaluate: Evaluate, lifecycle: Lifecycle, active: BoolArray, wanted: BoolArray) -> FloatArray:
    """``[2, N, K]`` loss and accuracy, each network being evaluated once; NaN where not wanted."""
    results = np.full((2, *wanted.shape), np.nan)
    hosts, kinds = np.nonzero(wanted)
    if not len(hosts):
        return results
    on = _subsets(active.shape[1])[kinds] & active[hosts]
    # Hosts in their order, and subsets as binary numbers: the order of sums must not depend on how they are named.
    bits = on @ (1 << np.arange(active.shape[1]))
    networks, place = np.unique(np.stack([hosts, bits], axis=1), axis=0, return_inverse=True)
    chosen = np.zeros(len(networks), np.int64)
    chosen[place] = np.arange(len(place))
    members, on = hosts[chosen], on[chosen] | ~active[hosts[chosen]]
    alpha = np.where(on, lifecycle.alpha[members], 0.0)
    results[:, hosts, kinds] = np.stack(evaluate(members, alpha, lifecycle))[:, place]
    return results


def _interactions(f: FloatArray, active: BoolArray, paired: BoolArray) -> tuple[FloatArray, FloatArray]:
    """From the accuracies with none, with each one and with each pair, ``[N, 1 + S + pairs]``."""
    number = active.shape[1]
    first, second = np.triu_indices(number, k=1)
    both = paired[:, None] & active[:, first] & active[:, second]
    none, single, together = f[:, :1], f[:, 1 : 1 + number], f[:, 1 + number :]
    pair = np.where(both, together - single[:, first] - single[:, second] + none, np.nan)
    belongs = (first[:, None] == np.arange(number)) | (second[:, None] == np.arange(number))  # [pairs, S]
    of_slot = np.where(belongs & both[:, :, None], pair[:, :, None], 0.0)
    measured = (belongs & both[:, :, None]).any(axis=1)
    total = np.where(measured, of_slot.sum(axis=1), np.nan)
    best = np.where(measured, of_slot.max(axis=1, initial=0.0), np.nan)
    return total, best
