"""Seeds that a host has from its first epoch on: a grown network, to be trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from envs.slots import SlotConfig
from envs.vocabulary import (
    INTERNAL_KINDS,
    INTERNAL_START_LEVEL,
    NO_BLUEPRINT,
    AlphaAlgorithm,
    Blueprint,
    SeedInternalKind,
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

    def replaced(self, hosts: BoolArray, other: GrownSeeds) -> GrownSeeds:
        """These, but those of ``other`` in the marked hosts (``[N]``)."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return GrownSeeds(*(np.where(hosts[:, None], theirs, ours) for ours, theirs in pairs))
