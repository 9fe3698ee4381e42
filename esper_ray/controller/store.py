"""What a service has decided, and all that it goes on from: a SQLite file, one commit per decision.

A decision and the state of its run are on disk together or not at all, before its command leaves. Rows of decisions
never change; what became of a command stands beside them.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self

from esper_ray.controller.records import (
    COLUMNS,
    DIRECTORY,
    FILE,
    VERSION,
    Decision,
    Fate,
    Records,
    StoredRun,
    StoreFailed,
    check_version,
    failures,
)
from esper_ray.errors import UserError
from esper_ray.keeping.writing import make_directories

LOCK_FILE = ".lock"
NO_RESULT_EPOCHS = 3
"""After so many epochs a command without a result is lost."""
NOT_DELIVERED, NO_RESULT = "not_delivered", "no_result"
_OPEN = f"fate IN ('{Fate.PENDING}', '{Fate.SENT}')"
_SCHEMA = f"""
CREATE TABLE decisions (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL,
    packet_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    command_id TEXT NOT NULL,
    decided_at_ns INTEGER NOT NULL,
    level TEXT NOT NULL,
    policy_version TEXT,
    action BLOB,
    log_prob REAL,
    proposal BLOB,
    mask BLOB,
    signals BLOB NOT NULL,
    breakers BLOB NOT NULL,
    command BLOB NOT NULL,
    packet BLOB NOT NULL
);
CREATE INDEX decisions_of_run ON decisions (run_id);
CREATE TABLE deliveries (
    sequence INTEGER PRIMARY KEY REFERENCES decisions,
    command_id TEXT NOT NULL UNIQUE,
    run_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    fate TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    result BLOB
);
CREATE INDEX open_deliveries ON deliveries (run_id, epoch) WHERE {_OPEN};
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY,
    memory BLOB NOT NULL,
    hidden BLOB
);
CREATE TABLE orders (
    run_id TEXT PRIMARY KEY,
    paused INTEGER NOT NULL,
    release INTEGER NOT NULL
);
PRAGMA user_version = {VERSION};
"""


class Store(Records):
    """A service's own, in a state directory that no second service uses. Any thread may call it.

    Commands that the service before had not sent are aborted when it is opened.

    Args:
        directory: Is made if it is not there.

    Raises:
        StoreFailed: another service is at work there, or it cannot be written.

    Attributes:
        aborted: Ids of the commands that were.
    """

    def __init__(self, directory: Path = DIRECTORY) -> None:
        try:
            make_directories(directory)
        except UserError as error:
            raise StoreFailed(str(error)) from error
        path = directory / FILE
        with ExitStack() as undo:
            with failures(path):
                self._owned = undo.enter_context(_owned(directory))
                super().__init__(path, undo.enter_context(closing(_writer(path))))
            self.aborted = self._begin()
            undo.pop_all()

    def _begin(self) -> tuple[str, ...]:
        with self._transaction() as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
            check_version(connection, self._path)
            return _changed(
                connection.execute(
                    "UPDATE deliveries SET fate = ?, reason = ? WHERE fate = ? RETURNING command_id",
                    (Fate.ABORTED, NOT_DELIVERED, Fate.PENDING),
                )
            )

    def record(
        self, decision: Decision, state: StoredRun, *, withheld: bool = False, released: bool = False
    ) -> tuple[str, ...]:
        """Commit a decision and its run's new state. Commands of the run that have waited too long are lost with it.

        Args:
            decision: Is pending from now on.
            state: Of its run.
            withheld: The command will not be sent.
            released: An operator's order to leave conservative mode is carried out with it.

        Returns:
            Ids of the commands that are lost.

        Raises:
            StoreFailed: nothing was written, and the state is the one before.
        """
        row = {name: _stored(getattr(decision, name)) for name in COLUMNS}
        holders = ", ".join("?" * len(row))
        with self._transaction() as connection:
            inserted = connection.execute(
                f"INSERT INTO decisions ({', '.join(row)}) VALUES ({holders})", tuple(row.values())
            )
            connection.execute(
                "INSERT INTO deliveries (sequence, command_id, run_id, epoch, fate) VALUES (?, ?, ?, ?, ?)",
                (
                    inserted.lastrowid,
                    decision.command_id,
                    decision.run_id,
                    decision.epoch,
                    Fate.WITHHELD if withheld else Fate.PENDING,
                ),
            )
            _put(connection, decision.run_id, state)
            if released:
                connection.execute("UPDATE orders SET release = 0 WHERE run_id = ?", (decision.run_id,))
            return _changed(
                connection.execute(
                    f"UPDATE deliveries SET fate = ?, reason = ? WHERE run_id = ? AND epoch <= ? AND {_OPEN} "
                    "RETURNING command_id",
                    (Fate.LOST, NO_RESULT, decision.run_id, decision.epoch - NO_RESULT_EPOCHS),
                )
            )

    def mark_sent(self, command_id: str) -> bool:
        """Note that a command is being sent, before it is.

        Returns:
            Whether it may be: false of one that was sent, lost or aborted before.

        Raises:
            StoreFailed: it was not noted.
        """
        return self._settle(command_id, f"fate = '{Fate.PENDING}'", Fate.SENT)

    def abort(self, command_id: str) -> bool:
        """Note that a command will never be sent.

        Returns:
            Whether it was still to be sent.

        Raises:
            StoreFailed: it was not noted.
        """
        return self._settle(command_id, f"fate = '{Fate.PENDING}'", Fate.ABORTED, reason=NOT_DELIVERED)

    def attach_result(self, command_id: str, result: bytes) -> bool:
        """Note the result of a command.

        Returns:
            Whether it was waited for: false the second time, and of a command that is lost or unknown.

        Raises:
            StoreFailed: it was not noted.
        """
        return self._settle(command_id, _OPEN, Fate.ANSWERED, result)

    def _settle(self, command_id: str, where: str, fate: Fate, result: bytes | None = None, reason: str = "") -> bool:
        with self._transaction() as connection:
            changed = connection.execute(
                f"UPDATE deliveries SET fate = ?, result = ?, reason = ? WHERE command_id = ? AND {where}",
                (fate, result, reason, command_id),
            )
            return changed.rowcount == 1

    def checkpoint(self) -> None:
        """Move what was committed from the log into the file: a matter of any thread but one that decides.

        Raises:
            StoreFailed: it could not be moved; it is safe in the log.
        """
        with failures(self._path), closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Give the directory back."""
        with self._turn:
            self._connection.close()
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing."""
        connection = self._connection
        with self._turn, failures(self._path):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite may have taken it back by itself
                    connection.execute("ROLLBACK")
                raise


def give_order(directory: Path, run_id: str, *, paused: bool | None = None, release: bool = False) -> None:
    """Say something of a run to the service that decides on it, which may be another process: the next decision obeys.

    Args:
        directory: Of the service.
        run_id: Of the run.
        paused: Whether it is paused from now on; None leaves that as it is.
        release: End its conservative mode.

    Raises:
        StoreFailed: nobody has decided on such a run, or it could not be written.
    """
    with Records.open(directory) as records:
        if run_id not in (runs := records.runs()):
            raise StoreFailed(f"there is no run {run_id!r} in {directory}: {', '.join(runs) or 'there is none'}")
        before = records.order(run_id)
    path = directory / FILE
    with failures(path), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "INSERT INTO orders VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET paused = excluded.paused, "
            "release = max(release, excluded.release)",
            (run_id, before.paused if paused is None else paused, release),
        )


def _put(connection: sqlite3.Connection, run_id: str, state: StoredRun) -> None:
    connection.execute(
        "INSERT INTO runs VALUES (?, ?, ?) ON CONFLICT DO UPDATE "
        "SET memory = excluded.memory, hidden = excluded.hidden",
        (run_id, state.memory, state.hidden),
    )


def _stored(value: Any) -> Any:
    return bytes(value) if isinstance(value, tuple) else value


def _changed(updated: sqlite3.Cursor) -> tuple[str, ...]:
    return tuple(command_id for (command_id,) in updated.fetchall())


def _writer(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
    except BaseException:
        connection.close()
        raise
    return connection


def _owned(directory: Path) -> IO[str]:
    """The lock of a directory. The system lets go of it when this process ends, however it does.

    SQLite's log needs a local disk, so that the system's lock is enough, and no owner is left over after a crash.
    """
    file = (directory / LOCK_FILE).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise StoreFailed(
            f"{directory} is in use by another controller, process {owner}: stop it, or give another directory"
        ) from None
    except BaseException:
        file.close()
        raise
    return file
