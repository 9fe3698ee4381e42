"""The stage machine of all slots of all hosts: what ops do, what time does, how an episode ends.

Nobody else writes the slots' state; what is measured of seeds is handed in to be booked.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from envs.alpha import curve_value, ramp_value
from envs.grown import GrownSeeds
from envs.seed_report import check_internal_levels
from envs.slot_states import KIND, MAX_LEVEL, START_LEVEL, Fate, SlotStates
from envs.vocabulary import (
    ADVANCES,
    ALPHA_SPEED_EPOCHS,
    ALPHA_TARGET_VALUES,
    DEVELOPING_STAGES,
    NO_BLUEPRINT,
    NO_SHAPE,
    STYLE_ALGORITHM,
    STYLE_CURVE,
    TEMPO_EPOCHS,
    TRANSITIONS,
    AlphaAlgorithm,
    AlphaMode,
    LifecycleOp,
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
_NEXT_STAGE = np.array([ADVANCES.get(stage, stage) for stage in SeedStage])


class Lifecycle(SlotStates):
    """The slots of N hosts through their episodes (see :class:`envs.slot_states.SlotStates` for its arrays)."""

    # ------------------------------------------------------------------ what is measured
    def book_gradients(self, finite: BoolArray) -> None:
        """Take in whether each seed's gradients of this epoch were finite, ``[N, S]``."""
        self.gradients_ok = finite

    def book_measurement(self, measured: BoolArray) -> None:
        """Take in which seeds' contributions were measured in this epoch, ``[N, S]``."""
        self.measured_in_holding |= (self.stage == SeedStage.HOLDING) & measured

    # ------------------------------------------------------------------ how seeds will be blended in
    def shape_blending(
        self, hosts: IntArray, slots: IntArray, shape: IntArray, start: FloatArray, end: FloatArray
    ) -> None:
        """Have seeds blended in by a shape of their own instead of their style's curve, as long as nobody retargets.

        Args:
            hosts: ``[m]`` indices, like all others; no seed twice.
            slots: Each with a seed that is not blended in yet.
            shape: ``RampShape``.
            start: Share of the ramp that passes before the shape begins.
            end: Share of it at which the shape ends.

        Raises:
            ValueError: a seed that is past TRAINING, or none; or not 0 <= start < end <= 1. Nothing was changed then.
        """
        stages = self.stage[hosts, slots]
        late = ~np.isin(stages, (SeedStage.GERMINATED, SeedStage.TRAINING))
        if late.any():
            raise ValueError(
                f"slot {self.slots.slot_ids[slots[late][0]]} of host {hosts[late][0]} is "
                f"{SeedStage(int(stages[late][0])).name}: choose how a seed is blended in before it is"
            )
        ramp_value(shape, start, end, 0.0)  # refuses what is no window
        self.blend_shape[hosts, slots] = shape
        self.blend_start[hosts, slots] = start
        self.blend_end[hosts, slots] = end

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
        self.seeds_begun[hosts] += 1  # one op per host, so that no host repeats
        self.seed_number[hosts, slots] = self.seeds_begun[hosts]
        self.blueprint[hosts, slots] = blueprint
        self.internal_level[hosts, slots] = START_LEVEL[KIND[blueprint]]
        self.algorithm[hosts, slots] = _STYLE_ALGORITHM[style]
        self.curve[hosts, slots] = _STYLE_CURVE[style]
        self.tempo_epochs[hosts, slots] = _TEMPO_EPOCHS[tempo]
        self.alpha_target[hosts, slots] = _TARGETS[target]
        self.gradients_ok[hosts, slots] = False

    def _advance(self, hosts: IntArray, slots: IntArray, actions: IntArray) -> None:
        starts_blending = self.stage[hosts, slots] == SeedStage.TRAINING
        self._enter(hosts, slots, _NEXT_STAGE[self.stage[hosts, slots]])
        h, s = hosts[starts_blending], slots[starts_blending]
        self._ramp(h, s, self.alpha_target[h, s], self.tempo_epochs[h, s], self.curve[h, s])

    def _set_alpha_target(self, hosts: IntArray, slots: IntArray, actions: IntArray) -> None:
        style, target, speed, curve = actions[:, 3], actions[:, 5], actions[:, 6], actions[:, 7]
        self.blend_shape[hosts, slots] = NO_SHAPE
        held = self.stage[hosts, slots] == SeedStage.HOLDING
        self._enter(hosts[held], slots[held], SeedStage.BLENDING)
        self.algorithm[hosts, slots] = _STYLE_ALGORITHM[style]
        self._ramp(hosts, slots, _TARGETS[target], _SPEED_EPOCHS[speed], curve)

    def _prune(self, hosts: IntArray, slots: IntArray, actions: IntArray) -> None:
        epochs = np.where(self.alpha[hosts, slots] == 0.0, 0, _SPEED_EPOCHS[actions[:, 6]])
        at_once = epochs == 0
        self._leave(hosts[at_once], slots[at_once], SeedStage.PRUNED, Fate.PRUNED)
        h, s = hosts[~at_once], slots[~at_once]
        self.blend_shape[h, s] = NO_SHAPE
        self._ramp(h, s, np.zeros(len(h)), epochs[~at_once], actions[~at_once, 7])
        self.pruning[h, s] = True

    def _fossilize(self, hosts: IntArray, slots: IntArray, actions: IntArray) -> None:
        self._enter(hosts, slots, SeedStage.FOSSILIZED)
        self.fates[hosts, Fate.FOSSILIZED] += 1

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

    def _leave(self, hosts: IntArray, slots: IntArray, stage: SeedStage, fate: Fate | None) -> None:
        """Empty the slots and leave them in ``stage``; book the seeds' fate."""
        self._empty((hosts, slots))
        self._enter(hosts, slots, stage)
        if fate is not None:
            np.add.at(self.fates[:, fate], hosts, 1)

    # ------------------------------------------------------------------ time
    def tick(self) -> None:
        """Let one epoch pass: emptied slots move towards DORMANT, ramps move, ages grow."""
        age, stage = self.epochs_in_stage, self.stage
        for now, stays in (  # the last first: one stage an epoch
            (SeedStage.RESETTING, 1),
            (SeedStage.EMBARGOED, self.rules.embargo_epochs),
            (SeedStage.PRUNED, 1),
        ):
            (then,) = TRANSITIONS[now]
            self._enter(*_cells((stage == now) & (age >= stays)), then)
        ramping = self.mode == AlphaMode.RAMP
        self.ramp_elapsed[ramping] += 1
        progress = self.ramp_elapsed[ramping] / self.ramp_epochs[ramping]
        shape, window = self.blend_shape[ramping], (self.blend_start[ramping], self.blend_end[ramping])
        by_curve = curve_value(self.curve[ramping], progress)
        share = np.where(shape == NO_SHAPE, by_curve, ramp_value(shape, *window, progress))
        start, target = self.alpha_start[ramping], self.alpha_target[ramping]
        self.alpha[ramping] = np.where(progress >= 1.0, target, start + (target - start) * share)
        arrived = ramping & (self.ramp_elapsed >= self.ramp_epochs)
        self.mode[arrived] = AlphaMode.HOLD
        self._leave(*_cells(arrived & self.pruning), SeedStage.PRUNED, Fate.PRUNED)
        self.epochs_in_stage += 1

    # ------------------------------------------------------------------ beginnings and ends
    def plant(self, grown: GrownSeeds, hosts: IntArray) -> None:
        """Put seeds into hosts whose episode begins, as FOSSILIZED; the population then draws their weights.

        Arguments and errors are those of :meth:`plantable`.
        """
        present = self.plantable(grown, hosts)
        self.stage[present] = SeedStage.FOSSILIZED
        for target, source in (
            (self.blueprint, grown.blueprint),
            (self.algorithm, grown.algorithm),
            (self.internal_level, grown.internal_level),
            (self.alpha, grown.alpha),
            (self.alpha_target, grown.alpha),
            (self.alpha_before, grown.alpha),
        ):
            target[present] = source[present]
        self.seed_number[present] = np.cumsum(present, axis=1)[present]
        self.seeds_begun += present.sum(axis=1)
        self.fates[:, Fate.FOSSILIZED] += present.sum(axis=1)

    def plantable(self, grown: GrownSeeds, hosts: IntArray) -> BoolArray:
        """Where the seeds of these hosts would be, ``[N, S]``; changes nothing.

        Args:
            grown: Of all N hosts; the others' are not looked at.
            hosts: ``[m]`` indices.

        Raises:
            ValueError: arrays of another shape, a kind that the hosts do not offer, a disabled slot, an amplitude, an
                algorithm or an internal level out of range.
        """
        shape = self.stage.shape
        for name, array in vars(grown).items():
            if array.shape != shape:
                raise ValueError(
                    f"grown seeds of {shape[0]} hosts with {shape[1]} slots needed: {name} is {array.shape}"
                )
        present = np.zeros(shape, bool)
        present[hosts] = grown.blueprint[hosts] != NO_BLUEPRINT
        unknown = set(grown.blueprint[present]) - set(np.flatnonzero(self.costs.offered))
        if unknown:
            raise ValueError(f"these hosts offer no blueprint {', '.join(str(kind) for kind in sorted(unknown))}")
        if (present & ~self.enabled).any():
            raise ValueError(f"seeds can only be in the enabled slots, which are {self.enabled.tolist()}")
        alpha = grown.alpha[present]
        if not ((alpha > 0.0) & (alpha <= 1.0)).all():
            raise ValueError(f"the alpha of a grown seed must be above 0 and at most 1, got {alpha.tolist()}")
        algorithm, level = grown.algorithm[present], grown.internal_level[present]
        if not np.isin(algorithm, list(AlphaAlgorithm)).all():
            raise ValueError(f"a grown seed's algorithm must be 0 to {max(AlphaAlgorithm)}, got {algorithm.tolist()}")
        kind = KIND[grown.blueprint[present]]
        check_internal_levels(kind, level, MAX_LEVEL[kind])
        return present

    def strip(self, hosts: IntArray) -> None:
        """End an episode: remove every seed of these hosts that is not FOSSILIZED (the commit)."""
        self._keep(hosts, self.stage[hosts] == SeedStage.FOSSILIZED, Fate.UNFINISHED)

    def settle(self, hosts: IntArray, kept: BoolArray) -> None:
        """End an episode with some unfinished seeds kept, FOSSILIZED at the alpha that they have; the rest is removed.

        Args:
            hosts: ``[m]`` indices.
            kept: ``[m, S]`` slots whose seeds stay.
        """
        chosen = np.zeros_like(self.pruning)
        chosen[hosts] = kept
        h, s = _cells(chosen & self._in(DEVELOPING_STAGES))
        self._enter(h, s, SeedStage.FOSSILIZED)
        self.mode[h, s] = AlphaMode.HOLD
        self.alpha_target[h, s] = self.alpha[h, s]
        self.pruning[h, s] = False
        np.add.at(self.fates[:, Fate.FOSSILIZED], h, 1)
        self.strip(hosts)

    def roll_back(self, hosts: IntArray, fossils: BoolArray) -> None:
        """Undo these hosts to a snapshot that held only ``fossils`` (``[len(hosts), S]``)."""
        lost = (self.stage[hosts] == SeedStage.FOSSILIZED) & ~fossils
        self.fates[hosts, Fate.FOSSILIZED] -= lost.sum(axis=1)
        self._keep(hosts, fossils, Fate.ROLLED_BACK)

    def _keep(self, hosts: IntArray, kept: BoolArray, fate: Fate) -> None:
        doomed = np.zeros_like(self.pruning)
        doomed[hosts] = ~kept
        alive = doomed & self.living
        self._leave(*_cells(alive), SeedStage.DORMANT, fate)
        self._leave(*_cells(doomed & ~alive), SeedStage.DORMANT, None)


def _cells(mask: BoolArray) -> tuple[IntArray, IntArray]:
    """Host and slot indices of the cells that ``mask`` (``[N, S]``) marks."""
    hosts, slots = np.nonzero(mask)
    return hosts, slots
