"""What a policy does in its episodes: its ops epoch by epoch, what it grows where."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from envs.morphogenesis import MorphogenesisVectorEnv
from envs.slots import SlotConfig
from envs.vocabulary import HEAD_NAMES, LifecycleOp, SeedStage

IntArray = npt.NDArray[np.int64]


class BehaviourRecorder:
    """Counts over the first episode of every host; :meth:`observe` is a callback of ``run_episodes``.

    Args:
        slots: Of the task.
        max_epochs: T.

    Attributes:
        ops: ``[T, ops]`` hosts that took the op in the epoch.
        germinated: ``[S, blueprints]`` seeds that were started.
    """

    def __init__(self, slots: SlotConfig, max_epochs: int) -> None:
        self.ops = np.zeros((max_epochs, len(slots.ops)), np.int64)
        self.germinated = np.zeros((slots.num_slots, len(slots.blueprints)), np.int64)
        self._kept: IntArray | None = None
        self._epoch = 0

    def observe(self, world: MorphogenesisVectorEnv) -> None:
        """Take in the start, then every epoch."""
        life, epoch = world.lifecycle, self._epoch
        self._epoch += 1
        if self._kept is None:
            self._kept = np.full(life.stage.shape, -1)
            return
        first = world.epoch == epoch  # a host that starts a second episode is behind for good
        actions = dict(zip(HEAD_NAMES, world.last_actions[first].T, strict=True))
        op, slot, blueprint = actions["op"], actions["slot"], actions["blueprint"]
        np.add.at(self.ops[epoch - 1], op, 1)
        born = op == LifecycleOp.GERMINATE
        np.add.at(self.germinated, (slot[born], blueprint[born]), 1)
        fossils = np.where(life.stage == SeedStage.FOSSILIZED, life.blueprint, -1)
        self._kept[first] = fossils[first]

    @property
    def fossilized(self) -> IntArray:
        """``[S, blueprints]`` seeds in the committed networks."""
        counts = np.zeros_like(self.germinated)
        if self._kept is not None:
            hosts, slots = np.nonzero(self._kept >= 0)
            np.add.at(counts, (slots, self._kept[hosts, slots]), 1)
        return counts
