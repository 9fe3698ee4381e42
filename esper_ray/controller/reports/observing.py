"""Windows and their reports in the store: they change in the transaction of the decision that changes them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from pydantic import ValidationError

from esper_ray.controller.chain import Broken, read_row, write
from esper_ray.controller.commands import CommandResult, Outcome
from esper_ray.controller.records import Fate
from esper_ray.controller.reports.outbox import DeliveryState
from esper_ray.controller.reports.synthesis import synthesise
from esper_ray.controller.reports.windows import Closed, Observation, Seen, WindowConfig, end, observe


def observe_within(connection: sqlite3.Connection, seen: Seen, config: WindowConfig, time_ns: int) -> None:
    """Let the windows of a run see an evaluation, and report on those that close with it.

    Args:
        connection: In the transaction in which the decision is recorded, after it.
        seen: The evaluation.
        config: For how long decisions are followed.
        time_ns: Now, nanoseconds since 1970.

    Raises:
        Broken: what is remembered of the run is not as it was written.
    """
    run_id = seen.packet.run_id
    before = _observation(connection, run_id)
    after, closed = observe(before, seen, config)
    _keep(connection, run_id, before, after, closed, time_ns)


def end_within(connection: sqlite3.Connection, run_id: str, time_ns: int) -> None:
    """Close the windows of a run that is over, and report on them.

    Args:
        connection: In a transaction.
        run_id: Of the run.
        time_ns: Now, nanoseconds since 1970.

    Raises:
        Broken: what is remembered of the run is not as it was written.
    """
    before = _observation(connection, run_id)
    after, closed = end(before)
    _keep(connection, run_id, before, after, closed, time_ns)


def _observation(connection: sqlite3.Connection, run_id: str) -> Observation:
    row = read_row(connection, "windows", run_id)
    if row is None:
        return Observation()
    try:
        return Observation.model_validate_json(row["content"])
    except ValidationError as error:
        raise Broken(f"row {run_id} of windows is of another version: {error.error_count()} problems") from error


def _keep(
    connection: sqlite3.Connection,
    run_id: str,
    before: Observation,
    after: Observation,
    closed: Iterable[Closed],
    time_ns: int,
) -> None:
    for each in closed:
        _report(connection, run_id, each, time_ns)
    if after != before:
        write(
            connection,
            "windows",
            "INSERT INTO windows VALUES (?, ?) ON CONFLICT DO UPDATE SET content = excluded.content",
            *(run_id, after.model_dump_json(exclude_defaults=True).encode()),
        )


def _report(connection: sqlite3.Connection, run_id: str, closed: Closed, time_ns: int) -> None:
    found = connection.execute(
        "SELECT sequence, fate, reason, result FROM deliveries WHERE command_id = ?", (str(closed.window.command_id),)
    ).fetchone()
    if found is None:
        raise Broken(f"the decision of the command {closed.window.command_id} is gone")
    sequence, *delivery = found
    report = synthesise(closed, run_id, *_became(*delivery))
    write(
        connection,
        "reports",
        "INSERT INTO reports (report_id, run_id, sequence, content, state, due_ns) VALUES (?, ?, ?, ?, ?, ?)",
        *(str(report.report_id), run_id, sequence, report.model_dump_json().encode(), DeliveryState.PENDING, time_ns),
    )


def _became(fate: str, reason: str, content: bytes | None) -> tuple[bool | None, list[str]]:
    """Whether a command was applied, None where nothing says so; and where it was not, or nobody knows, why."""
    if fate in (Fate.LOST, Fate.ABORTED):  # what is lost may have been applied
        return (False if fate == Fate.ABORTED else None), [f"its command was {fate}: {reason}"]
    if content is None:
        return None, ["its command has no result yet"]
    try:
        result = CommandResult.model_validate_json(content)
    except ValidationError:
        return None, ["its command's result cannot be read"]
    if result.outcome is Outcome.APPLIED:
        return True, []
    return False, [f"its command was {result.outcome}: {result.reason}"]
