"""How the seeds of a run have fared, by blueprint."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from envs.episode_state import EpisodeArrays, per_host, per_slot
from envs.lifecycle import Lifecycle
from envs.vocabulary import LIVING_STAGES, NO_BLUEPRINT, Blueprint, SeedStage

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class SeedFates(EpisodeArrays):
    """Counts seeds that were kept and seeds that were not, in each host's episode.

    It looks once an epoch: a seed that the governor takes back in the epoch in which it was planted is not counted.

    Attributes:
        kept: ``[N, blueprints]`` seeds that are FOSSILIZED.
        decided: ``[N, blueprints]`` those, and seeds that are gone.
    """

    kept: IntArray = per_host(0, len(Blueprint))
    decided: IntArray = per_host(0, len(Blueprint))
    _stage: IntArray = per_slot(SeedStage.DORMANT)
    _blueprint: IntArray = per_slot(NO_BLUEPRINT)

    def look(self, lifecycle: Lifecycle) -> None:
        """Take in what became of the seeds since the last look."""
        was_kept, is_kept = self._stage == SeedStage.FOSSILIZED, lifecycle.stage == SeedStage.FOSSILIZED
        gone = np.isin(self._stage, LIVING_STAGES) & ~lifecycle.living
        self._count(self.kept, is_kept & ~was_kept, lifecycle.blueprint, 1)
        self._count(self.decided, is_kept & ~was_kept, lifecycle.blueprint, 1)
        self._count(self.decided, gone & ~was_kept, self._blueprint, 1)
        self._count(self.kept, gone & was_kept, self._blueprint, -1)  # a fossil that the governor rolled back
        self._stage, self._blueprint = lifecycle.stage.copy(), lifecycle.blueprint.copy()

    def _count(self, counts: IntArray, seeds: BoolArray, blueprint: IntArray, by: int) -> None:
        hosts, slots = np.nonzero(seeds)
        np.add.at(counts, (hosts, blueprint[hosts, slots]), by)

    def success(self, lifecycle: Lifecycle) -> FloatArray:
        """``[N, S]`` share of the decided seeds of each living seed's blueprint that were kept; NaN without any."""
        hosts = np.arange(len(self.kept))[:, None]
        blueprint = np.maximum(lifecycle.blueprint, 0)
        kept, decided = self.kept[hosts, blueprint], self.decided[hosts, blueprint]
        return np.where(lifecycle.living & (decided > 0), kept / np.maximum(decided, 1), np.nan)
