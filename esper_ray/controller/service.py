"""The controller: a run's state in, a command out, at once and whatever happens."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Self
from uuid import uuid4

from envs.live.places import Kind, LiveError
from envs.slots import SlotConfig
from envs.vocabulary import LifecycleOp
from esper_ray.bus.streams import Stream
from esper_ray.controller.aftermath import Aftermath
from esper_ray.controller.asking import Inquiry, ask
from esper_ray.controller.assessment import assess
from esper_ray.controller.attending import Attendance
from esper_ray.controller.breakers import BreakerState, CircuitBreaker, RetryConfig
from esper_ray.controller.case import Case
from esper_ray.controller.catalogue import Catalogue, CatalogueCache, read_catalogue
from esper_ray.controller.commanding import bare_pause, make_command, proposed_operation, record_of
from esper_ray.controller.commands import (
    AdaptationCommand,
    CommandResult,
    CoverageReport,
    Reason,
    SeedOperation,
    Severity,
)
from esper_ray.controller.conservative import ModeEvent
from esper_ray.controller.decision_telemetry import DecisionTelemetry
from esper_ray.controller.disk import Disk
from esper_ray.controller.emitting import Telemetry
from esper_ray.controller.envelope import Envelope, seal
from esper_ray.controller.evaluation import (
    Call,
    ControllerConfig,
    Evaluation,
    Memory,
    PacketRefused,
    Run,
    checked_packet,
)
from esper_ray.controller.guarded_catalogue import GuardedCatalogue
from esper_ray.controller.isolated_policy import IsolatedPolicy
from esper_ray.controller.keys import KeyRing
from esper_ray.controller.nonces import NonceLedger
from esper_ray.controller.operations import mask_without
from esper_ray.controller.proposals import Ending, Proposal, Request, draw_seed
from esper_ray.controller.records import DIRECTORY, Order, StoreFailed
from esper_ray.controller.reports.observing import end_within, observe_within
from esper_ray.controller.reports.windows import Seen
from esper_ray.controller.risk import forbidden
from esper_ray.controller.store import Entering, Store, entering_nothing
from esper_ray.controller.trial import TRIAL_SECONDS, trial_request, try_policy
from esper_ray.controller.updates.live_policy import Incumbent, LivePolicy
from esper_ray.controller.updates.telling import UpdateTelling
from esper_ray.controller.verifier import EnvelopeRefused, Redelivered, Untrusted, Verifier
from esper_ray.errors import UserError
from esper_ray.live.choosing import Training
from esper_ray.live.policies import check_training
from policies.strategic.coverage import Coverage
from policies.strategic.messages import SystemState

logger = logging.getLogger(__name__)

RESULT_SECONDS = 5.0
"""Within which a result that came over a bus is on the disk, and that a command leaves over it."""

_WAIT = SeedOperation(op=LifecycleOp.WAIT)


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
        self.observe, self._config = observe, config or ControllerConfig()
        self._now, self._time_ns, self._keys = now, time_ns, keys
        self._ledger = NonceLedger("service")
        self._verifier = None if keys is None else Verifier(keys, self._ledger, time_ns)
        self._runs: dict[str, Run] = {}
        self._guard = Lock()
        settings = self._config
        self._other_breakers: list[CircuitBreaker] = []
        catalogue_breaker = self._catalogue_breaker = CircuitBreaker("catalogue", settings.breakers, now)
        seconds = settings.catalogue_ms / 1e3
        self._catalogue = GuardedCatalogue(
            CatalogueCache(lambda: read_catalogue(amendments), now=now),
            catalogue_breaker,
            RetryConfig(seconds=seconds),
            seconds,
            now,
        )
        self._store = Store(Path(directory))
        self._disk = Disk()
        telemetry = telemetry or Telemetry()
        self._after = Aftermath(self._disk, self._store, DecisionTelemetry(telemetry), watch)
        try:
            self.live = LivePolicy(
                str(policy),
                self._store,
                Path(directory),
                self._disk,
                lambda name: IsolatedPolicy(
                    name,
                    deadline_s=settings.inference_ms / 1e3,
                    standby=settings.standby,
                    now=now,
                    on_ready=self._after.worker_ready,
                    on_lost=self._after.worker_lost,
                ),
                lambda: CircuitBreaker("policy", settings.breakers, now),
                settings.risk.thresholds.expected_risk_pauses,
                UpdateTelling(telemetry),
                time_ns,
            )
        except BaseException:
            self._close_all_but_policy()
            raise
        try:
            self._hello = self.live.wait_ready()
            self.slots = self._hello.slots
            try_policy(self._policy.ask, self.slots, settings.inference_ms / 1e3)
            # Threads begin with what they are first given, which takes milliseconds that a decision has not.
            self._catalogue.look()
            self._disk.later(lambda: None)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the worker, write what is left to be written, and give the directory back."""
        self.live.close()
        self._close_all_but_policy()

    def _close_all_but_policy(self) -> None:
        self._disk.close()
        self._after.close()
        self._catalogue.close()
        self._store.close()

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
        return self._evaluate(state, lambda call: self._epoch(call, hook_ms)).command

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
            evaluation = self._evaluate(state, lambda call: self._epoch(call, hook_ms), faults, entering)
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
        breaker = CircuitBreaker(name, self._config.breakers, self._now)
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
        return self._evaluate(state, self._step).command

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Runs that it has decided on since it began, in their order."""
        with self._guard:
            return tuple(self._runs)

    @property
    def workers(self) -> tuple[int, ...]:
        """Process ids of the policy's workers that could answer now: of the one that does, of the one on standby."""
        return self._policy.pids

    def report(self, result: CommandResult) -> None:
        """Take in what became of a command. It raises nothing, and waits for nobody."""
        run = self._run(result.run_id)
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
        run = self._run(result.run_id)
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

    # ------------------------------------------------------------------ an evaluation
    def _evaluate(
        self,
        state: object,
        decide: Callable[[Call], Evaluation],
        faults: frozenset[Reason] = frozenset(),
        entering: Entering = entering_nothing,
    ) -> Evaluation:
        began = self._now()
        packet: SystemState | None = None
        try:
            packet = checked_packet(state)
            run = self._run(packet.run_id)
            evaluation = self._in_turn(Call(packet, run, began, self._config, faults, entering), decide)
        except EnvelopeRefused:
            raise
        except PacketRefused as error:
            evaluation = self._unrecorded(packet, Reason.PACKET_REFUSED, str(error))
        except StoreFailed as error:
            evaluation = self._unrecorded(packet, Reason.STORE_FAILED, str(error))
        except Exception as error:
            logger.exception("an evaluation failed")
            evaluation = self._unrecorded(packet, Reason.EVALUATION_FAILED, " ".join(str(error).split()))
        evaluation = replace(
            evaluation,
            milliseconds=1e3 * (self._now() - began),
            breakers=self._breaker_states,
            content=evaluation.content or self._sent_as(evaluation.command),
        )
        self._after.evaluated(evaluation, sent=not self.observe)
        return evaluation

    def _sent_as(self, command: AdaptationCommand) -> bytes:
        """What of a command leaves: over a bus in an envelope."""
        content = command.model_dump_json().encode()
        if self._keys is None:
            return content
        return seal(self._keys().signing, Stream.COMMANDS, command.run_id, content, self._time_ns()).content

    def _in_turn(self, call: Call, decide: Callable[[Call], Evaluation]) -> Evaluation:
        state = call.packet
        if not call.run.turn.acquire(timeout=call.left_to_decide(self._now())):
            return self._unrecorded(state, Reason.TIMEOUT_EVALUATE, "the run's evaluation before is still under way")
        try:
            if call.run.memory is None:
                stored = self._disk.within(lambda: self._store.state(state.run_id), call.left_to_return(self._now()))
                call.run.memory = Memory.of(stored)
            call.memory = call.run.memory
            return decide(call)
        finally:
            call.run.turn.release()

    def _epoch(self, call: Call, hook_ms: float | None) -> Evaluation:
        packet, config = call.packet, self._config
        order = self._disk.within(lambda: self._orders(packet.run_id), call.left_to_return(self._now()))
        incumbent = self.live.incumbent
        before, event = self._released(call.memory, order)
        sheets, faults = self._catalogue.look()
        banned = forbidden(sheets, config.risk.thresholds)
        is_over = packet.max_epochs is not None and packet.epoch >= packet.max_epochs
        mask = mask_without(packet, banned)
        inquiry = (
            self._ask(call, incumbent, mask)
            if not is_over
            else Inquiry(hold=Reason.PACKET_REFUSED, detail="the run is over")
        )
        proposal, proposed, inquiry = _operation(inquiry, packet, sheets)
        self.live.note(incumbent, inquiry)
        coverage = Coverage.of(packet)
        case = Case(
            packet,
            proposed,
            None if proposal is None else proposal.risk,
            sheets,
            coverage.average,
            replace(call.run.latencies, hook=hook_ms),
            faults | call.faults | ({inquiry.fault} if inquiry.fault is not None else set()),
        )
        hold = Reason.OPERATOR if order.paused else inquiry.hold
        found = assess(before.state, case, config.risk, hold)
        if call.left_to_decide(self._now()) <= 0.0:  # whatever was found came too late, and changes nothing
            case = replace(case, operation=None, expected_risk=None, faults=case.faults | {Reason.TIMEOUT_EVALUATE})
            found, proposal = assess(before.state, case, config.risk, hold), None
        command = make_command(
            packet,
            found,
            self._time_ns(),
            proposal=proposal,
            proposed=proposed,
            masked=banned,
            coverage=CoverageReport.of(coverage),
        )
        evaluation = Evaluation(command, 0.0, inquiry.detail, packet, case, found, proposal, found.event or event)
        memory = replace(before, state=found.state)
        if proposal is not None:
            memory = Memory(found.state, proposal.hidden, proposal.policy_version)
        content = self._commit(call, evaluation, memory, mask, released=order.release)
        return replace(evaluation, recorded=True, content=content)

    def _step(self, call: Call) -> Evaluation:
        began = self._now()
        packet = call.packet.model_copy(update={"seeds": (), "budgets": None})
        case = Case(packet, _WAIT, latencies=call.run.latencies)
        found = assess(call.memory.state, case, self._config.risk)
        command = make_command(packet, found, self._time_ns())
        evaluation = Evaluation(command, 0.0, "", call.packet, case, found)
        if found.verdict.severity >= Severity.HIGH:
            content = self._commit(call, evaluation, replace(call.memory, state=found.state), None, of_step=True)
            evaluation = replace(evaluation, event=found.event, recorded=True, content=content)
        call.run.latencies = replace(call.run.latencies, step=1e3 * (self._now() - began))
        return evaluation

    # ------------------------------------------------------------------ its parts
    @property
    def _breaker_states(self) -> dict[str, BreakerState]:
        breakers = (self.live.incumbent.breaker, self._catalogue_breaker, *self._other_breakers)
        return {breaker.name: breaker.state for breaker in breakers}

    @property
    def _policy(self) -> IsolatedPolicy:
        return self.live.incumbent.policy

    def _orders(self, run_id: str) -> Order:
        """What somebody has said of the run; what was said of the policy is done."""
        self.live.obey()
        return self._store.order(run_id)

    def _run(self, run_id: str) -> Run:
        with self._guard:
            return self._runs.setdefault(run_id, Run())

    def _released(self, memory: Memory, order: Order) -> tuple[Memory, ModeEvent | None]:
        if not order.release:
            return memory, None
        mode, event = memory.state.mode.release()
        return replace(memory, state=memory.state.model_copy(update={"mode": mode})), event

    def _ask(self, call: Call, incumbent: Incumbent, mask: tuple[int, ...] | None) -> Inquiry:
        packet = call.packet
        request = Request(
            packet.model_dump_json().encode(),
            draw_seed(packet.run_id, packet.packet_id),
            call.memory.hidden_of(incumbent.policy.version),
            mask,
            self._config.greedy,
        )
        seconds = min(self._config.inference_ms / 1e3, call.left_to_decide(self._now()))
        if seconds <= 0.0:  # which is no fault of the policy
            return Inquiry(fault=Reason.TIMEOUT_EVALUATE, detail="no time was left to ask the policy")
        return ask(incumbent.policy, incumbent.breaker, request, seconds)

    def _commit(
        self,
        call: Call,
        evaluation: Evaluation,
        memory: Memory,
        mask: tuple[int, ...] | None,
        *,
        released: bool = False,
        of_step: bool = False,
    ) -> bytes:
        """Write a decision down with what the next one depends on, or change nothing.

        Returns:
            What is to be sent of its command, as it is on record.

        Raises:
            StoreFailed: it is not written, or nobody knows yet; then the command is never sent.
            EnvelopeRefused: the message was decided on before.
        """
        assert evaluation.assessment is not None
        command = evaluation.command
        content = self._sent_as(command)
        seen = Seen(call.packet, command, opens=not (of_step or self.observe), is_step=of_step)
        decision = record_of(
            command, call.packet, evaluation.assessment, evaluation.proposal, mask, self._breaker_states, content
        )

        def also(connection: sqlite3.Connection) -> None:
            call.entering(connection)
            observe_within(connection, seen, self._config.windows, self._time_ns())

        def write() -> None:
            lost = self._store.record(decision, memory.stored, withheld=self.observe, released=released, also=also)
            if lost:
                self._after.lost(call.packet, lost)

        try:
            self._disk.within(write, call.left_to_return(self._now()))
        except StoreFailed:
            # It may be written all the same: what is being written now, or all but the head file.
            call.run.memory = None
            self._disk.later(lambda: self._store.abort(str(command.command_id)))
            raise
        call.run.memory = memory
        return content

    def _unrecorded(self, packet: SystemState | None, reason: Reason, detail: str) -> Evaluation:
        """A PAUSE that nothing is known of afterwards."""
        run_id, epoch = ("unknown", 0) if packet is None else (packet.run_id, packet.epoch)
        return Evaluation(bare_pause(run_id, epoch, reason, self._time_ns()), 0.0, detail, packet)


@dataclass(frozen=True)
class Named:
    """A controller for one run (:class:`esper_ray.live.growing.Controlling`); :meth:`Controller.named` makes it."""

    controller: Controller
    run_id: str

    def attend(self, training: Training) -> Attendance:
        """Decide for the model of that run, as :meth:`Controller.attend`."""
        return self.controller._attend(training, self.run_id)


def _operation(
    inquiry: Inquiry, packet: SystemState, sheets: Catalogue
) -> tuple[Proposal | None, SeedOperation | None, Inquiry]:
    """A proposal and what it means in the packet's slots; one that means nothing there is a fault of the policy."""
    if inquiry.proposal is None:
        return None, None, inquiry
    try:
        return inquiry.proposal, proposed_operation(inquiry.proposal, packet, sheets), inquiry
    except (ValueError, IndexError) as error:
        detail = f"its action means nothing in these slots: {' '.join(str(error).split())}"
        return None, None, Inquiry(fault=Reason.POLICY_FAILED, detail=detail)
