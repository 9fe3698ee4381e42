"""What the service tells of its decisions, as metrics and events."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock

import numpy as np

from esper_ray.controller import telemetry as items
from esper_ray.controller.assessment import Assessment
from esper_ray.controller.breakers import BreakerState
from esper_ray.controller.case import Case
from esper_ray.controller.commands import AdaptationCommand, CommandResult, Kind, Outcome, Reason, Severity, Signal
from esper_ray.controller.conservative import Change
from esper_ray.controller.emitting import Telemetry
from esper_ray.controller.evaluation import Evaluation
from esper_ray.controller.levels import Level
from esper_ray.controller.proposals import Proposal
from esper_ray.controller.signals import FAULTS, TABLE

DURATIONS = 256
"""Evaluations that percentiles are of."""


class DecisionTelemetry:
    """Tells what was decided and what became of it. Any thread may call it.

    Args:
        telemetry: Emits.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._states: dict[str, BreakerState] = {}
        self._levels: dict[str, Level] = {}
        self._durations: deque[float] = deque(maxlen=DURATIONS)
        self._turn = Lock()

    def policy_ready(self, compiled: bool | None = None, compile_warm_ms: float | None = None) -> None:
        """A process of the policy is ready.

        Args:
            compiled: Whether its network is; None where nobody knows.
            compile_warm_ms: Time of its first passes; likewise.
        """
        emit = self._telemetry.emit
        emit(items.COMPILE_ENABLED, None if compiled is None else items.COMPILE_ENABLED.choices[compiled])
        emit(items.COMPILE_WARM_MS, compile_warm_ms)

    def worker_lost(self, reason: str) -> None:
        """A process of the policy ended, or was ended."""
        self._telemetry.emit(items.WORKER_LOST, reason)

    def decided(self, evaluation: Evaluation) -> None:
        """An evaluation is over, and its decision committed if it could be.

        Args:
            evaluation: All of it. What could not be judged or not be written is told by its command alone; of a step
                in which nothing is wrong nothing is told.
        """
        case, assessment = evaluation.case, evaluation.assessment
        with self._turn:
            if case is None or assessment is None:
                self._tell_unjudged(evaluation)
            elif evaluation.recorded:
                self._tell_run(case, evaluation.command, evaluation.proposal)
                self._tell_risk(case, assessment)
                self._tell_mode(evaluation)
                signals = assessment.verdict.signals
                self._tell_command(evaluation, assessment.verdict.severity, _faults(evaluation.command, signals))
            else:
                return
            self._tell_service(evaluation.milliseconds, evaluation.breakers)

    def answered(self, result: CommandResult) -> None:
        """A command's result is here."""
        emit, run_id, epoch = self._telemetry.emit, result.run_id, result.epoch
        emit(items.APPLY_MS, result.apply_ms, run_id, epoch)
        if result.outcome is not Outcome.APPLIED:
            emit(items.COMMAND_REFUSED, f"{result.outcome}: {result.reason}: {result.detail}", run_id, epoch)

    def lost(self, run_id: str, epoch: int, command_ids: Sequence[str]) -> None:
        """Commands have waited too long for a result."""
        for command_id in command_ids:
            self._telemetry.emit(items.COMMAND_LOST, command_id, run_id, epoch)

    # ------------------------------------------------------------------ parts of a decision
    def _tell_unjudged(self, evaluation: Evaluation) -> None:
        emit, command = self._telemetry.emit, evaluation.command
        run, severity = (command.run_id, command.expects.epoch), command.risk.severity
        emit(items.RISK_SEVERITY, severity.name, *run)
        if command.reason in FAULTS:
            emit(items.SIGNAL, severity.name, *run, part=command.reason)
        self._tell_command(evaluation, severity, [command.reason])

    def _tell_run(self, case: Case, command: AdaptationCommand, proposal: Proposal | None) -> None:
        emit, packet = self._telemetry.emit, case.packet
        run = packet.run_id, packet.epoch
        emit(items.VALIDATION_LOSS, packet.validation_loss, *run)
        if proposal is not None:
            emit(items.INFERENCE_MS, proposal.inference_ms, *run)
        if command.coverage is not None:
            emit(items.FEATURE_COVERAGE, command.coverage.average, *run, part="average")
            for kind, share in command.coverage.types.items():
                emit(items.FEATURE_COVERAGE, share, *run, part=kind)
        if command.policy is not None:
            emit(items.POLICY_VERSION, command.policy.version, *run)
            emit(items.ARCHITECTURE_VERSION, command.policy.architecture, *run)

    def _tell_risk(self, case: Case, assessment: Assessment) -> None:
        emit, packet = self._telemetry.emit, case.packet
        run, history = (packet.run_id, packet.epoch), assessment.state.history
        emit(items.LOSS_DELTA, None if packet.validation_loss is None else history.loss_delta, *run)
        emit(items.LOSS_VOLATILITY, None if packet.training_loss is None else history.loss_volatility, *run)
        emit(items.EXPECTED_RISK, case.expected_risk, *run)
        emit(items.BLUEPRINT_RISK, None if case.sheet is None else case.sheet.risk, *run)
        emit(items.RISK_SCORE, assessment.score, *run)
        emit(items.RISK_SEVERITY, assessment.verdict.severity.name, *run)
        fired = {signal.reason: signal.severity.name for signal in assessment.verdict.signals}
        for row in TABLE:
            emit(items.SIGNAL, fired.get(row.reason, items.SIGNAL.choices[0]), *run, part=row.reason)
        level = assessment.state.dashboard.level
        emit(items.RISK_LEVEL, level.name, *run)
        before = self._levels.get(packet.run_id, Level.GREEN)
        if level is not before:
            severity = Severity.WARNING if level > before else Severity.INFO
            emit(items.LEVEL_CHANGED, f"from {before.name} to {level.name}", *run, severity=severity)
        self._levels[packet.run_id] = level

    def _tell_mode(self, evaluation: Evaluation) -> None:
        emit, command, event = self._telemetry.emit, evaluation.command, evaluation.event
        run = command.run_id, command.expects.epoch
        emit(items.CONSERVATIVE, items.CONSERVATIVE.choices[command.risk.conservative], *run)
        if event is not None:
            item = items.MODE_ENTERED if event.change is Change.ENTERED else items.MODE_LEFT
            emit(item, f"{event.change}: {event.reason}", *run)

    def _tell_command(self, evaluation: Evaluation, severity: Severity, faults: Iterable[Reason]) -> None:
        emit, command = self._telemetry.emit, evaluation.command
        run, operation, words = (command.run_id, command.expects.epoch), command.operation, in_words(evaluation)
        emit(items.COMMAND_KIND, command.kind.value, *run)
        emit(items.DECISION, words, *run, severity=severity)
        emit(items.EVALUATE_MS, evaluation.milliseconds, *run)
        if operation is not None:
            emit(items.COMMAND_OP, operation.op.name, *run)
            if operation.blending is not None:
                emit(items.BLENDING_METHOD, operation.blending.method, *run)
        for fault in faults:
            emit(items.DEGRADED, words, *run, part=fault, severity=severity)

    def _tell_service(self, evaluate_ms: float, breakers: Mapping[str, BreakerState]) -> None:
        emit = self._telemetry.emit
        self._durations.append(evaluate_ms)
        median, high = np.quantile(self._durations, (0.5, 0.95)).tolist()
        emit(items.EVALUATE_P50, median)
        emit(items.EVALUATE_P95, high)
        for name, state in breakers.items():
            emit(items.BREAKER_STATE, state.value, part=name)
            before = self._states.get(name, BreakerState.CLOSED)
            if state is not before:
                emit(items.BREAKER_CHANGED, f"from {before} to {state}", part=name)
            self._states[name] = state


def _faults(command: AdaptationCommand, signals: Iterable[Signal]) -> list[Reason]:
    """The controller's own, of a decision that could be judged."""
    starting = [command.reason] if command.reason is Reason.WORKER_STARTING else []
    return [*(signal.reason for signal in signals if signal.reason in FAULTS), *starting]


def in_words(evaluation: Evaluation) -> str:
    """What is commanded and why, in a line."""
    command = evaluation.command
    operation = command.operation
    what = [command.kind.value] if operation is None else [operation.op.name, *filter(None, (operation.slot,))]
    if operation is not None and operation.blueprint is not None:
        what.append(operation.blueprint.name)
    proposed = command.selection.proposed if command.selection is not None else None
    if proposed is not None and command.kind is not Kind.SEED:
        what.append(f"in place of {' '.join(filter(None, (proposed.op.name, proposed.slot)))}")
    signals = ", ".join(
        f"{signal.reason} {signal.value:g} ({signal.severity.name} from {signal.threshold:g})"
        for signal in command.risk.signals
    )
    return "; ".join(filter(None, (f"{' '.join(what)}: {command.reason}", signals, evaluation.detail)))
