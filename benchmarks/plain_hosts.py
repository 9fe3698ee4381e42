"""Masks and features of one host at a time, as an env without arrays would make them: numbers, lists and loops.

The yardstick of :mod:`benchmarks.env`, for slots without internal levels. A host's state is taken over before the
clock starts, as such an env would hold it already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from envs.morphogenesis import MorphogenesisVectorEnv
from envs.observation import (
    CONTRIBUTION_SCALE,
    FRESHNESS_DECAY,
    GRADIENT_SCALE,
    INTERACTION_BEST_SCALE,
    INTERACTION_SUM_SCALE,
    LOSS_CEILING,
    LOSS_SCALE,
    NEIGHBOUR_SCALE,
    PLATEAU_SCALE,
)
from envs.vocabulary import AlphaAlgorithm, AlphaMode, Blueprint, GerminationStyle, LifecycleOp, SeedStage

DORMANT, GERMINATED, TRAINING, BLENDING, HOLDING, FOSSILIZED = map(int, list(SeedStage)[1:7])
WAIT, GERMINATE, SET_ALPHA_TARGET, PRUNE, FOSSILIZE, ADVANCE = map(int, list(LifecycleOp)[:6])
GATE, GATED, NOOP, RAMP = (
    int(AlphaAlgorithm.GATE),
    int(GerminationStyle.GATED_GATE),
    int(Blueprint.NOOP),
    int(AlphaMode.RAMP),
)
STAGES, STYLES, LAST_MODE, LAST_ALGORITHM = len(SeedStage), len(GerminationStyle), max(AlphaMode), max(AlphaAlgorithm)


@dataclass
class PlainSlot:
    """One slot: its state, what was measured of its seed, and what seeds cost there."""

    enabled: bool
    stage: int
    blueprint: int
    algorithm: int
    mode: int
    age: int
    alpha: float
    alpha_target: float
    alpha_velocity: float
    epochs_to_target: int
    pruning: bool
    gradients_ok: bool
    measured_in_holding: bool
    contribution: float
    contribution_change: float
    gradient_norm: float
    health: float
    previous_health: float
    vanishing: float
    exploding: float
    interaction_sum: float
    interaction_best: float
    epochs_since: float
    costs: list[int]
    gate: int

    @property
    def living(self) -> bool:
        """A seed occupies the slot."""
        return GERMINATED <= self.stage <= FOSSILIZED


class PlainHost:
    """One host of an env as plain numbers.

    Args:
        env: Where the state is read.
        host: Index of the host in it.

    Raises:
        ValueError: the env's slots have internal levels.
    """

    def __init__(self, env: MorphogenesisVectorEnv, host: int) -> None:
        life, progress, measured, costs = env.lifecycle, env.progress, env.measurements, env.lifecycle.costs
        if life.slots.internal_levels:
            raise ValueError(f"task {env.task.name!r} has internal levels, which plain hosts do not know: use another")
        self.slots = [
            PlainSlot(
                enabled=bool(life.enabled[slot]),
                stage=int(life.stage[host, slot]),
                blueprint=int(life.blueprint[host, slot]),
                algorithm=int(life.algorithm[host, slot]),
                mode=int(life.mode[host, slot]),
                age=int(life.epochs_in_stage[host, slot]),
                alpha=float(life.alpha[host, slot]),
                alpha_target=float(life.alpha_target[host, slot]),
                alpha_velocity=float(life.alpha_velocity[host, slot]),
                epochs_to_target=int(life.epochs_to_target[host, slot]),
                pruning=bool(life.pruning[host, slot]),
                gradients_ok=bool(life.gradients_ok[host, slot]),
                measured_in_holding=bool(life.measured_in_holding[host, slot]),
                contribution=float(measured.contribution[host, slot]),
                contribution_change=float(measured.contribution_change[host, slot]),
                gradient_norm=float(measured.gradient_norm[host, slot]),
                health=float(measured.health[host, slot]),
                previous_health=float(measured.previous_health[host, slot]),
                vanishing=float(measured.vanishing[host, slot]),
                exploding=float(measured.exploding[host, slot]),
                interaction_sum=float(measured.interaction_sum[host, slot]),
                interaction_best=float(measured.interaction_best[host, slot]),
                epochs_since=float(measured.epochs_since[host, slot]),
                costs=costs.blueprint[host, :, slot].tolist(),
                gate=int(costs.gate[host, slot]),
            )
            for slot in range(life.slots.num_slots)
        ]
        self.heads, self.num_ops = life.slots.heads, len(life.slots.ops)
        self.offered: list[bool] = costs.offered.tolist()
        self.min_training_epochs, self.max_living = life.rules.min_training_epochs, life.max_living
        self.budget = int(life.parameter_budget[host])
        self.losses: list[float] = progress.loss[host].tolist()
        self.accuracies: list[float] = progress.accuracy[host].tolist()
        self.best_loss, self.best_accuracy = float(progress.best_loss[host]), float(progress.best_accuracy[host])
        self.plateau_epochs, self.stabilized = int(progress.plateau_epochs[host]), bool(progress.stabilized[host])
        self.epoch, self.max_epochs = int(env.epoch[host]), env.max_epochs

    # ------------------------------------------------------------------ masks
    def mask(self) -> list[int]:
        """The flat mask, as :func:`envs.action_masks.build_mask` lays it out."""
        left = self.budget - self._spent()
        blueprints = self._blueprints(left)
        room = sum(slot.living for slot in self.slots) < self.max_living and any(blueprints)
        pairs = [[self._admits(op, slot, room) for slot in self.slots] for op in range(self.num_ops)]
        ops = [op == WAIT or any(pairs[op]) for op in range(self.num_ops)]
        gate_fits = all(
            slot.algorithm == GATE or slot.gate <= left
            for slot, retargets in zip(self.slots, pairs[SET_ALPHA_TARGET], strict=True)
            if retargets
        )
        narrowing = {"blueprint": blueprints, "style": [style != GATED or gate_fits for style in range(STYLES)]}
        mask = ops + [admitted for row in pairs for admitted in row]
        for head in self.heads[2:]:
            needed = any(ops[op] for op in head.needed_by)
            mask += [needed and entry for entry in narrowing.get(head.name, [True] * head.size)]
        return [int(entry) for entry in mask]

    def _spent(self) -> int:
        return sum(
            slot.costs[slot.blueprint] + (slot.gate if slot.algorithm == GATE else 0)
            for slot in self.slots
            if slot.living
        )

    def _blueprints(self, left: int) -> list[bool]:
        empty = [slot for slot in self.slots if slot.stage == DORMANT and slot.enabled]
        return [
            offered and blueprint != NOOP and all(slot.costs[blueprint] + slot.gate <= left for slot in empty)
            for blueprint, offered in enumerate(self.offered)
        ]

    def _admits(self, op: int, slot: PlainSlot, room: bool) -> bool:
        if not slot.enabled or slot.pruning:
            return False
        stage, settled = slot.stage, slot.mode != RAMP
        if op == GERMINATE:
            return stage == DORMANT and room
        if op == ADVANCE:
            if stage == TRAINING:
                return slot.age >= self.min_training_epochs and slot.gradients_ok
            return stage == GERMINATED or (stage == BLENDING and settled)
        if op == SET_ALPHA_TARGET:
            return stage in (BLENDING, HOLDING) and settled
        if op == FOSSILIZE:
            return stage == HOLDING and settled and slot.measured_in_holding
        return op == PRUNE and GERMINATED <= stage <= HOLDING

    # ------------------------------------------------------------------ features
    def features(self, last_op: int, last_success: bool) -> list[float]:
        """The observation's vector, as :meth:`envs.observation.ObservationLayout.encode` lays it out."""
        vector = self._base(last_op, last_success)
        below, total = 0.0, sum(slot.alpha for slot in self.slots if slot.living)
        for slot in self.slots:
            alpha = slot.alpha if slot.living else 0.0
            vector += self._of_slot(slot, below, total - alpha - below)
            below += alpha
        return vector

    def _base(self, last_op: int, last_success: bool) -> list[float]:
        losses = [_log_loss(loss) for loss in self.losses]
        accuracies = [_measured(accuracy) / 100.0 for accuracy in self.accuracies]
        begun = not math.isnan(self.losses[-2])
        change = 0.0
        if begun:
            change = math.inf if math.isinf(self.losses[-1]) else self.losses[-1] - self.losses[-2]
        stages, count = [slot.stage for slot in self.slots], len(self.slots)
        return [
            _unit(self.epoch / self.max_epochs),
            losses[-1],
            _clip(change, -2.0, 2.0) / 2.0,
            accuracies[-1],
            _signed(_measured(self.accuracies[-1] - self.accuracies[-2]) / 10.0),
            _unit(self.plateau_epochs / PLATEAU_SCALE),
            float(self.stabilized),
            *losses,
            *accuracies,
            self.best_accuracy / 100.0,
            _log_loss(self.best_loss),
            _unit(math.log1p(self._spent()) / math.log1p(max(self.budget, 1))),
            sum(slot.living for slot in self.slots) / count,
            *(stages.count(stage) / count for stage in (TRAINING, BLENDING, HOLDING)),
            float(last_success),
            *(float(op == last_op) for op in range(self.num_ops)),
        ]

    def _of_slot(self, slot: PlainSlot, upstream: float, downstream: float) -> list[float]:
        if slot.stage == DORMANT:
            return [0.0] * (STAGES + 20)
        onehot = [float(stage == slot.stage) for stage in range(STAGES)]
        age = _unit(slot.age / self.max_epochs)
        if not slot.living:
            return [0.0, *onehot, *[0.0] * 8, age, *[0.0] * 10]
        return [
            1.0,
            *onehot,
            slot.alpha,
            slot.alpha_target,
            slot.mode / LAST_MODE,
            _signed(slot.alpha_velocity),
            _unit(slot.epochs_to_target / self.max_epochs),
            slot.algorithm / LAST_ALGORITHM,
            _signed(_measured(slot.contribution) / CONTRIBUTION_SCALE),
            _signed(_measured(slot.contribution_change) / CONTRIBUTION_SCALE),
            age,
            _unit(_measured(slot.gradient_norm) / GRADIENT_SCALE),
            _measured(slot.health),
            _measured(slot.previous_health),
            _measured(slot.vanishing),
            _measured(slot.exploding),
            _signed(_measured(slot.interaction_sum) / INTERACTION_SUM_SCALE),
            _unit(_measured(slot.interaction_best) / INTERACTION_BEST_SCALE),
            _unit(upstream / NEIGHBOUR_SCALE),
            _unit(downstream / NEIGHBOUR_SCALE),
            _measured(FRESHNESS_DECAY**slot.epochs_since),
        ]


def _measured(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _clip(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))


def _unit(value: float) -> float:
    return _clip(value, 0.0, 1.0)


def _signed(value: float) -> float:
    return _clip(value, -1.0, 1.0)


def _log_loss(loss: float) -> float:
    if math.isnan(loss):
        return 0.0
    return min(math.log1p(loss) / LOSS_SCALE, LOSS_CEILING) if math.isfinite(loss) else LOSS_CEILING
