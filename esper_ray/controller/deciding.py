"""Evaluations: from a packet to the command that is on record, within its deadlines, one run beside another."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from threading import Lock

from envs.vocabulary import LifecycleOp
from esper_ray.controller.aftermath import Aftermath
from esper_ray.controller.asking import Inquiry, ask
from esper_ray.controller.assessment import assess
from esper_ray.controller.breakers import BreakerState
from esper_ray.controller.case import Case
from esper_ray.controller.catalogue import Catalogue
from esper_ray.controller.commanding import bare_pause, make_command, proposed_operation, record_of
from esper_ray.controller.commands import (
    AdaptationCommand,
    CoverageReport,
    Reason,
    SeedOperation,
    Severity,
)
from esper_ray.controller.conservative import ModeEvent
from esper_ray.controller.disk import Disk
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
from esper_ray.controller.operations import mask_without
from esper_ray.controller.proposals import Proposal, Request, draw_seed
from esper_ray.controller.records import Order, StoreFailed
from esper_ray.controller.reports.observing import observe_within
from esper_ray.controller.reports.windows import Seen
from esper_ray.controller.risk import forbidden
from esper_ray.controller.store import Entering, Store, entering_nothing
from esper_ray.controller.updates.live_policy import Incumbent, LivePolicy
from esper_ray.controller.verifier import EnvelopeRefused
from policies.strategic.coverage import Coverage
from policies.strategic.messages import SystemState

logger = logging.getLogger(__name__)

_WAIT = SeedOperation(op=LifecycleOp.WAIT)


class Deciding:
    """Decides, and writes down what it has decided. Any number of threads may ask; runs do not wait for one another.

    Args:
        live: The policy that proposes.
        catalogue: Of blueprints.
        store: Of decisions.
        disk: Writes to it.
        after: Is told of every evaluation.
        breakers: Gives the state of every breaker, by what is called.
        seal: Makes of a command what is sent and put on record.
        config: How it decides.
        observe: Commands are not sent.
        now: Seconds on a clock that never goes back.
        time_ns: Nanoseconds since 1970.

    Attributes:
        config: As given.
    """

    def __init__(
        self,
        live: LivePolicy,
        catalogue: GuardedCatalogue,
        store: Store,
        disk: Disk,
        after: Aftermath,
        breakers: Callable[[], dict[str, BreakerState]],
        seal: Callable[[AdaptationCommand], bytes],
        config: ControllerConfig,
        observe: bool,
        now: Callable[[], float],
        time_ns: Callable[[], int],
    ) -> None:
        self._live, self._catalogue, self._store, self._disk, self._after = live, catalogue, store, disk, after
        self._breakers, self._seal, self.config, self._observe = breakers, seal, config, observe
        self._now, self._time_ns = now, time_ns
        self._runs: dict[str, Run] = {}
        self._guard = Lock()

    def on_epoch(
        self,
        state: object,
        hook_ms: float | None,
        faults: frozenset[Reason] = frozenset(),
        entering: Entering = entering_nothing,
    ) -> Evaluation:
        """Decide what a run does with its next epoch.

        Args:
            state: Of the run at the end of an epoch.
            hook_ms: As for :meth:`esper_ray.controller.service.Controller.evaluate_epoch`.
            faults: Of the way that it came, for the risk table.
            entering: Enters the message that it came in, in the decision's transaction.

        Raises:
            EnvelopeRefused: as ``entering`` does; nothing was decided.
        """
        return self._evaluate(state, lambda call: self._epoch(call, hook_ms), faults, entering)

    def on_step(self, state: object) -> Evaluation:
        """Look at a run within an epoch, without asking the policy; only trouble is recorded."""
        return self._evaluate(state, self._step)

    def run(self, run_id: str) -> Run:
        """What is known of a run, which is new if nothing is."""
        with self._guard:
            return self._runs.setdefault(run_id, Run())

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Runs that were decided on, in their order."""
        with self._guard:
            return tuple(self._runs)

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
            run = self.run(packet.run_id)
            evaluation = self._in_turn(Call(packet, run, began, self.config, faults, entering), decide)
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
            breakers=self._breakers(),
            content=evaluation.content or self._seal(evaluation.command),
        )
        self._after.evaluated(evaluation, sent=not self._observe)
        return evaluation

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
        packet, config = call.packet, self.config
        order = self._disk.within(lambda: self._orders(packet.run_id), call.left_to_return(self._now()))
        incumbent = self._live.incumbent
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
        self._live.note(incumbent, inquiry)
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
        found = assess(call.memory.state, case, self.config.risk)
        command = make_command(packet, found, self._time_ns())
        evaluation = Evaluation(command, 0.0, "", call.packet, case, found)
        if found.verdict.severity >= Severity.HIGH:
            content = self._commit(call, evaluation, replace(call.memory, state=found.state), None, of_step=True)
            evaluation = replace(evaluation, event=found.event, recorded=True, content=content)
        call.run.latencies = replace(call.run.latencies, step=1e3 * (self._now() - began))
        return evaluation

    # ------------------------------------------------------------------ its parts
    def _orders(self, run_id: str) -> Order:
        """What somebody has said of the run; what was said of the policy is done."""
        self._live.obey()
        return self._store.order(run_id)

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
            self.config.greedy,
        )
        seconds = min(self.config.inference_ms / 1e3, call.left_to_decide(self._now()))
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
        content = self._seal(command)
        seen = Seen(call.packet, command, opens=not (of_step or self._observe), is_step=of_step)
        decision = record_of(
            command, call.packet, evaluation.assessment, evaluation.proposal, mask, self._breakers(), content
        )

        def also(connection: sqlite3.Connection) -> None:
            call.entering(connection)
            observe_within(connection, seen, self.config.windows, self._time_ns())

        def write() -> None:
            lost = self._store.record(decision, memory.stored, withheld=self._observe, released=released, also=also)
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
