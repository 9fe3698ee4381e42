"""Which updates came, and what became of them, as the service's store has it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from esper_ray.controller.chain import read_row, write
from esper_ray.controller.records import Records, StoreFailed
from esper_ray.controller.store import written_beside
from esper_ray.controller.updates.policy_update import AUDIENCE
from policies.strategic.packet_values import Message, Name, Natural

Nanoseconds = Annotated[int, Field(ge=0, lt=2**63)]
SUBJECT = "updates"


class UpdateState(StrEnum):
    """Where an update is."""

    REJECTED = "rejected"
    """It never decided."""
    PROBATION = "probation"
    """It decides, and is watched."""
    ACCEPTED = "accepted"
    """It decides, or did before a later one."""
    ROLLED_BACK = "rolled_back"
    """It decided, and never will again."""


IN_FORCE = (UpdateState.PROBATION, UpdateState.ACCEPTED)
"""States of updates of which the latest decides."""


class UpdateRecord(Message):
    """One update."""

    sequence: Natural = 0
    """Number of its row."""
    envelope: Name
    """SHA-256 of the envelope that it came in."""
    version: Natural | None = None
    """That it says it has; None where it cannot be read, as in the next two."""
    sha256: Name | None = None
    """Of its weights, as its manifest says."""
    policy: Name | None = None
    """Version of the policy that it is, as its decisions carry it: SHA-256 of its manifest."""
    before: Name | None = None
    """Version of the policy that it took the place of; None of one that was rejected."""
    state: UpdateState
    """Where it is."""
    reason: str = ""
    """Why it was rejected or rolled back."""
    detail: str = ""
    """The same in a line."""
    trained_on: str = ""
    """What its last training was, it says."""
    at_ns: Nanoseconds
    """When it was considered, nanoseconds since 1970."""
    ended_at_ns: Nanoseconds | None = None
    """When it was rolled back, likewise."""
    inferences: Natural = 0
    """Evaluations in probation in which it was asked."""
    anomalies: Natural = 0
    """Of these, in which it did what counts against it."""
    ordered: bool = False
    """Somebody said that it is to be rolled back."""


_COLUMNS = tuple(name for name in UpdateRecord.model_fields if name != "sequence")


def updates_in(records: Records) -> list[UpdateRecord]:
    """All updates, in the order in which they came.

    Raises:
        StoreFailed: one is not as it was written.
    """
    with records.snapshot() as connection:
        keys = connection.execute(f"SELECT DISTINCT key FROM chain WHERE subject = '{SUBJECT}' ORDER BY key")
        return [_record(connection, key) for (key,) in keys.fetchall()]


def is_ordered(records: Records, sequence: int) -> bool:
    """Whether somebody said that an update is to be rolled back.

    Raises:
        StoreFailed: its row is not as it was written.
    """
    with records.snapshot() as connection:
        return _record(connection, sequence).ordered


def in_force(history: Sequence[UpdateRecord]) -> list[UpdateRecord]:
    """Those of which the last decides, and each one took the place of the one before."""
    return [record for record in history if record.state in IN_FORCE]


def insert(connection: sqlite3.Connection, record: UpdateRecord) -> UpdateRecord:
    """Enter an update, within a transaction; returns it with its number."""
    values = {name: _stored(getattr(record, name)) for name in _COLUMNS} | {"run_id": AUDIENCE}
    (row,) = write(
        connection,
        SUBJECT,
        f"INSERT INTO {SUBJECT} ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
        *values.values(),
    )
    return _of(row)


def change(connection: sqlite3.Connection, sequence: int, **columns: Any) -> None:
    """Note something of an update, within a transaction."""
    given = ", ".join(f"{name} = ?" for name in columns)
    write(
        connection,
        SUBJECT,
        f"UPDATE {SUBJECT} SET {given} WHERE sequence = ?",
        *map(_stored, columns.values()),
        sequence,
    )


def withdraw(connection: sqlite3.Connection, envelope: str, reason: str) -> None:
    """Note of an update of which nobody knows whether it was entered that it decides nothing."""
    write(
        connection,
        SUBJECT,
        f"UPDATE {SUBJECT} SET state = ?, reason = ? WHERE envelope = ? AND state = ?",
        *(UpdateState.REJECTED.value, reason, envelope, UpdateState.PROBATION.value),
    )


def order_rollback(directory: Path) -> UpdateRecord:
    """Say that the update that decides is to be rolled back; its service obeys at its next evaluation or start.

    Args:
        directory: Of the service, which may be at work in another process.

    Returns:
        The update.

    Raises:
        StoreFailed: no update decides there, it could not be written, or the store has lost something.
    """
    with Records.open(directory) as records:
        deciding = in_force(updates_in(records))
        records.check_end()
    if not deciding:
        raise StoreFailed(f"no update decides in {directory}: there is nothing to be rolled back")
    with written_beside(directory) as connection:
        change(connection, deciding[-1].sequence, ordered=True)
    return deciding[-1]


def _record(connection: sqlite3.Connection, sequence: int) -> UpdateRecord:
    row = read_row(connection, SUBJECT, sequence)
    if row is None:
        raise StoreFailed(f"there is no update {sequence}")
    return _of(row)


def _of(row: dict[str, Any]) -> UpdateRecord:
    return UpdateRecord(
        **{name: row[name] for name in ("sequence", *_COLUMNS) if name not in ("state", "ordered")},
        state=UpdateState(row["state"]),
        ordered=bool(row["ordered"]),
    )


def _stored(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else str(value) if isinstance(value, StrEnum) else value
