"""From signals to a decision.

Severity is the highest, the action the most restrictive, the reason that of the most severe signal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from envs.vocabulary import LifecycleOp
from esper_ray.controller.case import BlueprintSheet, Case
from esper_ray.controller.commands import Kind, OptimizerChange, Reason, SeedOperation, Severity, Signal
from esper_ray.controller.signals import FAULTS, OPEN_BREAKERS, ROWS, SHEET_VALUES, TABLE, Origin, Situation
from esper_ray.controller.thresholds import Thresholds


class Action(IntEnum):
    """What becomes of an operation; the higher, the more restrictive."""

    PASS = 0
    SLOW = 1
    PAUSE = 2


@dataclass(frozen=True)
class Verdict:
    """What the risk table says of an evaluation.

    Attributes:
        signals: That fired, in the order of the table.
        action: What becomes of the operation.
    """

    signals: tuple[Signal, ...]
    action: Action

    @property
    def severity(self) -> Severity:
        """Of the most severe signal; INFO where none fired."""
        return _highest(self.signals)

    @property
    def reason(self) -> Reason:
        """Of the first of the most severe signals; POLICY where none fired."""
        return _first(self.signals)

    @property
    def counted(self) -> Severity:
        """Of the most severe signal that counts towards conservative mode, as all do but the lifecycle's."""
        return _highest(self._not_from(Origin.LIFECYCLE))

    @property
    def counted_reason(self) -> Reason:
        """Of that signal."""
        return _first(self._not_from(Origin.LIFECYCLE))

    @property
    def is_clean(self) -> bool:
        """Whether run and service had nothing HIGH or CRITICAL, whatever was proposed."""
        return _highest(self._not_from(Origin.LIFECYCLE, Origin.PROPOSAL)) < Severity.HIGH

    @property
    def breaker_open(self) -> bool:
        """Whether one is."""
        return any(signal.reason in OPEN_BREAKERS for signal in self.signals)

    def _not_from(self, *origins: Origin) -> tuple[Signal, ...]:
        return tuple(signal for signal in self.signals if ROWS[signal.reason].origin not in origins)


@dataclass(frozen=True)
class Decision:
    """What is to be commanded.

    Attributes:
        kind: Of the command.
        reason: Of it.
        operation: Of SEED.
        optimizer: Of OPTIMIZER.
    """

    kind: Kind
    reason: Reason
    operation: SeedOperation | None = None
    optimizer: OptimizerChange | None = None


def judge(now: Situation) -> Verdict:
    """Ask every row of the table.

    Raises:
        ValueError: a fault that is none of the service's.
    """
    faults = now.case.faults
    if not faults <= FAULTS:
        raise ValueError(f"faults must be of {', '.join(sorted(FAULTS))}, got {', '.join(sorted(faults))}")
    signals = tuple(signal for row in TABLE if (signal := row.signal(now)) is not None)
    actions = (_action(signal, now.case) for signal in signals)
    return Verdict(signals, max(actions, default=Action.PASS))


def decide(
    verdict: Verdict,
    operation: SeedOperation | None,
    thresholds: Thresholds,
    conservative: Reason | None = None,
    hold: Reason | None = None,
) -> Decision:
    """What becomes of an operation.

    Args:
        verdict: On it.
        operation: That the policy proposes; None where it proposes nothing, and then the run is paused.
        thresholds: That hold.
        conservative: Why conservative mode pauses all but a PRUNE: what began it in the evaluation in which it begins,
            and then the PAUSE announces it; CONSERVATIVE_MODE as long as it is on; None while it is off.
        hold: Why everything is paused: OPERATOR or WORKER_STARTING. Where the table pauses, the reason is the table's.

    Raises:
        ValueError: nothing is proposed, and nothing says why.
    """
    is_prune = operation is not None and operation.op is LifecycleOp.PRUNE
    pause = verdict.reason if verdict.action is Action.PAUSE else (None if is_prune else conservative) or hold
    if pause is not None:
        announces = conservative not in (None, Reason.CONSERVATIVE_MODE)
        return Decision(Kind.CIRCUIT_BREAKER if announces else Kind.PAUSE, pause)
    if operation is None:
        raise ValueError("nothing is proposed: give a hold, or the fault that says why")
    if verdict.action is Action.SLOW:
        return Decision(Kind.OPTIMIZER, verdict.reason, optimizer=OptimizerChange(rate_factor=thresholds.rate_factor))
    return Decision(Kind.SEED, verdict.reason, operation)


def forbidden(sheets: Mapping[str, BlueprintSheet], thresholds: Thresholds) -> tuple[str, ...]:
    """Blueprints that a policy must not be offered: quarantined ones, and those whose risk or hazards are CRITICAL."""

    def is_critical(sheet: BlueprintSheet) -> bool:
        values = ((ROWS[reason], value(sheet)) for reason, value in SHEET_VALUES.items())
        signals = (row.of(value, None, thresholds) for row, value in values if value is not None)
        return any(signal is not None and signal.severity is Severity.CRITICAL for signal in signals)

    return tuple(name for name, sheet in sheets.items() if is_critical(sheet))


def _action(signal: Signal, case: Case) -> Action:
    """What one signal makes of the operation."""
    if signal.severity >= Severity.HIGH:
        return Action.PAUSE if case.adds or not ROWS[signal.reason].spares else Action.PASS
    return Action.SLOW if case.adds else Action.PASS


def _highest(signals: tuple[Signal, ...]) -> Severity:
    return max((signal.severity for signal in signals), default=Severity.INFO)


def _first(signals: tuple[Signal, ...]) -> Reason:
    """Of the most severe, the first."""
    highest = _highest(signals)
    return next((signal.reason for signal in signals if signal.severity is highest), Reason.POLICY)
