"""What bounds the growth of a host: the rules of the stage machine, and what every seed costs in parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from envs.ranges import Count, Natural, check_numbers

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

DEFAULT_BUDGET_FACTOR = 16
"""``parameter_budget`` where none is given, in multiples of the host's own parameters."""


@dataclass(frozen=True)
class SeedCosts:
    """What hosts and seeds cost in one unit, which the subclasses name (N hosts, S slots).

    Attributes:
        host: ``[N]`` cost of each host alone.
        blueprint: ``[N, num_blueprints, S]`` cost of each blueprint at each slot as it germinates, without a gate.
        level: ``[N, num_blueprints, S]`` cost of one internal level; 0 for a blueprint that has none.
        gate: ``[N, S]`` what the GATE algorithm adds at each slot.
        offered: ``[num_blueprints]`` whether the host's topology has this blueprint.
    """

    host: IntArray
    blueprint: IntArray
    level: IntArray
    gate: IntArray
    offered: BoolArray

    def rows(self, index: IntArray) -> Self:
        """Costs of the hosts ``index``, which may repeat."""
        return replace(
            self,
            host=self.host[index],
            blueprint=self.blueprint[index],
            level=self.level[index],
            gate=self.gate[index],
        )


class ParameterCosts(SeedCosts):
    """In parameters, from which budgets, rent and observations are computed."""


@dataclass(frozen=True)
class FlopCosts(SeedCosts):
    """In FLOPs of one sample's forward, from which the cost of a training is computed.

    Attributes:
        segments: ``[N, S + 1]`` what ``host`` is made of: the segment before each slot, and the head.
    """

    segments: IntArray

    def rows(self, index: IntArray) -> Self:
        """See :class:`SeedCosts`."""
        return replace(super().rows(index), segments=self.segments[index])


@dataclass(frozen=True)
class LifecycleRules:
    """Limits of the stage machine.

    Attributes:
        min_training_epochs: Epochs in TRAINING before ADVANCE opens.
        embargo_epochs: Epochs for which a pruned slot stays EMBARGOED.
        max_living_seeds: Living seeds a host may have; None means one per slot.
        parameter_budget: Parameters that all living seeds may have together; None means 16 × the host's.
    """

    min_training_epochs: Count = 3
    embargo_epochs: Count = 5
    max_living_seeds: Natural | None = None
    parameter_budget: Natural | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
