"""What seeds cost at slots of given widths, in parameters and in FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from envs.batched.parameters import count_parameters
from envs.blueprints.base import SeedModule
from envs.vocabulary import INTERNAL_KINDS, INTERNAL_START_LEVEL, Blueprint, SeedInternalKind

IntArray = npt.NDArray[np.int64]


def cost_tables(
    modules: dict[Blueprint, SeedModule],
    blueprints: Sequence[Blueprint],
    widths: IntArray,
    cost: Callable[[SeedModule, int, int, int], int],
) -> tuple[IntArray, IntArray]:
    """Costs of every blueprint as it germinates, and of one internal level.

    Args:
        modules: The blueprints that the topology has.
        blueprints: All that exist, one column each.
        widths: ``[N, S]`` of each slot.
        cost: Of a module at a width and a slot's index, up to an internal level.

    Returns:
        ``[N, num_blueprints, S]`` each; 0 where the topology lacks the blueprint.
    """
    seeds = np.zeros((len(widths), len(blueprints), widths.shape[1]), np.int64)
    levels = np.zeros_like(seeds)
    for blueprint, module in modules.items():
        start = INTERNAL_START_LEVEL[INTERNAL_KINDS.get(blueprint, SeedInternalKind.NONE)]
        at_level = {
            level: np.array([[cost(module, int(w), slot, level) for slot, w in enumerate(row)] for row in widths])
            for level in {0, 1, start}
        }
        seeds[:, blueprint] = at_level[start]
        levels[:, blueprint] = at_level[1] - at_level[0]  # every level costs what the first one costs
    return seeds, levels


def parameters_of(module: SeedModule, width: int, slot: int, level: int) -> int:
    """A cost for :func:`cost_tables`: parameters."""
    return count_parameters(module.parameters(width), level)
