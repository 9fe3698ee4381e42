"""The stage machine of all slots of all hosts, as arrays: which ops are open, what they do, what time does.

One gate table (:meth:`Lifecycle.gates`) decides both what the action mask admits and what :meth:`Lifecycle.apply`
executes, so the two cannot disagree (design: WORLD.md section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from envs.alpha import curve_value
from envs.limits import DEFAULT_BUDGET_FACTOR, LifecycleRules, SeedCosts
from envs.seed_report import SeedReport
from envs.slots import SlotConfig
from envs.vocabulary import (
    ALPHA_SPEED_EPOCHS,
    ALPHA_TARGET_VALUES,
    INTERNAL_KINDS,
    INTERNAL_MAX_LEVEL,
    INTERNAL_START_LEVEL,
    NO_BLUEPRINT,
    STYLE_ALGORITHM,
    STYLE_CURVE,
    TEMPO_EPOCHS,
    AlphaAlgorithm,
    AlphaCurve,
    AlphaMode,
    Blueprint,
    GerminationStyle,
    LifecycleOp,
    SeedInternalKind,
    SeedStage,
)

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_TEMPO_EPOCHS = np.array(TEMPO_EPOCHS)
_SPEED_EPOCHS = np.array(ALPHA_SPEED_EPOCHS)
_TARGETS = np.array(ALPHA_TARGET_VALUES)
_STYLE_CURVE = np.array(STYLE_CURVE)
_STYLE_ALGORITHM = np.array(STYLE_ALGORITHM)
_KIND = np.array([INTERNAL_KINDS.get(blueprint, SeedInternalKind.NONE) for blueprint in Blueprint])
_MAX_LEVEL = np.array([INTERNAL_MAX_LEVEL[kind] for kind in SeedInternalKind])
_START_LEVEL = np.array([INTERNAL_START_LEVEL[kind] for kind in SeedInternalKind])


class Fate(IntEnum):
    """How a seed's life ended, for the episode's books."""

    FOSSILIZED = 0
    PRUNED = 1
    UNFINISHED = 2  # removed at the episode's end because it was not fossilised
    ROLLED_BACK = 3  # lost when the governor restored a snapshot


class Lifecycle:
    """State of ``N × S`` slots, each field one array.

    Public arrays (all ``[N, S]``): ``stage``, ``blueprint``, ``algorithm``, ``alpha``, ``alpha_target``, ``mode``,
    ``epochs_in_stage``, ``pruning`` (a scheduled prune is ramping alpha down), ``internal_level``, ``alpha_velocity``
    and ``epochs_to_target``. ``gradients_ok`` and ``measured_in_holding`` are written by the env from its measurements
    and read by the gates. ``fates`` is ``[N, len(Fate)]``.
    """

    def __init__(self, num_hosts: int, slots: SlotConfig, rules: LifecycleRules) -> None:
        shape = (num_hosts, slots.num_slots)
        self.slots, self.rules = slots, rules
        self.enabled = np.array(slots.enabled_mask)
        self.max_living = slots.num_slots if rules.max_living_seeds is None else rules.max_living_seeds
        self.stage = np.full(shape, SeedStage.DORMANT, np.int64)
        self.blueprint = np.full(shape, NO_BLUEPRINT, np.int64)
        self.internal_level = np.zeros(shape, np.int64)
        self.algorithm = np.zeros(shape, np.int64)
        self.mode = np.zeros(shape, np.int64)
        self.curve = np.zeros(shape, np.int64)
        self.tempo_epochs = np.zeros(shape, np.int64)
        self.ramp_epochs = np.zeros(shape, np.int64)
        self.ramp_elapsed = np.zeros(shape, np.int64)
        self.epochs_in_stage = np.zeros(shape, np.int64)
        self.alpha = np.zeros(shape)
        self.alpha_start = np.zeros(shape)
        self.alpha_target = np.zeros(shape)
        self.alpha_before = np.zeros(shape)
        self.pruning = np.zeros(shape, bool)
        self.gradients_ok = np.zeros(shape, bool)
        self.measured_in_holding = np.zeros(shape, bool)
        self.fates = np.zeros((num_hosts, len(Fate)), np.int64)
        self._costs: SeedCosts | None = None
        self._places = np.indices(shape, sparse=True)

    # ------------------------------------------------------------------ what holds now
    @property
    def costs(self) -> SeedCosts:
        """Parameter counts of the hosts at hand, set by the env whenever a host is drawn."""
        if self._costs is None:
            raise RuntimeError("the lifecycle has no parameter counts yet: assign `costs` before using it")
        return self._costs

    @costs.setter
    def costs(self, costs: SeedCosts) -> None:
        self._costs = costs

    @property
    def living(self) -> BoolArray:
        """``[N, S]`` whether a seed occupies the slot (GERMINATED to FOSSILIZED)."""
        return (self.stage >= SeedStage.GERMINATED) & (self.stage <= SeedStage.FOSSILIZED)

    @property
    def computing(self) -> BoolArray:
        """``[N, S]`` whether the slot's seed has weights that are run in training (TRAINING to FOSSILIZED)."""
        return (self.stage >= SeedStage.TRAINING) & (self.stage <= SeedStage.FOSSILIZED)

    @property
    def settled(self) -> BoolArray:
        """``[N, S]`` no alpha ramp is under way."""
        return self.mode != AlphaMode.RAMP

    @property
    def alpha_velocity(self) -> FloatArray:
        """``[N, S]`` change of alpha in the last epoch."""
        return self.alpha - self.alpha_before

    @property
    def epochs_to_target(self) -> IntArray:
        """``[N, S]`` epochs until a ramp under way ends; 0 where alpha is settled."""
        return np.where(self.settled, 0, self.ramp_epochs - self.ramp_elapsed)

    @property
    def internal_kind(self) -> IntArray:
        """``[N, S]`` ``SeedInternalKind`` of the slot's seed; NONE where there is no seed."""
        return _KIND[np.maximum(self.blueprint, Blueprint.NOOP)]

    @property
    def internal_max_level(self) -> IntArray:
        """``[N, S]`` highest level of the slot's seed, at least 1 always."""
        return _MAX_LEVEL[self.internal_kind]

    @property
    def extra_parameters(self) -> IntArray:
        """``[N]`` parameters of all living seeds, full size in every stage, gates included.

        Of an internal structure only the levels that are switched on count.
        """
        return np.where(self.living, self.seed_costs(self.costs), 0).sum(axis=1)

    def seed_costs(self, costs: SeedCosts) -> IntArray:
        """``[N, S]`` what each slot's seed costs as it is now, its gate and internal levels included.

        Meaningless where there is no seed.
        """
        hosts, slots = self._places
        blueprint, kind = np.maximum(self.blueprint, Blueprint.NOOP), self.internal_kind
        grown = (self.internal_level - _START_LEVEL[kind]) * costs.level[hosts, blueprint, slots]
        gates = np.where(self.algorithm == AlphaAlgorithm.GATE, costs.gate, 0)
        return costs.blueprint[hosts, blueprint, slots] + grown + gates

    @property
    def parameter_budget(self) -> IntArray:
        """``[N]`` parameters that living seeds may have together."""
        if self.rules.parameter_budget is not None:
            return np.full(len(self.costs.host), self.rules.parameter_budget, np.int64)
        return DEFAULT_BUDGET_FACTOR * self.costs.host

    def report(self, host: int, slot: int) -> SeedReport:
        """What one slot of one host is doing.

        Raises:
            ValueError: its internal level breaks the contract of :class:`envs.seed_report.SeedReport`.
        """
        cell = (host, slot)
        return SeedReport(
            slot_id=self.slots.slot_ids[slot],
            stage=SeedStage(int(self.stage[cell])),
            blueprint=Blueprint(int(self.blueprint[cell])) if self.living[cell] else None,
            epochs_in_stage=int(self.epochs_in_stage[cell]),
            alpha=float(self.alpha[cell]),
            alpha_target=float(self.alpha_target[cell]),
            algorithm=AlphaAlgorithm(int(self.algorithm[cell])),
            pruning=bool(self.pruning[cell]),
            internal_kind=SeedInternalKind(int(self.internal_kind[cell])),
            internal_level=int(self.internal_level[cell]),
            internal_max_level=int(self.internal_max_level[cell]),
        )

    # ------------------------------------------------------------------ the gate table
    def blueprint_gate(self) -> BoolArray:
        """``[N, num_blueprints]`` blueprints that fit, gate included, in every DORMANT enabled slot."""
        left = self.parameter_budget - self.extra_parameters
        fits = self.costs.blueprint + self.costs.gate[:, None, :] <= left[:, None, None]
        germinable = (self.stage == SeedStage.DORMANT) & self.enabled
        everywhere = (fits | ~germinable[:, None, :]).all(axis=2)
        return everywhere & self.costs.offered & (np.arange(len(self.costs.offered)) != Blueprint.NOOP)

    def style_gate(self, gates: BoolArray) -> BoolArray:
        """``[N, num_styles]`` styles open to SET_ALPHA_TARGET: GATED_GATE needs its gate to fit where it is new.

        Args:
            gates: What :meth:`gates` says now.
        """
        left = self.parameter_budget - self.extra_parameters
        fits = (self.algorithm == AlphaAlgorithm.GATE) | (self.costs.gate <= left[:, None])
        retargetable = gates[:, LifecycleOp.SET_ALPHA_TARGET]
        styles = np.ones((len(left), len(GerminationStyle)), bool)
        styles[:, GerminationStyle.GATED_GATE] = (fits | ~retargetable).all(axis=1)
        return styles

    def gates(self) -> BoolArray:
        """``[N, num_ops, S]`` where each op may act now. WAIT acts nowhere and is always open."""
        stage, settled = self.stage, self.settled
        gates = np.zeros((len(stage), len(self.slots.ops), stage.shape[1]), bool)
        budget_left = (self.living.sum(axis=1) < self.max_living) & self.blueprint_gate().any(axis=1)
        trained = (self.epochs_in_stage >= self.rules.min_training_epochs) & self.gradients_ok
        gates[:, LifecycleOp.GERMINATE] = (stage == SeedStage.DORMANT) & budget_left[:, None]
        gates[:, LifecycleOp.ADVANCE] = (
            (stage == SeedStage.GERMINATED)
            | ((stage == SeedStage.TRAINING) & trained)
            | ((stage == SeedStage.BLENDING) & settled)
        )
        blended = ((stage == SeedStage.BLENDING) | (stage == SeedStage.HOLDING)) & settled
        gates[:, LifecycleOp.SET_ALPHA_TARGET] = blended
        gates[:, LifecycleOp.FOSSILIZE] = (stage == SeedStage.HOLDING) & settled & self.measured_in_holding
        gates[:, LifecycleOp.PRUNE] = self.living & (stage != SeedStage.FOSSILIZED)
        if self.slots.internal_levels:
            gates[:, LifecycleOp.GROW_INTERNAL], gates[:, LifecycleOp.SHRINK_INTERNAL] = self._level_gates()
        return gates & (self.enabled & ~self.pruning)[:, None, :]

    def _level_gates(self) -> tuple[BoolArray, BoolArray]:
        """``[N, S]`` each: where one more internal level exists and fits the budget, and where one can go."""
        hosts, slots = self._places
        price = self.costs.level[hosts, np.maximum(self.blueprint, Blueprint.NOOP), slots]
        left = self.parameter_budget - self.extra_parameters
        develops = (self.stage >= SeedStage.TRAINING) & (self.stage <= SeedStage.HOLDING)
        adjustable = develops & (self.internal_kind != SeedInternalKind.NONE)
        grows = adjustable & (self.internal_level < self.internal_max_level) & (price <= left[:, None])
        return grows, adjustable & (self.internal_level > 0)

    # ------------------------------------------------------------------ ops
    def apply(self, actions: IntArray) -> None:
        """Begin an epoch: execute one action per host.

        Args:
            actions: ``[N, 8]`` head indices in ``HEAD_NAMES`` order. The caller has checked them against the masks.

        Raises:
            ValueError: an op on a slot whose gate is closed (nothing has been changed then).
        """
        op, slot = actions[:, 0], actions[:, 1]
        hosts = np.flatnonzero(op != LifecycleOp.WAIT)
        closed = ~self.gates()[hosts, op[hosts], slot[hosts]]
        if closed.any():
            host = hosts[closed][0]
            raise ValueError(
                f"{LifecycleOp(int(op[host])).name} on slot {self.slots.slot_ids[slot[host]]} of host {host} is "
                f"closed in stage {SeedStage(int(self.stage[host, slot[host]])).name}: choose actions by the mask"
            )
        self.alpha_before[:] = self.alpha
        self.mode[self.mode == AlphaMode.STEP] = AlphaMode.HOLD
        handlers: dict[LifecycleOp, Callable[[IntArray, IntArray, IntArray], None]] = {
            LifecycleOp.GERMINATE: self._germinate,
            LifecycleOp.SET_ALPHA_TARGET: self._set_alpha_target,
            LifecycleOp.PRUNE: self._prune,
            LifecycleOp.FOSSILIZE: self._fossilize,
            LifecycleOp.ADVANCE: self._advance,
            LifecycleOp.GROW_INTERNAL: self._move_level,
            LifecycleOp.SHRINK_INTERNAL: self._move_level,
        }
        for kind, handle in handlers.items():
            chosen = np.flatnonzero(op == kind)
            if len(chosen):
                handle(chosen, slot[chosen], actions[chosen])

    def _enter(self, hosts: IntArray, slots: IntArray, stage: SeedStage | IntArray) -> None:
        self.stage[hosts, slots] = stage
        self.epochs_in_stage[hosts, slots] = 0
        self.measured_in_holding[hosts, slots] = False

    def _germinate(self, hosts: IntArray, slots: IntArray, actions: IntArray) -> None:
        blueprint, style, tempo, target = actions[:, 2], actions[:, 3], actions[:, 4], actions[:, 5]
        self._enter(hosts, slots, SeedStage.GERMINATED)
        self.blueprint[hosts, slots] = blueprint
        self.internal_level[hosts, slots] = _START_LEVEL[_KIND[blueprint]]
        self.algorithm[hosts, slots] = _STYLE_ALGORITHM[style]
        self.curve[hosts, slots] = _STYLE_CURVE[style]
        self.tempo_epochs[hosts, slots] = _TEMPO_EPOCHS[tempo]
        self.alpha_target[hosts, slots] = _TARGETS[target]
        self.gradients_ok[hosts, slots] = False

    def _advance(self, hosts: IntArray, slots: IntArray, actions: IntArray) -> None:
        starts_blending = self.stage[hosts, slots] == SeedStage.TRAINING
        self._enter(hosts, slots, self.stage[hosts, slots] + 1)
        h, s = hosts[starts_blending], slots[starts_blending]
        self._ramp(h, s, self.alpha_target[h, s], self.tempo_epochs[h, s], self.curve[h, s])

    def _set_alpha_target(self, hosts: IntArray, slots: IntArray, actions: IntArray) -> None:
        style, target, speed, curve = actions[:, 3], actions[:, 5], actions[:, 6], actions[:, 7]
        held = self.stage[hosts, slots] == SeedStage.HOLDING
        self._enter(hosts[held], slots[held], SeedStage.BLENDING)
        self.algorithm[hosts, slots] = _STYLE_ALGORITHM[style]
        self._ramp(hosts, slots, _TARGETS[target], _SPEED_EPOCHS[speed], curve)

    def _prune(self, hosts: IntArray, slots: IntArray, actions: IntArray) -> None:
        epochs = np.where(self.alpha[hosts, slots] == 0.0, 0, _SPEED_EPOCHS[actions[:, 6]])
        at_once = epochs == 0
        self._remove(hosts[at_once], slots[at_once], SeedStage.PRUNED, Fate.PRUNED)
        h, s = hosts[~at_once], slots[~at_once]
        self._ramp(h, s, np.zeros(len(h)), epochs[~at_once], actions[~at_once, 7])
        self.pruning[h, s] = True

    def _fossilize(self, hosts: IntArray, slots: IntArray, actions: IntArray) -> None:
        self._enter(hosts, slots, SeedStage.FOSSILIZED)
        self.fates[hosts, Fate.FOSSILIZED] += 1  # one op per host, so no host repeats

    def _move_level(self, hosts: IntArray, slots: IntArray, actions: IntArray) -> None:
        self.internal_level[hosts, slots] += np.where(actions[:, 0] == LifecycleOp.GROW_INTERNAL, 1, -1)

    def _ramp(self, hosts: IntArray, slots: IntArray, target: FloatArray, epochs: IntArray, curve: IntArray) -> None:
        jump = epochs == 0
        self.alpha_start[hosts, slots] = self.alpha[hosts, slots]
        self.alpha_target[hosts, slots] = target
        self.ramp_epochs[hosts, slots] = epochs
        self.ramp_elapsed[hosts, slots] = 0
        self.curve[hosts, slots] = curve
        self.mode[hosts, slots] = np.where(jump, AlphaMode.STEP, AlphaMode.RAMP)
        self.alpha[hosts[jump], slots[jump]] = target[jump]

    def _remove(self, hosts: IntArray, slots: IntArray, stage: SeedStage, fate: Fate | None) -> None:
        """Empty the slots and leave them in ``stage``; book the seeds' fate."""
        self._enter(hosts, slots, stage)
        self.blueprint[hosts, slots] = NO_BLUEPRINT
        for array in (
            self.internal_level,
            self.algorithm,
            self.mode,
            self.tempo_epochs,
            self.ramp_epochs,
            self.ramp_elapsed,
            self.alpha,
            self.alpha_start,
            self.alpha_target,
            self.alpha_before,
            self.pruning,
            self.gradients_ok,
        ):
            array[hosts, slots] = 0
        self.curve[hosts, slots] = AlphaCurve.LINEAR
        if fate is not None:
            np.add.at(self.fates[:, fate], hosts, 1)

    # ------------------------------------------------------------------ time
    def tick(self) -> None:
        """Let one epoch pass: emptied slots move towards DORMANT, ramps move, ages grow."""
        age, stage = self.epochs_in_stage, self.stage
        for now, stays, then in (
            (SeedStage.RESETTING, 1, SeedStage.DORMANT),
            (SeedStage.EMBARGOED, self.rules.embargo_epochs, SeedStage.RESETTING),
            (SeedStage.PRUNED, 1, SeedStage.EMBARGOED),
        ):
            self._enter(*_cells((stage == now) & (age >= stays)), then)
        ramping = self.mode == AlphaMode.RAMP
        self.ramp_elapsed[ramping] += 1
        progress = self.ramp_elapsed[ramping] / self.ramp_epochs[ramping]
        share = curve_value(self.curve[ramping], progress)
        start, target = self.alpha_start[ramping], self.alpha_target[ramping]
        self.alpha[ramping] = np.where(progress >= 1.0, target, start + (target - start) * share)
        arrived = ramping & (self.ramp_elapsed >= self.ramp_epochs)
        self.mode[arrived] = AlphaMode.HOLD
        self._remove(*_cells(arrived & self.pruning), SeedStage.PRUNED, Fate.PRUNED)
        self.epochs_in_stage += 1

    # ------------------------------------------------------------------ ends
    def clear(self, hosts: IntArray) -> None:
        """Start an episode: every slot of these hosts is DORMANT and the books are empty."""
        chosen = np.zeros_like(self.pruning)
        chosen[hosts] = True
        self._remove(*_cells(chosen), SeedStage.DORMANT, None)
        self.fates[hosts] = 0

    def strip(self, hosts: IntArray) -> None:
        """End an episode: remove every seed of these hosts that is not FOSSILIZED (the commit)."""
        self._keep(hosts, self.stage[hosts] == SeedStage.FOSSILIZED, Fate.UNFINISHED)

    def roll_back(self, hosts: IntArray, fossils: BoolArray) -> None:
        """Undo these hosts to a snapshot that held only ``fossils`` (``[len(hosts), S]``)."""
        lost = (self.stage[hosts] == SeedStage.FOSSILIZED) & ~fossils
        self.fates[hosts, Fate.FOSSILIZED] -= lost.sum(axis=1)
        self._keep(hosts, fossils, Fate.ROLLED_BACK)

    def _keep(self, hosts: IntArray, kept: BoolArray, fate: Fate) -> None:
        doomed = np.zeros_like(self.pruning)
        doomed[hosts] = ~kept
        alive = doomed & self.living
        self._remove(*_cells(alive), SeedStage.DORMANT, fate)
        self._remove(*_cells(doomed & ~alive), SeedStage.DORMANT, None)


def _cells(mask: BoolArray) -> tuple[IntArray, IntArray]:
    """Host and slot indices of the cells that ``mask`` (``[N, S]``) marks."""
    hosts, slots = np.nonzero(mask)
    return hosts, slots
