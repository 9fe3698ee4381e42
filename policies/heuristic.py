"""The plateau heuristic: what a careful person would script without learning."""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from envs.action_masks import split_mask
from envs.observation import CONTRIBUTION_SCALE, PLATEAU_SCALE
from envs.slots import SlotConfig
from envs.vocabulary import (
    HEAD_NAMES,
    NO_BLUEPRINT,
    AlphaTarget,
    GerminationStyle,
    LifecycleOp,
    SeedStage,
    Tempo,
)
from policies.bundle import Actions, BoolArray, Observations, PolicySettings
from policies.registry import register
from policies.rule import Memory, RulePolicy

PATIENCE_EPOCHS = 3
LOSS_TOLERANCE = 2.0
LOSS_AFTER_EPOCHS = 5
FOSSILIZE_CONTRIBUTION = 0.5
PRUNED_PENALTY, PENALTY_DECAY = 3.0, 0.95

ARGUMENTS = {
    "style": int(GerminationStyle.SIGMOID_ADD),
    "tempo": int(Tempo.STANDARD),
    "alpha_target": int(AlphaTarget.FULL),
}
"""How every seed is blended in."""

NEXT_BLUEPRINT, BIRTH_ACCURACY, PENALTIES = 0, 1, slice(2, None)
"""Columns of what the heuristic remembers."""

FloatArray = npt.NDArray[np.float64]


@register("heuristic")
class PlateauHeuristic(RulePolicy):
    """Grows one seed at a time, when the host has stopped improving.

    While no seed is in development it waits until the host has stabilised and accuracy has been flat for 3 epochs,
    then germinates in the first open slot, going round the blueprints and past those pruned lately. It advances
    whenever a gate allows; prunes a TRAINING or BLENDING seed if accuracy fell by more than 2 points since it
    germinated, after 5 epochs in its stage; in HOLDING it fossilises at a contribution above 0.5 points, else prunes.

    It remembers, per host: the blueprint next in turn, the accuracy at the last germination, and every blueprint's
    penalty.
    """

    def __init__(self, slots: SlotConfig, max_epochs: int) -> None:
        super().__init__(slots)
        self._max_epochs = max_epochs
        self._num_blueprints = len(slots.blueprints)

    @classmethod
    def build(cls, settings: PolicySettings) -> Self:
        """For the slots and the episodes of the settings."""
        return cls(settings.slots, settings.max_epochs)

    @property
    def hidden_dim(self) -> int:
        """A turn, an accuracy, and a penalty per blueprint."""
        return 2 + self._num_blueprints

    def choices(self, observations: Observations, memory: Memory) -> tuple[Tensor, ...]:
        """The one action that the rule takes."""
        obs, layout = observations["obs"], self._layout
        views = split_mask(observations["action_mask"], self._heads)
        open_slots = views["slot"] != 0
        stages = layout.stages(obs)
        developing = (stages >= SeedStage.GERMINATED) & (stages <= SeedStage.HOLDING)
        fell = memory[:, BIRTH_ACCURACY] - self._accuracy(obs) > LOSS_TOLERANCE

        germinate = self._wants_to_grow(obs, developing)
        prune = developing & open_slots[:, LifecycleOp.PRUNE] & self._disappoints(obs, stages, fell)
        op, slot = self.decide(
            {
                LifecycleOp.GERMINATE: open_slots[:, LifecycleOp.GERMINATE] & germinate[:, None],
                LifecycleOp.ADVANCE: open_slots[:, LifecycleOp.ADVANCE],
                LifecycleOp.FOSSILIZE: open_slots[:, LifecycleOp.FOSSILIZE] & ~prune,
                LifecycleOp.PRUNE: prune,
            }
        )
        blueprint = self._choose_blueprint(views["blueprint"] != 0, memory)
        return self.certain(self.assemble(op, {**ARGUMENTS, "slot": slot, "blueprint": blueprint}))

    def remember(self, observations: Observations, memory: Memory, actions: Actions) -> Memory:
        """Whose turn is next, the accuracy at birth, and what was pruned."""
        op, slot, blueprint = (actions[:, HEAD_NAMES.index(name)] for name in ("op", "slot", "blueprint"))
        memory = memory.copy()
        born = op == LifecycleOp.GERMINATE
        memory[born, NEXT_BLUEPRINT] = (blueprint[born] + 1) % self._num_blueprints
        memory[born, BIRTH_ACCURACY] = self._accuracy(observations["obs"])[born]
        penalties = memory[:, PENALTIES]
        penalties *= PENALTY_DECAY
        hosts = np.flatnonzero(op == LifecycleOp.PRUNE)
        pruned = observations["blueprint_indices"][hosts, slot[hosts]]
        real = pruned != NO_BLUEPRINT
        penalties[hosts[real], pruned[real]] += PRUNED_PENALTY
        return memory

    def _accuracy(self, obs: npt.NDArray[np.float32]) -> FloatArray:
        """Percent, ``[N]``."""
        return 100.0 * self._layout.base(obs, "val_accuracy").astype(np.float64)

    def _wants_to_grow(self, obs: npt.NDArray[np.float32], developing: BoolArray) -> BoolArray:
        flat_epochs = np.rint(self._layout.base(obs, "plateau_epochs") * PLATEAU_SCALE)
        stabilized = self._layout.base(obs, "host_stabilized") > 0
        return ~developing.any(axis=1) & stabilized & (flat_epochs >= PATIENCE_EPOCHS)

    def _disappoints(self, obs: npt.NDArray[np.float32], stages: npt.NDArray[np.int64], fell: BoolArray) -> BoolArray:
        age = np.rint(self._layout.slot(obs, "epochs_in_stage") * self._max_epochs)
        failed = fell[:, None] & (age >= LOSS_AFTER_EPOCHS)
        young = (stages == SeedStage.TRAINING) | (stages == SeedStage.BLENDING)
        measured = self._layout.slot(obs, "freshness") > 0
        worthless = self._layout.slot(obs, "contribution") * CONTRIBUTION_SCALE <= FOSSILIZE_CONTRIBUTION
        return (young & failed) | ((stages == SeedStage.HOLDING) & measured & worthless)

    def _choose_blueprint(self, admitted: BoolArray, memory: Memory) -> Actions:
        """The admitted blueprint with the least penalty, the next in turn among equals."""
        total = self._num_blueprints
        turn = (np.arange(total) - memory[:, [NEXT_BLUEPRINT]]) % total
        cost = np.where(admitted, PENALTY_DECAY * memory[:, PENALTIES] + turn / total, np.inf)
        return cost.argmin(axis=1)
