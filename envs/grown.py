"""Seeds that a host has from its first epoch on: a grown network, to be trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from envs.lifecycle import Fate, Lifecycle
from envs.slots import SlotConfig
from envs.vocabulary import (
    INTERNAL_KINDS,
    INTERNAL_START_LEVEL,
    NO_BLUEPRINT,
    AlphaAlgorithm,
    AlphaMode,
    Blueprint,
    SeedInternalKind,
    SeedStage,
)

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GrownSeeds:
    """The committed seeds of N hosts; what an empty slot has in the other arrays is not read.

    Attributes:
        blueprint: ``[N, S]`` kind, ``NO_BLUEPRINT`` where there is no seed.
        algorithm: ``[N, S]`` ``AlphaAlgorithm``.
        alpha: ``[N, S]`` blend amplitude, above 0 up to 1.
        internal_level: ``[N, S]``.
    """

    blueprint: IntArray
    algorithm: IntArray
    alpha: FloatArray
    internal_level: IntArray

    @classmethod
    def of(cls, lifecycle: Lifecycle) -> Self:
        """What these hosts have committed by now."""
        fossils = lifecycle.stage == SeedStage.FOSSILIZED
        return cls(
            np.where(fossils, lifecycle.blueprint, NO_BLUEPRINT),
            lifecycle.algorithm.copy(),
            lifecycle.alpha.copy(),
            lifecycle.internal_level.copy(),
        )

    @classmethod
    def everywhere(cls, blueprint: Blueprint, num_hosts: int, slots: SlotConfig) -> Self:
        """The same seed in every enabled slot, added in full."""
        shape = (num_hosts, slots.num_slots)
        level = INTERNAL_START_LEVEL[INTERNAL_KINDS.get(blueprint, SeedInternalKind.NONE)]
        return cls(
            np.where(np.broadcast_to(slots.enabled_mask, shape), int(blueprint), NO_BLUEPRINT),
            np.full(shape, int(AlphaAlgorithm.ADD)),
            np.ones(shape),
            np.full(shape, level),
        )

    def plant(self, lifecycle: Lifecycle) -> None:
        """Put the seeds into hosts whose episode begins, as FOSSILIZED; the population then draws their weights.

        Raises:
            ValueError: arrays of another shape, a kind that the hosts do not offer, a disabled slot, an amplitude
                out of range.
        """
        shape = lifecycle.stage.shape
        for name, array in vars(self).items():
            if array.shape != shape:
                raise ValueError(
                    f"grown seeds of {shape[0]} hosts with {shape[1]} slots needed: {name} is {array.shape}"
                )
        present = self.blueprint != NO_BLUEPRINT
        unknown = set(self.blueprint[present]) - set(np.flatnonzero(lifecycle.costs.offered))
        if unknown:
            raise ValueError(f"these hosts offer no blueprint {', '.join(str(kind) for kind in sorted(unknown))}")
        if (present & ~lifecycle.enabled).any():
            raise ValueError(f"seeds can only be in the enabled slots, which are {lifecycle.enabled.tolist()}")
        alpha = self.alpha[present]
        if not ((alpha > 0.0) & (alpha <= 1.0)).all():
            raise ValueError(f"the alpha of a grown seed must be above 0 and at most 1, got {alpha.tolist()}")
        lifecycle.stage[present] = SeedStage.FOSSILIZED
        lifecycle.mode[present] = AlphaMode.HOLD
        for target, source in (
            (lifecycle.blueprint, self.blueprint),
            (lifecycle.algorithm, self.algorithm),
            (lifecycle.internal_level, self.internal_level),
            (lifecycle.alpha, self.alpha),
            (lifecycle.alpha_target, self.alpha),
            (lifecycle.alpha_before, self.alpha),
        ):
            target[present] = source[present]
        lifecycle.fates[:, Fate.FOSSILIZED] += present.sum(axis=1)

    def replaced(self, hosts: BoolArray, other: GrownSeeds) -> GrownSeeds:
        """These, but those of ``other`` in the marked hosts (``[N]``)."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return GrownSeeds(*(np.where(hosts[:, None], theirs, ours) for ours, theirs in pairs))
