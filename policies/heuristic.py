"""The plateau heuristic: what a careful person would script without learning (design: LEARNER.md section 8)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from envs.action_masks import split_mask
from envs.observation import CONTRIBUTION_SCALE, PLATEAU_SCALE, ObservationLayout
from envs.slots import SlotConfig
from envs.vocabulary import (
    NO_BLUEPRINT,
    AlphaTarget,
    GerminationStyle,
    LifecycleOp,
    SeedStage,
    Tempo,
)
from policies.bundle import Actions, BoolArray, Observations

PATIENCE_EPOCHS = 3
LOSS_TOLERANCE = 2.0
LOSS_AFTER_EPOCHS = 5
FOSSILIZE_CONTRIBUTION = 0.5
PRUNED_PENALTY, PENALTY_DECAY = 3.0, 0.95

FloatArray = npt.NDArray[np.float64]


class PlateauHeuristic:
    """Grows one seed at a time, when the host has stopped improving.

    While no seed is in development it waits until the host has stabilised and accuracy has been flat for 3 epochs,
    then germinates in the first open slot, going round the blueprints and past those pruned lately. It advances
    whenever a gate allows; prunes a TRAINING or BLENDING seed if accuracy fell by more than 2 points since it
    germinated, after 5 epochs in its stage; in HOLDING it fossilises at a contribution above 0.5 points, else prunes.
    """

    def __init__(self, slots: SlotConfig, max_epochs: int) -> None:
        self._heads, self._layout, self._max_epochs = slots.heads, ObservationLayout(slots), max_epochs
        self._num_blueprints = len(slots.blueprints)
        self.reset(0, 0)

    def reset(self, num_hosts: int, seed: int) -> None:
        """See :class:`policies.bundle.Policy`; the heuristic draws nothing."""
        self._next = np.zeros(num_hosts, np.int64)
        self._penalty = np.zeros((num_hosts, self._num_blueprints))
        self._accuracy_at_birth = np.zeros(num_hosts)

    def act(self, observations: Observations) -> Actions:
        """See :class:`policies.bundle.Policy`."""
        obs, layout = observations["obs"], self._layout
        views = split_mask(observations["action_mask"], self._heads)
        open_slots = views["slot"] != 0
        stages = layout.stages(obs)
        accuracy = 100.0 * layout.base(obs, "val_accuracy").astype(np.float64)
        developing = (stages >= SeedStage.GERMINATED) & (stages <= SeedStage.HOLDING)
        self._penalty *= PENALTY_DECAY

        germinate = self._wants_to_grow(obs, developing) & open_slots[:, LifecycleOp.GERMINATE].any(axis=1)
        prune = developing & open_slots[:, LifecycleOp.PRUNE] & self._disappoints(obs, stages, accuracy)
        fossilize = open_slots[:, LifecycleOp.FOSSILIZE] & ~prune
        op = np.where(germinate, LifecycleOp.GERMINATE, LifecycleOp.WAIT)
        slot = np.where(germinate, open_slots[:, LifecycleOp.GERMINATE].argmax(axis=1), 0)
        for kind, where in (
            (LifecycleOp.ADVANCE, open_slots[:, LifecycleOp.ADVANCE]),
            (LifecycleOp.FOSSILIZE, fossilize),
            (LifecycleOp.PRUNE, prune),
        ):
            chosen = where.any(axis=1)
            op, slot = np.where(chosen, kind, op), np.where(chosen, where.argmax(axis=1), slot)
        blueprint = self._choose_blueprint(views["blueprint"] != 0, op == LifecycleOp.GERMINATE)
        self._accuracy_at_birth = np.where(op == LifecycleOp.GERMINATE, accuracy, self._accuracy_at_birth)
        self._penalise(observations["blueprint_indices"], op, slot)
        return self._assemble(op, slot, blueprint)

    def _wants_to_grow(self, obs: npt.NDArray[np.float32], developing: BoolArray) -> BoolArray:
        flat_epochs = np.rint(self._layout.base(obs, "plateau_epochs") * PLATEAU_SCALE)
        stabilized = self._layout.base(obs, "host_stabilized") > 0
        return ~developing.any(axis=1) & stabilized & (flat_epochs >= PATIENCE_EPOCHS)

    def _disappoints(
        self, obs: npt.NDArray[np.float32], stages: npt.NDArray[np.int64], accuracy: FloatArray
    ) -> BoolArray:
        age = np.rint(self._layout.slot(obs, "epochs_in_stage") * self._max_epochs)
        fell = (self._accuracy_at_birth - accuracy > LOSS_TOLERANCE)[:, None] & (age >= LOSS_AFTER_EPOCHS)
        young = (stages == SeedStage.TRAINING) | (stages == SeedStage.BLENDING)
        measured = self._layout.slot(obs, "freshness") > 0
        worthless = self._layout.slot(obs, "contribution") * CONTRIBUTION_SCALE <= FOSSILIZE_CONTRIBUTION
        return (young & fell) | ((stages == SeedStage.HOLDING) & measured & worthless)

    def _choose_blueprint(self, admitted: BoolArray, germinates: BoolArray) -> Actions:
        """The admitted blueprint with the least penalty, the next in turn among equals."""
        total = self._num_blueprints
        turn = (np.arange(total) - self._next[:, None]) % total
        cost = np.where(admitted, self._penalty + turn / total, np.inf)
        choice = cost.argmin(axis=1)
        self._next = np.where(germinates, (choice + 1) % total, self._next)
        return choice

    def _penalise(self, blueprints: Actions, op: Actions, slot: Actions) -> None:
        hosts = np.flatnonzero(op == LifecycleOp.PRUNE)
        pruned = blueprints[hosts, slot[hosts]]
        real = pruned != NO_BLUEPRINT
        self._penalty[hosts[real], pruned[real]] += PRUNED_PENALTY

    def _assemble(self, op: Actions, slot: Actions, blueprint: Actions) -> Actions:
        arguments = {
            "op": op,
            "slot": slot,
            "blueprint": blueprint,
            "style": np.full_like(op, GerminationStyle.SIGMOID_ADD),
            "tempo": np.full_like(op, Tempo.STANDARD),
            "alpha_target": np.full_like(op, AlphaTarget.FULL),
        }
        zeros = np.zeros_like(op)
        columns = [np.where(np.isin(op, head.needed_by), arguments.get(head.name, zeros), 0) for head in self._heads]
        return np.stack(columns, axis=1)
