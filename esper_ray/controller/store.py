"""What a service has decided, and all that it goes on from: a SQLite file, one commit per decision.

A decision and the state of its run are on disk together or not at all, before its command leaves. Rows of decisions
never change; what became of a command stands beside them. All that is written is chained
(:mod:`esper_ray.controller.chain`), and where the chain ends stands in a second file before a command leaves: a store
that is opened is as it was written, or it is refused.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from esper_ray.controller.chain import check_head, tip, write
from esper_ray.controller.envelope import Envelope
from esper_ray.controller.head_file import HEAD_FILE, HeadFile
from esper_ray.controller.nonces import Entry, NonceLedger
from esper_ray.controller.opening import check_whole
from esper_ray.controller.owning import owned
from esper_ray.controller.records import (
    COLUMNS,
    DIRECTORY,
    FILE,
    Decision,
    Fate,
    Records,
    StoredRun,
    StoreFailed,
    failures,
)
from esper_ray.controller.tables import OPEN, PAGE, SCHEMA, VERSION
from esper_ray.errors import UserError
from esper_ray.keeping.writing import make_directories

NO_RESULT_EPOCHS = 3
"""After so many epochs a command without a result is lost."""
NOT_DELIVERED, NO_RESULT = "not_delivered", "no_result"
Entering = Callable[[sqlite3.Connection], object]
"""Enters a message in a transaction (:meth:`esper_ray.controller.verifier.Verifier.enter`)."""


def entering_nothing(_: sqlite3.Connection) -> None:
    """Of what came in no message."""


class Store(Records):
    """A service's own, in a state directory that no second service uses. Any thread may call it.

    Commands that the service before had not sent are aborted when it is opened.

    Args:
        directory: Is made if it is not there.

    Raises:
        StoreFailed: another service is at work there, it cannot be written, or what is there is not as it was written;
            then nothing in it was changed.

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
                self._owned = undo.enter_context(owned(directory))
                is_new = check_whole(directory)
                super().__init__(path, undo.enter_context(closing(_writer(path))))
            self.aborted = self._begin(is_new)
            undo.pop_all()

    def _begin(self, is_new: bool) -> tuple[str, ...]:
        with self.transaction() as connection:
            if is_new:
                for statement in (*SCHEMA, f"PRAGMA user_version = {VERSION}"):
                    connection.execute(statement)
            unsent = write(
                connection,
                "deliveries",
                "UPDATE deliveries SET fate = ?, reason = ? WHERE fate = ?",
                *(Fate.ABORTED, NOT_DELIVERED, Fate.PENDING),
            )
        return _commands(unsent)

    def record(
        self,
        decision: Decision,
        state: StoredRun,
        *,
        withheld: bool = False,
        released: bool = False,
        also: Callable[[sqlite3.Connection], None] = lambda _: None,
    ) -> tuple[str, ...]:
        """Commit a decision and its run's new state. Commands of the run that have waited too long are lost with it.

        Args:
            decision: Is pending from now on.
            state: Of its run.
            withheld: The command will not be sent.
            released: An operator's order to leave conservative mode is carried out with it.
            also: Writes what belongs to it, in its transaction.

        Returns:
            Ids of the commands that are lost.

        Raises:
            StoreFailed: nothing was written, and the state is the one before; or all was, and the disk failed before
                the head was on it: read the state anew, and abort the command.
            Exception: what ``also`` raises; nothing was written.
        """
        row = {name: _stored(getattr(decision, name)) for name in COLUMNS}
        run_id, epoch = decision.run_id, decision.epoch
        with self.transaction(leaving=True) as connection:
            (inserted,) = write(
                connection,
                "decisions",
                f"INSERT INTO decisions ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",
                *row.values(),
            )
            write(
                connection,
                "deliveries",
                "INSERT INTO deliveries (sequence, command_id, run_id, epoch, fate) VALUES (?, ?, ?, ?, ?)",
                *(inserted["sequence"], decision.command_id, run_id, epoch),
                Fate.WITHHELD if withheld else Fate.PENDING,
            )
            write(
                connection,
                "runs",
                "INSERT INTO runs VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET memory = excluded.memory, "
                "hidden = excluded.hidden, policy_version = excluded.policy_version",
                *(run_id, state.memory, state.hidden, state.policy_version),
            )
            if released:
                write(connection, "orders", "UPDATE orders SET release = 0 WHERE run_id = ?", run_id)
            lost = write(
                connection,
                "deliveries",
                f"UPDATE deliveries SET fate = ?, reason = ? WHERE run_id = ? AND epoch <= ? AND {OPEN}",
                *(Fate.LOST, NO_RESULT, run_id, epoch - NO_RESULT_EPOCHS),
            )
            also(connection)
        return _commands(lost)

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

    def take_back(self, command_id: str) -> bool:
        """Note that a command which was being sent was refused on its way, and will never be sent.

        Returns:
            Whether it was being sent.

        Raises:
            StoreFailed: it was not noted.
        """
        return self._settle(command_id, f"fate = '{Fate.SENT}'", Fate.ABORTED, reason=NOT_DELIVERED)

    def attach_result(self, command_id: str, result: bytes, entering: Entering = entering_nothing) -> bool:
        """Note the result of a command.

        Args:
            command_id: Of the command.
            result: Of it.
            entering: Enters the message that it came in, in its transaction.

        Returns:
            Whether it was waited for: false the second time, and of a command that is lost or unknown.

        Raises:
            StoreFailed: it was not noted.
            Exception: what ``entering`` raises; nothing was written.
        """
        return self._settle(command_id, OPEN, Fate.ANSWERED, result, entering=entering)

    def has_taken(self, ledger: NonceLedger, envelope: Envelope) -> bool:
        """Whether the effect of this very message is committed.

        Raises:
            StoreFailed: it cannot be read.
        """
        with self._turn, failures(self._path):
            return ledger.look(self._connection, envelope) is Entry.COMMITTED

    def _settle(
        self,
        command_id: str,
        where: str,
        fate: Fate,
        result: bytes | None = None,
        reason: str = "",
        entering: Entering = entering_nothing,
    ) -> bool:
        with self.transaction() as connection:
            entering(connection)
            settled = f"UPDATE deliveries SET fate = ?, result = ?, reason = ? WHERE command_id = ? AND {where}"
            return bool(write(connection, "deliveries", settled, fate, result, reason, command_id))

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
    def transaction(self, *, leaving: bool = False) -> Iterator[sqlite3.Connection]:
        """Write with :func:`esper_ray.controller.chain.write`: all of it or nothing.

        Args:
            leaving: Something leaves that rests on it, so that its head is waited for.

        Raises:
            StoreFailed: nothing was written; or all was, and the disk failed before the head was on it.
        """
        with self._turn, _transaction(self._connection, self._path, durably=leaving) as connection:
            yield connection


