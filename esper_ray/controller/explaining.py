"""What a controller has decided, for people: tables of its records."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import TypeAdapter, ValidationError
from rich import box
from rich.table import Table
from rich.text import Text

from esper_ray.controller.assessment import RunState
from esper_ray.controller.breakers import BreakerState
from esper_ray.controller.commanding import sent_command
from esper_ray.controller.commands import CommandResult, SeedOperation, Signal
from esper_ray.controller.records import Record, Records, StoreFailed, Unreadable

_BREAKERS = TypeAdapter(dict[str, BreakerState])


def decision_table(run_id: str, records: Iterable[Record | Unreadable]) -> Table:
    """Every decision on a run: what the policy proposed, what was commanded and why, and what became of it."""
    table = _table(run_id)
    table.caption = "signals that fired: what was measured, and the threshold that it reached"
    table.add_column("epoch", justify="right")
    for name in ("level", "proposed", "commanded", "reason", "signals", "became"):
        table.add_column(name)
    for record in records:
        if isinstance(record, Unreadable):
            table.add_row("", "", "", "", "", f"row {record.sequence} cannot be read: {record.reason}", "")
        else:
            table.add_row(*_row(record))
    return table


def _row(record: Record) -> tuple[str, ...]:
    decision = record.decision
    try:
        command = sent_command(decision.command)
        became = _became(record)
    except ValueError as error:
        problems = error.error_count() if isinstance(error, ValidationError) else 1
        what = f"row {record.sequence} is of another version: {problems} problems"
        return (str(decision.epoch), decision.level, "", "", "", what, record.fate.value)
    proposed = "–" if command.selection is None else _operation(command.selection.proposed)
    if command.operation is not None:
        commanded = _operation(command.operation)
    elif command.optimizer is not None:
        commanded = f"seeds at {command.optimizer.rate_factor:g} of their rate"
    else:
        commanded = command.kind.value
    signals = "; ".join(map(_signal, command.risk.signals))
    return (str(decision.epoch), decision.level, proposed, commanded, command.reason.value, signals, became)


def _became(record: Record) -> str:
    if record.result is None:
        return " ".join(filter(None, (record.fate.value, record.reason)))
    result = CommandResult.model_validate_json(record.result)
    return result.outcome.value if result.reason is None else f"{result.outcome}: {result.reason}"


def _operation(operation: SeedOperation) -> str:
    words = (operation.op.name, "" if operation.blueprint is None else operation.blueprint.name, operation.slot or "")
    return " ".join(filter(None, words))


def _signal(signal: Signal) -> str:
    of = f" of {signal.subject}" if signal.subject else ""
    return f"{signal.severity.name} {signal.reason}{of} {signal.value:.3g} ({signal.threshold:g})"


def status_table(records: Records) -> Table:
    """Every run that a controller knows, as it is now."""
    table = _table("runs")
    table.add_column("run")
    table.add_column("epoch", justify="right")
    for name in ("level", "mode", "by hand", "last decision"):
        table.add_column(name)
    for run_id in records.runs():
        by_hand, latest = _by_hand(records, run_id), records.latest(run_id)
        if not isinstance(latest, Record):
            table.add_row(run_id, "", "", "", by_hand, "" if latest is None else latest.reason)
            continue
        _, level, _, commanded, reason, *_ = _row(latest)
        decided = f"{commanded} ({reason})"
        table.add_row(run_id, str(latest.decision.epoch), level, _mode(records, run_id), by_hand, decided)
    return table


def breaker_table(records: Records) -> Table:
    """Whether policy and catalogue are asked, as it was when anything was decided last."""
    table = _table("breakers, at the last decision")
    table.add_column("of")
    table.add_column("state")
    latest = records.latest()
    if latest is None:
        return table
    try:
        if isinstance(latest, Unreadable):
            raise ValueError(latest.reason)
        states = _BREAKERS.validate_json(latest.decision.breakers)
    except ValueError:
        table.add_row("", "cannot be read")
        return table
    for name, state in states.items():
        table.add_row(name, state.value)
    return table


def fault_lines(faults: Iterable[str]) -> Text:
    """What is wrong with a store, a line each; nothing of one that is as it was written."""
    return Text("".join(f"not as it was written: {fault}\n" for fault in faults), style="bold red")


def _by_hand(records: Records, run_id: str) -> str:
    try:
        order = records.order(run_id)
    except StoreFailed:
        return "cannot be read"
    return ", ".join(["paused"] * order.paused + ["to be released"] * order.release)


def _mode(records: Records, run_id: str) -> str:
    try:
        stored = records.state(run_id)
        mode = RunState().mode if stored is None else RunState.model_validate_json(stored.memory).mode
    except (ValidationError, StoreFailed):
        return "cannot be read"
    return f"conservative since {mode.reason}" if mode.is_on else "normal"


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
