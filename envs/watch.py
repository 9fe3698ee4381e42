"""Observes, measures and guards N growing hosts, whoever trains them: our greenhouse, or somebody's own loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from envs.action_masks import build_mask, mask_size, refusals
from envs.counterfactuals import Counterfactuals, evaluate_with_counterfactuals
from envs.episode_state import EpisodeArrays, EpisodeState, per_host
from envs.governor import Governor, Panic
from envs.grown import GrownSeeds
from envs.lifecycle import Lifecycle
from envs.limits import LifecycleRules, ParameterCosts
from envs.measurements import SeedGradients, SlotMeasurements
from envs.observation import ObservationLayout
from envs.progress import HostProgress
from envs.slots import SlotConfig
from envs.snapshots import SavedWeights, Snapshots
from envs.vocabulary import HEAD_NAMES, NO_BLUEPRINT, LifecycleOp

Observation = dict[str, npt.NDArray[Any]]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class GrowingHosts(Protocol):
    """N hosts with the seeds in them: weights and data, and nothing else."""

    @property
    def costs(self) -> ParameterCosts:
        """Parameter counts of the hosts at hand."""
        ...

    def sync(self, lifecycle: Lifecycle) -> None:
        """Hold exactly the seeds that the lifecycle says have weights."""
        ...

    def validate(self, hosts: IntArray, alpha: FloatArray, lifecycle: Lifecycle) -> tuple[FloatArray, FloatArray]:
        """See :class:`envs.counterfactuals.Evaluate`."""
        ...


class EpisodeSteps(EpisodeArrays):
    """Where each host is in its episode.

    Attributes:
        epoch: ``[N]`` epochs done.
        over: ``[N]`` episodes that ended with the step before; the next step starts new ones.
        last_actions: ``[N, 8]`` what was executed last.
        last_success: ``[N]`` whether the last action was executed as asked.
    """

    epoch: IntArray = per_host(0)
    over: BoolArray = per_host(False)
    last_actions: IntArray = per_host(LifecycleOp.WAIT, len(HEAD_NAMES))
    last_success: BoolArray = per_host(True)

    def tick(self) -> None:
        """Count an epoch."""
        self.epoch += 1

    def book(self, executed: IntArray, success: BoolArray, over: BoolArray) -> None:
        """Take in what an epoch's actions were, and which episodes it ended."""
        self.last_actions, self.last_success, self.over = executed, success, over


@dataclass(frozen=True)
class Epoch:
    """What an epoch gave.

    Attributes:
        loss: ``[N]``, validation, of the hosts as they are afterwards; 0 where a host does not run.
        accuracy: ``[N]`` percent, likewise.
        panic: ``[N]`` ``Panic``; a host that has one was rolled back.
        measured: Contributions of the hosts that were due and are well.
    """

    loss: FloatArray
    accuracy: FloatArray
    panic: IntArray
    measured: Counterfactuals

    @property
    def stopped(self) -> BoolArray:
        """``[N]`` hosts that the governor stopped."""
        return self.panic != Panic.NONE


