"""The last healthy state of each host and its fossils, for the governor's rollback."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from envs.episode_state import EpisodeArrays, per_slot
from envs.lifecycle import Lifecycle
from envs.vocabulary import SeedStage

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


class SavedWeights(Protocol):
    """Copies of what hosts and their fossils have learnt."""

    def save(self, hosts: IntArray, fossils: BoolArray) -> None:
        """Copy these hosts and the seeds that ``fossils`` (``[N, S]``) marks, in place of what was saved of them."""
        ...

    def restore(self, hosts: IntArray, lifecycle: Lifecycle) -> None:
        """Bring these hosts and their saved seeds back, and drop all other seeds; the slots are rolled back already."""
        ...

    def forget(self, hosts: IntArray) -> None:
        """Drop what was saved of these hosts."""
        ...


class Snapshots(EpisodeArrays):
    """One snapshot per host, taken and restored for any set of hosts at once.

    Args:
        num_hosts: N.
        num_slots: S.
        weights: Where copies are kept.
    """

    _fossilized: BoolArray = per_slot(False)

    def __init__(self, num_hosts: int, num_slots: int, weights: SavedWeights) -> None:
        super().__init__(num_hosts, num_slots)
        self.weights = weights

    def start(self, hosts: IntArray) -> None:
        """Forget these hosts' snapshots; the next one is taken of the hosts as they are drawn."""
        super().start(hosts)
        self.weights.forget(hosts)

    def lacks(self, lifecycle: Lifecycle) -> BoolArray:
        """``[N]`` hosts with a fossil that is not in their snapshot."""
        return ((lifecycle.stage == SeedStage.FOSSILIZED) & ~self._fossilized).any(axis=1)

    def take(self, hosts: IntArray, lifecycle: Lifecycle) -> None:
        """Save these hosts and their fossilised seeds."""
        self._fossilized[hosts] = lifecycle.stage[hosts] == SeedStage.FOSSILIZED
        self.weights.save(hosts, self._fossilized)

    def restore(self, hosts: IntArray, lifecycle: Lifecycle) -> None:
        """Bring these hosts back to their snapshot; every seed that is not in it is gone."""
        lifecycle.roll_back(hosts, self._fossilized[hosts])
        self.weights.restore(hosts, lifecycle)
