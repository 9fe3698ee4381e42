"""The reports of a store and how far each is on its way: written with the decision, gone once it was taken in."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from uuid import UUID

from pydantic import ValidationError

from esper_ray.controller.chain import UNREADABLE, Broken, erase, read_row, write
from esper_ray.controller.records import Records, StoreFailed, decision_of
from esper_ray.controller.reports.field_report import Experience, FieldReport
from esper_ray.controller.store import written_beside
from esper_ray.reading import describe_problems


class DeliveryState(StrEnum):
    """How far a report is."""

    PENDING = "pending"
    """It is to be sent, or sent again."""
    DELIVERED = "delivered"
    """Whoever learns from it has it for good."""
    PARKED = "parked"
    """It was sent often enough without that: it stays until somebody puts it back, or they say that they have it."""


@dataclass(frozen=True)
class Entry:
    """A report on its way.

    Attributes:
        report: It.
        sequence: Of the decision that it is about.
        state: How far it is.
        attempts: How often it was sent since it was written, or put back.
        due_ns: When it is to be sent; of one that is delivered when it goes. Nanoseconds since 1970.
        note: Why it is parked; else empty.
    """

    report: FieldReport
    sequence: int
    state: DeliveryState
    attempts: int
    due_ns: int
    note: str


@dataclass(frozen=True)
class UnreadableEntry:
    """A row in which a report was.

    Attributes:
        report_id: Its key.
        reason: Why it cannot be read, in a line.
    """

    report_id: str
    reason: str


def read_entry(connection: sqlite3.Connection, report_id: str) -> Entry | None:
    """A report on its way; None of one that is not there, or has gone.

    Args:
        connection: In one snapshot.
        report_id: Of the report.

    Raises:
        Broken: it is not as it was written, or of another version.
    """
    row = read_row(connection, "reports", report_id)
    if row is None:
        return None
    try:
        report, state = FieldReport.model_validate_json(row["content"]), DeliveryState(row["state"])
    except ValidationError as error:
        raise Broken(f"row {report_id} of reports: {describe_problems(error)}") from error
    except ValueError as error:
        raise Broken(f"row {report_id} of reports: {error}") from error
    return Entry(report, row["sequence"], state, row["attempts"], row["due_ns"], row["note"])


def entries(records: Records, state: DeliveryState | None = None) -> Iterator[Entry | UnreadableEntry]:
    """Reports in the order of their decisions, those that cannot be read as such.

    Args:
        records: Of the store; may be those of a service at work.
        state: Only of that one; None for all.

    Raises:
        StoreFailed: not even which there are.
    """
    with records.snapshot() as connection:
        listed = "SELECT report_id FROM reports WHERE ? IS NULL OR state = ? ORDER BY sequence"
        keys = [key for (key,) in connection.execute(listed, (state, state))]
    for key in keys:
        try:
            with records.snapshot() as connection:
                entry = read_entry(connection, key)
        except StoreFailed as error:
            yield UnreadableEntry(str(key), str(error))
            continue
        if entry is not None and state in (None, entry.state):
            yield entry


def read_experience(records: Records, report_id: str) -> Experience | None:
    """A report with its decision, as it is sent; None of one that is not there, or has gone.

    Raises:
        StoreFailed: one of the two cannot be read.
    """
    with records.snapshot() as connection:
        entry = read_entry(connection, report_id)
        if entry is None:
            return None
        row = read_row(connection, "decisions", entry.sequence)
        if row is None:
            raise Broken(f"row {entry.sequence} of decisions, which the report {report_id} is about, is gone")
        try:
            return Experience(report=entry.report, decision=decision_of(row))
        except (ValueError, TypeError) as error:
            raise Broken(f"row {entry.sequence} of decisions cannot be read: {' '.join(str(error).split())}") from error


def count(records: Records, state: DeliveryState) -> int:
    """How many reports there are of a state."""
    with records.snapshot() as connection:
        (found,) = connection.execute("SELECT count(*) FROM reports WHERE state = ?", (state,)).fetchone()
    return int(found)


def due(records: Records, now_ns: int, horizon_ns: int, most: int, leave: Collection[str]) -> list[tuple[str, int]]:
    """What is to be sent now, the longest due first.

    Args:
        records: Of the store.
        now_ns: Nanoseconds since 1970.
        horizon_ns: What is due later than that, nobody has put there: the clock has gone back, and it is due.
        most: So many at most.
        leave: Reports that are left out.

    Returns:
        Ids, and how often each was sent.
    """
    with records.snapshot() as connection:
        found = connection.execute(
            "SELECT report_id, attempts FROM reports WHERE state = ? AND (due_ns <= ? OR due_ns > ?) "
            "ORDER BY due_ns, sequence LIMIT ?",
            (DeliveryState.PENDING, now_ns, horizon_ns, most + len(leave)),
        ).fetchall()
    return [(key, attempts) for key, attempts in found if key not in leave][:most]


def next_due(records: Records) -> int | None:
    """When the next one is to be sent, nanoseconds since 1970; None where none is."""
    with records.snapshot() as connection:
        (found,) = connection.execute(
            "SELECT min(due_ns) FROM reports WHERE state = ?", (DeliveryState.PENDING,)
        ).fetchone()
    return None if found is None else int(found)


def over(records: Records, now_ns: int, most: int) -> list[str]:
    """Delivered reports that have lain long enough.

    Args:
        records: Of the store.
        now_ns: Nanoseconds since 1970.
        most: So many at most.
    """
    with records.snapshot() as connection:
        found = connection.execute(
            "SELECT report_id FROM reports WHERE state = ? AND due_ns <= ? ORDER BY due_ns LIMIT ?",
            (DeliveryState.DELIVERED, now_ns, most),
        ).fetchall()
    return [key for (key,) in found]


# ------------------------------------------------------------------ changes, each in a transaction that is under way
def note_sent(connection: sqlite3.Connection, report_id: str, due_ns: int) -> None:
    """One was sent, and is due again then.

    Raises:
        Broken: it is not as it was written; it is left so.
    """
    if read_entry(connection, report_id) is not None:
        write(
            connection,
            "reports",
            "UPDATE reports SET attempts = attempts + 1, due_ns = ? WHERE report_id = ? AND state = ?",
            *(due_ns, report_id, DeliveryState.PENDING),
        )


def park(connection: sqlite3.Connection, report_id: str, why: str) -> bool:
    """One is not sent any more.

    Returns:
        Whether it was to be.

    Raises:
        Broken: it is not as it was written; it is left so.
    """
    return read_entry(connection, report_id) is not None and bool(
        write(
            connection,
            "reports",
            "UPDATE reports SET state = ?, note = ? WHERE report_id = ? AND state = ?",
            *(DeliveryState.PARKED, why, report_id, DeliveryState.PENDING),
        )
    )


def note_delivered(connection: sqlite3.Connection, report_id: UUID, run_id: str, gone_ns: int) -> bool:
    """Whoever learns from one has it, and it goes then.

    Returns:
        Whether nobody knew yet; false of one that is not there, has gone, or is of another run.

    Raises:
        Broken: it is not as it was written; it is left so.
    """
    entry = read_entry(connection, str(report_id))
    if entry is None or entry.report.run_id != run_id:
        return False
    return bool(
        write(
            connection,
            "reports",
            "UPDATE reports SET state = ?, due_ns = ?, note = '' WHERE report_id = ? AND state <> ?",
            *(DeliveryState.DELIVERED, gone_ns, str(report_id), DeliveryState.DELIVERED),
        )
    )


def forget(connection: sqlite3.Connection, report_ids: Sequence[str]) -> int:
    """Let reports go that were delivered; those that are not as they were written stay.

    Returns:
        How many went.
    """
    gone = 0
    for report_id in report_ids:
        try:
            gone += erase(connection, "reports", report_id)
        except (Broken, *UNREADABLE):
            continue
    return gone


def requeue(directory: Path, now_ns: int, report_id: str | None = None) -> tuple[str, ...]:
    """Put parked reports back, into the store of a service that may be at work in another process.

    Args:
        directory: Of the service.
        now_ns: Nanoseconds since 1970.
        report_id: Of one; None for all.

    Returns:
        Ids of those that were.

    Raises:
        StoreFailed: there is no such report, or it is not parked; it cannot be read; or it could not be written.
    """
    with Records.open(directory) as records:
        found = list(entries(records, None if report_id is not None else DeliveryState.PARKED))
    if report_id is not None:
        found = [each for each in found if str(_id_of(each)) == report_id]
        if not found:
            raise StoreFailed(f"there is no report {report_id} in {directory}: it has gone, or never was")
    parked = [each for each in found if isinstance(each, Entry) and each.state is DeliveryState.PARKED]
    if report_id is not None and not parked:
        (only,) = found
        why = only.reason if isinstance(only, UnreadableEntry) else f"it is {only.state}, not {DeliveryState.PARKED}"
        raise StoreFailed(f"the report {report_id} cannot be put back: {why}")
    if not parked:
        return ()
    with written_beside(directory) as connection:
        back = [
            row["report_id"]
            for each in parked
            for row in write(
                connection,
                "reports",
                "UPDATE reports SET state = ?, attempts = 0, due_ns = ?, note = '' WHERE report_id = ? AND state = ?",
                *(DeliveryState.PENDING, now_ns, str(each.report.report_id), DeliveryState.PARKED),
            )
        ]
    return tuple(back)


def _id_of(entry: Entry | UnreadableEntry) -> str:
    return entry.report_id if isinstance(entry, UnreadableEntry) else str(entry.report.report_id)