@contextmanager
def _transaction(connection: sqlite3.Connection, path: Path, *, durably: bool) -> Iterator[sqlite3.Connection]:
    """All of it or nothing, but that the head may lag behind where a disk fails between the two.

    What is added to a store that has lost something would hide the loss: the head is looked at first.
    """
    head_file = HeadFile(path.with_name(HEAD_FILE))
    with failures(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            check_head(connection, head_file.read())
            yield connection
            head = tip(connection)
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite may have taken it back by itself
                connection.execute("ROLLBACK")
            raise
        head_file.write(head, durably=durably)


@contextmanager
def written_beside(directory: Path) -> Iterator[sqlite3.Connection]:
    """Write into the store of a service that may be at work in another process: all of it or nothing.

    Raises:
        StoreFailed: there is none, it could not be written, or it has lost something; it is left alone then.
    """
    with Records.open(directory) as records:
        records.check_end()  # who opens a damaged store to write changes it, as SQLite tidies up
    path = directory / FILE
    with failures(path), closing(_writer(path)) as connection, _transaction(connection, path, durably=True):
        yield connection


def give_order(directory: Path, run_id: str, *, paused: bool | None = None, release: bool = False) -> None:
    """Say something of a run to the service that decides on it, which may be another process: the next decision obeys.

    Args:
        directory: Of the service.
        run_id: Of the run.
        paused: Whether it is paused from now on; None leaves that as it is.
        release: End its conservative mode.

    Raises:
        StoreFailed: nobody has decided on such a run, it could not be written, or the store has lost something; it is
            left alone then.
    """
    with Records.open(directory) as records:
        if run_id not in (runs := records.runs()):
            raise StoreFailed(f"there is no run {run_id!r} in {directory}: {', '.join(runs) or 'there is none'}")
        before = records.order(run_id)
    with written_beside(directory) as connection:
        write(
            connection,
            "orders",
            "INSERT INTO orders VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET paused = excluded.paused, "
            "release = max(release, excluded.release)",
            *(run_id, before.paused if paused is None else paused, release),
        )


def _stored(value: Any) -> Any:
    return bytes(value) if isinstance(value, tuple) else value


def _commands(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(row["command_id"] for row in rows)


def _writer(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
    except BaseException:
        connection.close()
        raise
    return connection
