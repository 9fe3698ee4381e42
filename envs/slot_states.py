"""What the slots of all hosts are doing, as arrays, and which ops are open to them.

One gate table (:meth:`SlotStates.gates`) decides both what the action mask admits and what
:meth:`envs.lifecycle.Lifecycle.apply` executes, so the two cannot disagree. Which stages an op acts on follows from
``TRANSITIONS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from envs.episode_state import EpisodeArrays, per_host, per_slot
from envs.grown import GrownSeeds
from envs.limits import DEFAULT_BUDGET_FACTOR, LifecycleRules, ParameterCosts, SeedCosts
from envs.seed_report import SeedReport
from envs.slots import SlotConfig
from envs.vocabulary import (
    ADVANCES,
    COMPUTING_STAGES,
    DEVELOPING_STAGES,
    INTERNAL_KINDS,
    INTERNAL_MAX_LEVEL,
    INTERNAL_START_LEVEL,
    LIVING_STAGES,
    NO_BLUEPRINT,
    NO_SHAPE,
    RETARGETABLE_STAGES,
    AlphaAlgorithm,
    AlphaCurve,
    AlphaMode,
    Blueprint,
    GerminationStyle,
    LifecycleOp,
    SeedInternalKind,
    SeedStage,
    stages_before,
)

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

KIND = np.array([INTERNAL_KINDS.get(blueprint, SeedInternalKind.NONE) for blueprint in Blueprint])
"""Internal structure of each blueprint."""
START_LEVEL = np.array([INTERNAL_START_LEVEL[kind] for kind in SeedInternalKind])
"""Level of each internal structure at germination."""
_LIVING, _COMPUTING = (np.isin(list(SeedStage), stages) for stages in (LIVING_STAGES, COMPUTING_STAGES))
MAX_LEVEL = np.array([INTERNAL_MAX_LEVEL[kind] for kind in SeedInternalKind])
"""Highest level of each internal structure."""


class Fate(IntEnum):
    """How a seed's life ended, for the episode's books."""

    FOSSILIZED = 0
    PRUNED = 1
    UNFINISHED = 2  # removed at the episode's end because it was not fossilised
    ROLLED_BACK = 3  # lost when the governor restored a snapshot


class SlotStates(EpisodeArrays):
    """State of ``N × S`` slots; :class:`envs.lifecycle.Lifecycle` alone writes it.

    Args:
        num_hosts: N.
        slots: The hosts' slots.
        rules: Limits.
        costs: Gives the parameter counts of the hosts at hand; asked now and whenever an episode starts.

    Attributes:
        stage: ``[N, S]`` ``SeedStage``, like all others but ``seeds_begun`` and ``fates``.
        blueprint: Kind of the seed, ``NO_BLUEPRINT`` where there is none.
        internal_level: Levels of its internal structure that are on.
        algorithm: ``AlphaAlgorithm``.
        mode: ``AlphaMode``.
        curve: Shape of a ramp, that under way or the one that blending will begin with.
        tempo_epochs: Length of that one.
        blend_shape: ``RampShape`` of the ramp of blending in place of the curve; ``NO_SHAPE`` where nobody chose one.
        blend_start: Share of that ramp that passes before the shape begins.
        blend_end: Share of it at which the shape ends.
        ramp_epochs: Length of the ramp under way.
        ramp_elapsed: Epochs of it that are done.
        epochs_in_stage: Age of the stage.
        alpha: Blend amplitude, 0 to 1.
        alpha_start: Where the ramp began.
        alpha_target: Where alpha goes or rests.
        alpha_before: Alpha at the end of the epoch before.
        pruning: A scheduled prune is ramping alpha down.
        gradients_ok: The seed's latest gradients are finite.
        measured_in_holding: Its contribution was measured since HOLDING began.
        seed_number: Which of its host's seeds it is, counted from 1 as they begin; 0 where there is none.
        seeds_begun: ``[N]`` seeds that have begun in each host's episode.
        fates: ``[N, len(Fate)]`` seeds per fate.
    """

    stage: IntArray = per_slot(SeedStage.DORMANT)
    blueprint: IntArray = per_slot(NO_BLUEPRINT)
    internal_level: IntArray = per_slot(0)
    algorithm: IntArray = per_slot(AlphaAlgorithm.ADD)
    mode: IntArray = per_slot(AlphaMode.HOLD)
    curve: IntArray = per_slot(AlphaCurve.LINEAR)
    tempo_epochs: IntArray = per_slot(0)
    blend_shape: IntArray = per_slot(NO_SHAPE)
    blend_start: FloatArray = per_slot(0.0)
    blend_end: FloatArray = per_slot(1.0)
    ramp_epochs: IntArray = per_slot(0)
    ramp_elapsed: IntArray = per_slot(0)
    epochs_in_stage: IntArray = per_slot(0)
    alpha: FloatArray = per_slot(0.0)
    alpha_start: FloatArray = per_slot(0.0)
    alpha_target: FloatArray = per_slot(0.0)
    alpha_before: FloatArray = per_slot(0.0)
    pruning: BoolArray = per_slot(False)
    gradients_ok: BoolArray = per_slot(False)
    measured_in_holding: BoolArray = per_slot(False)
    seed_number: IntArray = per_slot(0)
    seeds_begun: IntArray = per_host(0)
    fates: IntArray = per_host(0, len(Fate))

    def __init__(
        self, num_hosts: int, slots: SlotConfig, rules: LifecycleRules, costs: Callable[[], ParameterCosts]
    ) -> None:
        super().__init__(num_hosts, slots.num_slots)
        self.slots, self.rules = slots, rules
        self.enabled = np.array(slots.enabled_mask)
        self.max_living = slots.num_slots if rules.max_living_seeds is None else rules.max_living_seeds
        self._costs_at_hand = costs
        self.costs = costs()
        num_hosts, num_slots = self.stage.shape
        self._places = np.arange(num_hosts)[:, None], np.arange(num_slots)[None]

    def start(self, hosts: IntArray) -> None:
        """Begin an episode: every slot of these hosts is DORMANT, the books are empty, prices are the new hosts'."""
        super().start(hosts)
        self.costs = self._costs_at_hand()

    # ------------------------------------------------------------------ what holds now
    @property
    def living(self) -> BoolArray:
        """``[N, S]`` whether a seed occupies the slot (GERMINATED to FOSSILIZED)."""
        return _LIVING[self.stage]

    @property
    def computing(self) -> BoolArray:
        """``[N, S]`` whether the slot's seed has weights that are run in training (TRAINING to FOSSILIZED)."""
        return _COMPUTING[self.stage]

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
        return KIND[np.maximum(self.blueprint, Blueprint.NOOP)]

    @property
    def internal_max_level(self) -> IntArray:
        """``[N, S]`` highest level of the slot's seed, at least 1 always."""
        return MAX_LEVEL[self.internal_kind]

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
        grown = (self.internal_level - START_LEVEL[kind]) * costs.level[hosts, blueprint, slots]
        gates = np.where(self.algorithm == AlphaAlgorithm.GATE, costs.gate, 0)
        return costs.blueprint[hosts, blueprint, slots] + grown + gates

    @property
    def parameter_budget(self) -> IntArray:
        """``[N]`` parameters that living seeds may have together."""
        if self.rules.parameter_budget is not None:
            return np.full(len(self.costs.host), self.rules.parameter_budget, np.int64)
        return DEFAULT_BUDGET_FACTOR * self.costs.host

    @property
    def awaits_measurement(self) -> BoolArray:
        """``[N, S]`` seeds in HOLDING whose contribution was not measured since it began."""
        return (self.stage == SeedStage.HOLDING) & ~self.measured_in_holding

    def committed(self) -> GrownSeeds:
        """What these hosts have committed by now."""
        fossils = self.stage == SeedStage.FOSSILIZED
        return GrownSeeds(
            np.where(fossils, self.blueprint, NO_BLUEPRINT),
            self.algorithm.copy(),
            self.alpha.copy(),
            self.internal_level.copy(),
        )

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
        settled = self.settled
        gates = np.zeros((len(self.stage), len(self.slots.ops), self.stage.shape[1]), bool)
        budget_left = (self.living.sum(axis=1) < self.max_living) & self.blueprint_gate().any(axis=1)
        # What a seed must have done in its stage before it may leave it for the next one.
        ready = {
            SeedStage.TRAINING: (self.epochs_in_stage >= self.rules.min_training_epochs) & self.gradients_ok,
            SeedStage.BLENDING: settled,
        }
        gates[:, LifecycleOp.GERMINATE] = self._in(stages_before(SeedStage.GERMINATED)) & budget_left[:, None]
        for stage in ADVANCES:
            gates[:, LifecycleOp.ADVANCE] |= (self.stage == stage) & ready.get(stage, np.True_)
        gates[:, LifecycleOp.SET_ALPHA_TARGET] = self._in(RETARGETABLE_STAGES) & settled
        committable = self._in(stages_before(SeedStage.FOSSILIZED)) & settled
        gates[:, LifecycleOp.FOSSILIZE] = committable & self.measured_in_holding
        gates[:, LifecycleOp.PRUNE] = self._in(DEVELOPING_STAGES)
        if self.slots.internal_levels:
            gates[:, LifecycleOp.GROW_INTERNAL], gates[:, LifecycleOp.SHRINK_INTERNAL] = self._level_gates()
        return gates & (self.enabled & ~self.pruning)[:, None, :]

    def _in(self, stages: Iterable[SeedStage]) -> BoolArray:
        """``[N, S]`` slots in one of the stages."""
        return np.isin(self.stage, list(stages))

    def _level_gates(self) -> tuple[BoolArray, BoolArray]:
        """``[N, S]`` each: where one more internal level exists and fits the budget, and where one can go."""
        hosts, slots = self._places
        price = self.costs.level[hosts, np.maximum(self.blueprint, Blueprint.NOOP), slots]
        left = self.parameter_budget - self.extra_parameters
        adjustable = self._in(DEVELOPING_STAGES) & self.computing & (self.internal_kind != SeedInternalKind.NONE)
        grows = adjustable & (self.internal_level < self.internal_max_level) & (price <= left[:, None])
        return grows, adjustable & (self.internal_level > 0)