class HostWatch:
    """The slots of N hosts, what is known of them, and who looks after them.

    An epoch is :meth:`begin_epoch`, the training by whoever trains, :meth:`end_epoch`, and :meth:`observe`.

    Args:
        num_hosts: N.
        hosts: What grows.
        saved: Where the governor's copies of them are kept.
        slots: Their slots.
        rules: Limits of the stage machine.
        chance_accuracy: Accuracy of guessing, in percent; see :class:`envs.governor.Governor`.
        counterfactual_interval: Epochs between measurements of contributions.
        pairs: Whether interactions are measured with them.
        guarded: Whether the governor stops hosts and saves them.
    """

    def __init__(
        self,
        num_hosts: int,
        hosts: GrowingHosts,
        saved: SavedWeights,
        slots: SlotConfig,
        rules: LifecycleRules,
        chance_accuracy: float | None,
        counterfactual_interval: int,
        pairs: bool = True,
        guarded: bool = True,
    ) -> None:
        self.hosts, self.num_hosts, self.slots = hosts, num_hosts, slots
        self.counterfactual_interval, self.pairs, self.guarded = counterfactual_interval, pairs, guarded
        self.layout = ObservationLayout(slots)
        self.lifecycle = Lifecycle(num_hosts, slots, rules, lambda: hosts.costs)
        self.snapshots = Snapshots(num_hosts, slots.num_slots, saved)
        self.progress = HostProgress(num_hosts)
        self.measurements = SlotMeasurements(num_hosts, slots.num_slots)
        self.governor = Governor(num_hosts, chance_accuracy)
        self.steps = EpisodeSteps(num_hosts)
        self.mask = np.zeros((num_hosts, mask_size(slots.heads)), np.int8)

    @property
    def episode_state(self) -> list[EpisodeState]:
        """What is known for one episode, the hosts themselves left out."""
        return [value for name, value in vars(self).items() if isinstance(value, EpisodeState) and name != "hosts"]

    def open(self, hosts: IntArray, grown: GrownSeeds | None = None) -> None:
        """Begin an episode of these hosts, for which all state starts anew, and book their untrained results."""
        if grown is not None:
            self.lifecycle.plant(grown, hosts)
        self.hosts.sync(self.lifecycle)
        self.progress.open(hosts, *self._evaluate(hosts))
        if self.guarded:
            self.snapshots.take(hosts, self.lifecycle)

    # ------------------------------------------------------------------ an epoch
    def admit(self, actions: IntArray, idle: BoolArray) -> tuple[IntArray, BoolArray, dict[str, BoolArray]]:
        """Look at actions before they are executed.

        Args:
            actions: ``[N, 8]`` head indices.
            idle: ``[N]`` hosts whose action is ignored.

        Returns:
            What is to be executed, with WAIT in place of what the last observation's mask refuses and of what is
            ignored; which hosts' actions it refuses, ``[N]``; and the heads at fault, name → ``[N]``.

        Raises:
            ValueError: an index outside its head.
        """
        refused = refusals(actions, self.mask, self.slots.heads)
        wrong = np.any(list(refused.values()), axis=0) & ~idle
        return np.where((wrong | idle)[:, None], LifecycleOp.WAIT, actions), wrong, refused

    def begin_epoch(self, executed: IntArray) -> None:
        """Execute one action per host (``[N, 8]``) and let an epoch pass in the slots."""
        self.lifecycle.apply(executed)
        self.lifecycle.tick()
        self.hosts.sync(self.lifecycle)

    def book_gradients(self, gradients: SeedGradients) -> None:
        """Take in an epoch's gradients."""
        self.measurements.take_gradients(gradients)
        # Finite is enough to advance: straight-through gradients grow with the time in TRAINING, every update is
        # clipped anyway, and a gate on their size would lock a seed in for good.
        self.lifecycle.book_gradients(np.isfinite(gradients.norm))

    def end_epoch(self, running: BoolArray, ending: BoolArray) -> Epoch:
        """Evaluate, measure what is due, and look after hosts that are in trouble.

        Due are the contributions in hosts that go on and whose turn it is, or in which HOLDING has just begun.

        Args:
            running: ``[N]`` hosts whose episode is not over.
            ending: ``[N]`` those among them whose episode ends with this epoch; their unfinished seeds are gone.
        """
        turn = self.steps.epoch % self.counterfactual_interval == 0
        due = running & ~ending & (turn | self.lifecycle.awaits_measurement.any(axis=1))
        loss, accuracy, measured = evaluate_with_counterfactuals(
            self.hosts.validate, self.lifecycle, running, due, self.pairs
        )
        panic = self.governor.judge(loss, accuracy, ending | ~running)
        panic = np.where(running & self.guarded, panic, Panic.NONE)
        epoch = Epoch(loss, accuracy, panic, measured.only(panic == Panic.NONE))
        self.measurements.forget(~self.lifecycle.living)
        self.measurements.take_counterfactuals(epoch.measured)
        self.lifecycle.book_measurement(~np.isnan(epoch.measured.contribution))
        if self.guarded:
            self._guard(epoch.stopped, running & ~ending, loss, accuracy)
        self.progress.observe(loss, accuracy)
        return epoch

    def _guard(self, stopped: BoolArray, going_on: BoolArray, loss: FloatArray, accuracy: FloatArray) -> None:
        """Roll back the hosts that the governor stopped (their results are replaced in place), save the healthy."""
        if stopped.any():
            hosts = np.flatnonzero(stopped)
            self.snapshots.restore(hosts, self.lifecycle)
            loss[hosts], accuracy[hosts] = self._evaluate(hosts)
            self.measurements.forget(~self.lifecycle.living)
        # A fossil is saved in its own epoch, or in the first healthy one after it: what is restored must be worth it.
        unsaved = self.governor.healthy & self.snapshots.lacks(self.lifecycle)
        hosts = np.flatnonzero((self.governor.snapshot_due() | unsaved) & ~stopped & going_on)
        if len(hosts):
            self.snapshots.take(hosts, self.lifecycle)

    def _evaluate(self, hosts: IntArray) -> tuple[FloatArray, FloatArray]:
        return self.hosts.validate(hosts, self.lifecycle.alpha[hosts], self.lifecycle)

    # ------------------------------------------------------------------ keeping
    def arrays(self) -> dict[str, dict[str, npt.NDArray[Any]]]:
        """Copies of all that is known, by part and name; not the hosts, and not what the governor has saved of them."""
        return {name: part.arrays() for name, part in self._parts().items()}

    def set_arrays(self, arrays: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> None:
        """Take over what :meth:`arrays` gave.

        Raises:
            ValueError: arrays of another world.
        """
        for name, part in self._parts().items():
            part.set_arrays(arrays[name])

    def _parts(self) -> dict[str, EpisodeArrays]:
        return {name: part for name, part in vars(self).items() if isinstance(part, EpisodeArrays)}

    # ------------------------------------------------------------------ what goes out
    def observe(self, max_epochs: int) -> Observation:
        """What a policy reads of every host: ``obs``, ``blueprint_indices`` and ``action_mask``.

        Args:
            max_epochs: Length of an episode.
        """
        steps, life = self.steps, self.lifecycle
        self.mask = build_mask(life)
        obs = self.layout.encode(
            self.progress,
            life,
            self.measurements,
            steps.epoch,
            max_epochs,
            steps.last_actions[:, 0],
            steps.last_success,
        )
        blueprints = np.where(life.living, life.blueprint, NO_BLUEPRINT)
        return {"obs": obs, "blueprint_indices": blueprints, "action_mask": self.mask.copy()}
