"""What one slot is doing, as a value, and the contract of its internal level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from envs.vocabulary import AlphaAlgorithm, Blueprint, SeedInternalKind, SeedStage

IntLike = int | npt.NDArray[np.int64]


def check_internal_levels(kind: IntLike, level: IntLike, max_level: IntLike) -> None:
    """The contract: ``0 <= level <= max_level``, ``max_level >= 1``, and kind NONE means level 0 of 1.

    Args:
        kind: ``SeedInternalKind`` of one slot or of many.
        level: Likewise, the level now.
        max_level: Likewise, the highest level.

    Raises:
        ValueError: a slot breaks it.
    """
    kinds, levels, most = np.broadcast_arrays(kind, level, max_level)
    plain = kinds == SeedInternalKind.NONE
    broken = (most < 1) | (levels < 0) | (levels > most) | (plain & ((levels != 0) | (most != 1)))
    if broken.any():
        cell = tuple(np.argwhere(broken)[0])
        raise ValueError(
            f"internal kind {SeedInternalKind(int(kinds[cell])).name} at level {int(levels[cell])} of "
            f"{int(most[cell])} breaks the contract: a level must lie between 0 and its maximum, the maximum must be "
            "at least 1, and kind NONE is level 0 of 1"
        )


@dataclass(frozen=True)
class SeedReport:
    """One slot of one host.

    Attributes:
        slot_id: The slot.
        stage: Where in its life it is.
        blueprint: Kind of its seed; None where no seed lives.
        epochs_in_stage: Age of the stage, epochs.
        alpha: Blend amplitude, 0 to 1.
        alpha_target: Where alpha goes or rests.
        algorithm: How the seed's delta enters the host.
        pruning: A scheduled prune is ramping alpha down.
        internal_kind: Structure inside the seed.
        internal_level: Levels of it that are switched on.
        internal_max_level: Levels that it has, at least 1 always.

    Raises:
        ValueError: the internal level breaks the contract (see :func:`check_internal_levels`).
    """

    slot_id: str
    stage: SeedStage
    blueprint: Blueprint | None
    epochs_in_stage: int
    alpha: float
    alpha_target: float
    algorithm: AlphaAlgorithm
    pruning: bool
    internal_kind: SeedInternalKind
    internal_level: int
    internal_max_level: int

    def __post_init__(self) -> None:
        check_internal_levels(self.internal_kind, self.internal_level, self.internal_max_level)
