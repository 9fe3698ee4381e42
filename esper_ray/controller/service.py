"""The controller: a run's state in, a command out, at once and whatever happens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self
from uuid import uuid4

from envs.live.errors import LiveError
from envs.live.places import Kind
from envs.slots import SlotConfig
from esper_ray.bus.streams import Stream
from esper_ray.controller.aftermath import Aftermath
from esper_ray.controller.attending import Attendance
from esper_ray.controller.breakers import BreakerState, CircuitBreaker, RetryConfig
from esper_ray.controller.catalogue import CatalogueCache, read_catalogue
from esper_ray.controller.commands import (
    AdaptationCommand,
    CommandResult,
    Reason,
)
from esper_ray.controller.deciding import Deciding
from esper_ray.controller.decision_telemetry import DecisionTelemetry
from esper_ray.controller.disk import Disk
from esper_ray.controller.emitting import Telemetry
from esper_ray.controller.envelope import Envelope, seal
from esper_ray.controller.evaluation import (
    ControllerConfig,
    Evaluation,
)
from esper_ray.controller.guarded_catalogue import GuardedCatalogue
from esper_ray.controller.isolated_policy import IsolatedPolicy
from esper_ray.controller.keys import KeyRing
from esper_ray.controller.nonces import NonceLedger
from esper_ray.controller.proposals import Ending
from esper_ray.controller.records import DIRECTORY
from esper_ray.controller.reports.observing import end_within
from esper_ray.controller.store import Store
from esper_ray.controller.trial import TRIAL_SECONDS, trial_request, try_policy
from esper_ray.controller.updates.live_policy import LivePolicy
from esper_ray.controller.updates.telling import UpdateTelling
from esper_ray.controller.verifier import EnvelopeRefused, Redelivered, Untrusted, Verifier
from esper_ray.errors import UserError
from esper_ray.live.choosing import Training
from esper_ray.live.policies import check_training
from policies.strategic.messages import SystemState

logger = logging.getLogger(__name__)

RESULT_SECONDS = 5.0
"""Within which a result that came over a bus is on the disk, and that a command leaves over it."""


class Controller:
    """Decides beside runs. It never raises to who asks, and returns in time, if need be with a PAUSE.

    Any number of threads may ask; runs do not wait for one another.

    Args:
        policy: Who proposes, as :func:`esper_ray.controller.proposing.load_proposer` takes it: a name, the directory of
            an export, the file of a schedule, ``FILE.py:CLASS``.
        directory: For what outlives this process; no second controller uses it.
        config: How it decides.
        observe: Decide and record, but send nothing.
        amendments: JSON file of one's own for the catalogue (docs/catalogue.md).
        watch: Is shown every evaluation, after its command has left and in their order. The next decision's record
            waits for it: it must be quick.
        keys: Gives the keys to sign with and to verify by, where messages come over a bus (:mod:`.remote`); without it
            nothing is signed, as nothing leaves this process.
        telemetry: Where metrics and events go, by default nowhere; whoever gives it closes it, after the controller.
        now: Seconds on a clock that never goes back.
        time_ns: Nanoseconds since 1970.

    Raises:
        UserError: no such policy, a directory that cannot be used, or a catalogue that cannot be read.

    Attributes:
        live: The policy that decides, which updates change (:mod:`esper_ray.controller.updates.considering`).
        observe: As given.
        slots: That a run must have; None if any will do.
    """

    def __init__(
        self,
        policy: str | Path,
        directory: str | Path = DIRECTORY,
        *,
        config: ControllerConfig | None = None,
        observe: bool = False,
        amendments: Path | None = None,
        watch: Callable[[Evaluation], None] | None = None,
        keys: Callable[[], KeyRing] | None = None,
        telemetry: Telemetry | None = None,
        now: Callable[[], float] = time.monotonic,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        settings = config or ControllerConfig()
        self.observe, self._now, self._time_ns, self._keys = observe, now, time_ns, keys
        self._ledger = NonceLedger("service")
        self._verifier = None if keys is None else Verifier(keys, self._ledger, time_ns)
        self._other_breakers: list[CircuitBreaker] = []
        self._catalogue_breaker = CircuitBreaker("catalogue", settings.breakers, now)
        telemetry, seconds = telemetry or Telemetry(), settings.catalogue_ms / 1e3
        with ExitStack() as undo:  # what is made last ends first
            self._store = undo.enter_context(Store(Path(directory)))
            self._catalogue = GuardedCatalogue(
                CatalogueCache(lambda: read_catalogue(amendments), now=now),
                self._catalogue_breaker,
                RetryConfig(seconds=seconds),
                seconds,
                now,
            )
            undo.callback(self._catalogue.close)
            self._disk = Disk()
            self._after = Aftermath(self._disk, self._store, DecisionTelemetry(telemetry), watch)
            undo.callback(self._after.close)
            undo.callback(self._disk.close)
            self.live = LivePolicy(
                str(policy),
                self._store,
                Path(directory),
                self._disk,
                lambda name: self._started(name, settings),
                lambda: CircuitBreaker("policy", settings.breakers, now),
                settings.risk.thresholds.expected_risk_pauses,
                UpdateTelling(telemetry),
                time_ns,
            )
            undo.callback(self.live.close)
            self._deciding = Deciding(
                self.live,
                self._catalogue,
                self._store,
                self._disk,
                self._after,
                lambda: self._breaker_states,
                self._sent_as,
                settings,
                observe,
                now,
                time_ns,
            )
            self._hello = self.live.wait_ready()
            self.slots = self._hello.slots
            try_policy(self._policy.ask, self.slots, settings.inference_ms / 1e3)
            # Threads begin with what they are first given, which takes milliseconds that a decision has not.
            self._catalogue.look()
            self._disk.later(lambda: None)
            self._closing = undo.pop_all()

    def close(self) -> None:
        """End the worker, write what is left to be written, and give the directory back."""
        self._closing.close()

    def _started(self, name: str, settings: ControllerConfig) -> IsolatedPolicy:
        return IsolatedPolicy(
            name,
            deadline_s=settings.inference_ms / 1e3,
            standby=settings.standby,
            now=self._now,
            on_ready=self._after.worker_ready,
            on_lost=self._after.worker_lost,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ for runs
    def attend(self, training: Training) -> Attendance:
        """Decide for a model that somebody grows (:class:`esper_ray.live.growing.Controlling`).

        Raises:
            UserError: the policy was trained on other hosts, or cannot decide for such a run.
        """
        return self._attend(training, f"run-{uuid4().hex[:12]}")

    def named(self, run_id: str) -> Named:
        """The same for a run of this name, on which the policy's draws depend: one name, one course.

        Raises:
            UserError: there is such a run already.
        """
        if self.knows(run_id):
            raise UserError(f"there is a run {run_id!r} already: give another name, or another directory")
        return Named(self, run_id)

    def knows(self, run_id: str) -> bool:
        """Whether it has decided on a run of that name, in this process or one before.

        Raises:
            StoreFailed: the store cannot be read.
        """
        return self._store.state(run_id) is not None

    def check_training(self, kind: Kind, slots: int, max_epochs: int, force: bool) -> None:
        """What the policy cannot do at all is said here, and not with every epoch.

        Args:
            kind: Of the run's slots.
            slots: Their number.
            max_epochs: Of the run; of another length than the policy was trained over it is only warned.
            force: The policy may have been trained on another topology.

        Raises:
            UserError: the policy was trained on other hosts, or cannot decide for such a run.
        """
        who, trained_on = f"the policy {self._policy.name}", self._hello.trained_on
        if trained_on is not None:
            of, shortest, longest = trained_on.topologies, trained_on.shortest, trained_on.longest
            try:
                check_training(who, of, shortest, longest, kind, max_epochs, force)
            except LiveError as error:
                raise UserError(str(error)) from error
        question = trial_request(self.slots or SlotConfig.for_row(slots), max_epochs)
        reply = self._policy.ask(question, TRIAL_SECONDS)
        if reply.ending is Ending.ERROR:
            raise UserError(f"{who} cannot decide for this run: {reply.reason}")

    def _attend(self, training: Training, run_id: str) -> Attendance:
        self.check_training(training.kind, training.slots, training.max_epochs, training.force)
        return Attendance(self, training, run_id)

    def evaluate_epoch(self, state: SystemState, hook_ms: float | None = None) -> AdaptationCommand:
        """Decide what a run does with its next epoch.

        Args:
            state: Of the run at the end of an epoch.
            hook_ms: Time that the probe added to the last step and the executor to the last end of an epoch,
                milliseconds. What the probe takes at the end of an epoch is no part of it.
        """
        return self._deciding.on_epoch(state, hook_ms).command

    def evaluate_message(
        self, state: SystemState, hook_ms: float | None, envelope: Envelope, faults: frozenset[Reason]
    ) -> Evaluation | None:
        """The same of a packet that came in an envelope, of which :attr:`Evaluation.content` is to be sent.

        Args:
            state: As for :meth:`evaluate_epoch`.
            hook_ms: Likewise.
            envelope: As :meth:`verified` returned it.
            faults: Of the way that it came, for the risk table.

        Returns:
            What was decided; None of a message that was decided on before, which is left at that.

        Raises:
            StoreFailed: that its command leaves could not be noted in time; it is not to be sent.
        """
        try:
            entering = partial(self.verifier.enter, envelope=envelope)
            evaluation = self._deciding.on_epoch(state, hook_ms, faults, entering)
        except EnvelopeRefused as refused:
            logger.warning("run %s, epoch %d: a packet came again: %s", state.run_id, state.epoch, refused)
            return None
        if evaluation.recorded:
            # A service that is killed must not be followed by one that takes what has left for what never did.
            self._disk.within(lambda: None, RESULT_SECONDS)
        return evaluation

    def verified(self, content: bytes, kind: Stream) -> Envelope:
        """Whether a message is to be believed that came over a bus.

        Args:
            content: Exactly as it came.
            kind: That it must be.

        Raises:
            Redelivered: its effect is committed.
            EnvelopeRefused: it is not.
            StoreFailed: the store cannot be read.
        """
        envelope = self.verifier.verify(content, kind, None)
        if self._store.has_taken(self._ledger, envelope):
            raise Redelivered(Untrusted.REPLAYED_NONCE, "its effect is committed", envelope)
        return envelope

    @property
    def verifier(self) -> Verifier:
        """Of messages.

        Raises:
            RuntimeError: it was made without keys.
        """
        if self._verifier is None:
            raise RuntimeError("a controller takes messages only if it was made with keys")
        return self._verifier

    def guard(self, name: str) -> CircuitBreaker:
        """A breaker around something else that it calls, shown with its own."""
        breaker = CircuitBreaker(name, self._deciding.config.breakers, self._now)
        self._other_breakers.append(breaker)
        return breaker

    def take_back(self, command_id: str) -> None:
        """Note that a command was refused on its way. It raises nothing, and waits for nobody."""
        self._disk.later(lambda: self._store.take_back(command_id))

    def evaluate_step(self, state: SystemState) -> AdaptationCommand:
        """Look at a run within an epoch: at latencies, losses and isolation, without asking the policy.

        Only trouble is recorded and remembered. The command is to wait, or a PAUSE.

        Args:
            state: Of the run; its seeds are not looked at.
        """
        return self._deciding.on_step(state).command

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Runs that it has decided on since it began, in their order."""
        return self._deciding.run_ids

    @property
    def workers(self) -> tuple[int, ...]:
        """Process ids of the policy's workers that could answer now: of the one that does, of the one on standby."""
        return self._policy.pids

    def report(self, result: CommandResult) -> None:
        """Take in what became of a command. It raises nothing, and waits for nobody."""
        run = self._deciding.run(result.run_id)
        run.latencies = replace(run.latencies, apply=result.apply_ms)
        self._after.answered(result)

    def take_result(self, result: CommandResult, envelope: Envelope) -> None:
        """The same of one that came in an envelope: it is on record when this returns.

        Args:
            result: Of the command.
            envelope: As :meth:`verified` returned it.

        Raises:
            StoreFailed: it is not on record.
            EnvelopeRefused: it was taken in before.
        """
        entering = partial(self.verifier.enter, envelope=envelope)
        command_id, content = str(result.command_id), result.model_dump_json().encode()
        self._disk.within(lambda: self._store.attach_result(command_id, content, entering), RESULT_SECONDS)
        run = self._deciding.run(result.run_id)
        run.latencies = replace(run.latencies, apply=result.apply_ms)
        self._after.told_result(result)

    def ended(self, run_id: str) -> None:
        """Take in that a run is over: decisions that are followed still are reported on as they are.

        It raises nothing, and waits for nobody.
        """

        def close() -> None:
            with self._store.transaction() as connection:
                end_within(connection, run_id, self._time_ns())

        self._disk.later(close)

    @property
    def store(self) -> Store:
        """Of its decisions and the reports on them, for whoever delivers those; open until the controller closes."""
        return self._store

    # ------------------------------------------------------------------ its parts
    @property
    def _breaker_states(self) -> dict[str, BreakerState]:
        breakers = (self.live.incumbent.breaker, self._catalogue_breaker, *self._other_breakers)
        return {breaker.name: breaker.state for breaker in breakers}

    @property
    def _policy(self) -> IsolatedPolicy:
        return self.live.incumbent.policy

    def _sent_as(self, command: AdaptationCommand) -> bytes:
        """What of a command leaves: over a bus in an envelope."""
        content = command.model_dump_json().encode()
        if self._keys is None:
            return content
        return seal(self._keys().signing, Stream.COMMANDS, command.run_id, content, self._time_ns()).content


@dataclass(frozen=True)
class Named:
    """A controller for one run (:class:`esper_ray.live.growing.Controlling`); :meth:`Controller.named` makes it."""

    controller: Controller
    run_id: str

    def attend(self, training: Training) -> Attendance:
        """Decide for the model of that run, as :meth:`Controller.attend`."""
        return self.controller._attend(training, self.run_id)
