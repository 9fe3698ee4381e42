"""Which unfinished seeds stay when a run ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

TOLERANCE = 0.5
"""Points of validation accuracy that taking an unfinished seed out may cost."""


@dataclass(frozen=True)
class Commitment:
    """What is committed.

    Attributes:
        kept: ``[S]`` unfinished seeds that stay.
        loss: Validation loss of the network then.
        accuracy: Likewise in percent.
        cost: ``[S]`` points that the network would lose without an unfinished seed, all others in place; NaN where that
            was not measured.
    """

    kept: BoolArray
    loss: float
    accuracy: float
    cost: FloatArray


def choose(
    validate: Callable[[FloatArray], tuple[float, float]], alpha: FloatArray, unfinished: BoolArray
) -> Commitment:
    """Take unfinished seeds out one by one, the least missed first, while each costs at most ``TOLERANCE`` points.

    If the network that is left is worse than with all of them, or than without any, the better of those two is taken.

    Args:
        validate: Loss and accuracy of the network with these alphas, ``[S]``.
        alpha: ``[S]`` as they are.
        unfinished: ``[S]`` seeds whose fate is open; those at alpha 0 add nothing and are taken out.
    """
    leaned_on = unfinished & (alpha > 0.0)
    everything, results = np.where(leaned_on | ~unfinished, alpha, 0.0), {}

    def result(kept: BoolArray) -> tuple[float, float]:
        key = tuple(kept.tolist())
        if key not in results:
            results[key] = validate(np.where(kept | ~unfinished, everything, 0.0))
        return results[key]

    def without(kept: BoolArray, at: np.integer[Any]) -> BoolArray:
        fewer = kept.copy()
        fewer[at] = False
        return fewer

    kept, cost = leaned_on, np.full(len(alpha), np.nan)
    for at in np.flatnonzero(leaned_on):
        cost[at] = result(leaned_on)[1] - result(without(leaned_on, at))[1]
    while kept.any():
        costs = {at: result(kept)[1] - result(without(kept, at))[1] for at in np.flatnonzero(kept)}
        least = min(costs, key=lambda at: costs[at])
        if costs[least] > TOLERANCE:
            break
        kept = without(kept, least)
    nothing = np.zeros_like(leaned_on)
    # Of equals the one with the fewest seeds.
    best = max((nothing, kept, leaned_on), key=lambda which: result(which)[1])
    loss, accuracy = result(best)
    return Commitment(best, loss, accuracy, cost)
