"""What a service has decided and what became of it, as it is read: by itself, and beside it while it runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError

from esper_ray.controller.chain import UNREADABLE, Broken, Head, broken_links, broken_rows, check_head, read_row
from esper_ray.controller.head_file import HEAD_FILE, HeadFile
from esper_ray.controller.tables import PAGE, SCHEMA, VERSION
from esper_ray.errors import UserError
from esper_ray.reading import describe_problems
from policies.strategic.packet_values import Message, Name, Natural

DIRECTORY = Path("var/controller")
"""Where a service keeps what outlives it."""
FILE = "controller.sqlite"

Index = Annotated[int, Field(ge=0, lt=256)]
Nanoseconds = Annotated[int, Field(ge=0, lt=2**63)]


class StoreFailed(UserError):
    """The store cannot be used, or something could not be written; nothing is half written then."""


class Fate(StrEnum):
    """What became of a command. All but the second and the third are final."""

    WITHHELD = "withheld"
    """It was decided only to be recorded."""
    PENDING = "pending"
    """It is about to be sent."""
    SENT = "sent"
    ANSWERED = "answered"
    """Its result is here."""
    LOST = "lost"
    """No result came in time."""
    ABORTED = "aborted"
    """It was not sent while its service lived, and never will be."""


class Decision(Message):
    """A decision as it is recorded. Bytes are others' and stay as they are."""

    run_id: Name
    packet_id: Name
    epoch: Natural
    """Of the packet."""
    command_id: Name
    decided_at_ns: Nanoseconds
    """Since 1970."""
    level: str
    """Of the dashboard."""
    policy_version: str | None
    """None where the policy gave no answer, as in the next three."""
    action: tuple[Index, ...] | None
    """Of the policy, an index per head."""
    log_prob: float | None
    """Of that action."""
    proposal: bytes | None
    """All that the policy said."""
    mask: tuple[Index, ...] | None
    """What was admitted."""
    signals: bytes
    """Those that fired."""
    breakers: bytes
    """State of each of the service's, by name."""
    command: bytes
    """Exactly as it is sent."""
    packet: bytes
    """As it was judged."""


class StoredRun(Message):
    """What the next decision of a run depends on."""

    memory: bytes
    """What the risk table remembers: history, mode, level."""
    hidden: bytes | None
    """What the policy remembers."""
    policy_version: str | None = None
    """Of the policy that remembers it; to any other it means nothing."""


class Order(Message):
    """What an operator has said of a run."""

    paused: bool = False
    """Nothing is done until it is resumed."""
    release: bool = False
    """Conservative mode is to end with the next evaluation."""


@dataclass(frozen=True)
class Record:
    """A decision, and what became of it.

    Attributes:
        sequence: Number of its row, in the order of all runs' decisions.
        decision: As it was recorded.
        fate: Of its command.
        reason: Of a fate that is no success; else empty.
        result: Of its command, once it is here.
    """

    sequence: int
    decision: Decision
    fate: Fate
    reason: str
    result: bytes | None


@dataclass(frozen=True)
class Unreadable:
    """A row in which a decision was.

    Attributes:
        sequence: Its number.
        reason: Why it cannot be read, in a line.
    """

    sequence: int
    reason: str


COLUMNS = tuple(Decision.model_fields)
OTHER_TABLES = "its tables are not as they were made"


class Records:
    """Reads what a service has decided; :meth:`open` does so beside the service that writes.

    Args:
        path: Of the file.
        connection: To it.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path, self._connection = path, connection
        self._turn = Lock()

    @classmethod
    @contextmanager
    def open(cls, directory: Path = DIRECTORY) -> Iterator[Self]:
        """What lies in a state directory, to be read only.

        Raises:
            StoreFailed: nothing that can be read.
        """
        path = directory / FILE
        if not path.is_file():
            raise StoreFailed(f"{directory} holds no decisions of a controller: give the directory of one")
        if (size := path.stat().st_size) < PAGE:
            raise StoreFailed(f"{path} has {size} bytes, which is no store: put a copy of its whole directory back")
        with failures(path):
            connection = read_only(path)
        with closing(connection):
            with failures(path):
                check_version(connection, path)
            yield cls(path, connection)

    def runs(self) -> list[str]:
        """Ids of all runs, the first first."""
        listed = "SELECT key FROM chain WHERE subject = 'runs' GROUP BY key ORDER BY min(sequence)"
        return [run_id for (run_id,) in self._rows(listed)]

    def state(self, run_id: str) -> StoredRun | None:
        """The latest state of a run; None of one that is not known.

        Raises:
            StoreFailed: it is not as it was written.
        """
        with self.snapshot() as connection:
            row = read_row(connection, "runs", run_id)
        return None if row is None else StoredRun(**{name: row[name] for name in StoredRun.model_fields})

    def order(self, run_id: str) -> Order:
        """What holds by an operator's word.

        Raises:
            StoreFailed: it is not as it was written.
        """
        with self.snapshot() as connection:
            row = read_row(connection, "orders", run_id)
        return Order() if row is None else Order(paused=bool(row["paused"]), release=bool(row["release"]))

    def latest(self, run_id: str | None = None) -> Record | Unreadable | None:
        """The last decision of a run, or of all runs; None where there is none."""
        of, values = ("", ()) if run_id is None else (" AND run_id = ?", (run_id,))
        ((sequence,),) = self._rows(f"SELECT max(key) FROM chain WHERE subject = 'decisions'{of}", *values)
        return None if sequence is None else self._read(sequence)

    def records(self, run_id: str, after: int = 0) -> Iterator[Record | Unreadable]:
        """Decisions of a run in their order, those that cannot be read as such.

        Args:
            run_id: Of the run.
            after: The sequence from which on to read.

        Raises:
            StoreFailed: not even which there are.
        """
        numbers: set[int] = set()
        lists = (
            "SELECT key FROM chain WHERE subject = 'decisions' AND run_id = ? AND key > ?",  # rows that are gone, too
            "SELECT sequence FROM decisions WHERE run_id = ? AND sequence > ?",
        )
        failed: list[StoreFailed] = []
        for listed in lists:
            try:
                numbers.update(number for (number,) in self._rows(listed, run_id, after))
            except StoreFailed as error:
                failed.append(error)
        if len(failed) == len(lists):
            raise failed[0]
        yield from map(self._read, sorted(numbers))

    def answered(self, count: int) -> Iterator[Record | Unreadable]:
        """The last decisions on which a policy had answered, of all runs, the latest first.

        Args:
            count: How many.

        Raises:
            StoreFailed: not even which there are.
        """
        listed = "SELECT sequence FROM decisions WHERE proposal IS NOT NULL ORDER BY sequence DESC LIMIT ?"
        yield from (self._read(sequence) for (sequence,) in self._rows(listed, count))

    def check_end(self) -> None:
        """See whether it has what its head file knows.

        Raises:
            StoreFailed: it has not, or there is no such file.
        """
        with failures(self._path):
            head = HeadFile(self._path.with_name(HEAD_FILE)).read()
            with self.snapshot() as connection:
                check_head(connection, head)

    def faults(self) -> list[str]:
        """All in which the store is not as it was written, each in a line. Everything in it is read."""
        found: list[str] = []
        try:
            head = HeadFile(self._path.with_name(HEAD_FILE)).read()  # before the snapshot, which has as much at least
        except FileNotFoundError:
            head, found = Head(), [f"{HEAD_FILE} is gone"]
        except OSError as error:
            head, found = Head(), [f"{HEAD_FILE} cannot be read: {error.strerror}"]
        except Broken as error:
            head, found = Head(), [str(error)]
        try:
            with self.snapshot() as connection:
                for check in (_broken_pages, _other_tables, partial(broken_links, head=head), broken_rows):
                    try:
                        found.extend(check(connection))
                    except UNREADABLE as error:
                        found.append(" ".join(str(error).split()))
                    if OTHER_TABLES in found:  # what they hold may then be anything
                        break
        except StoreFailed as error:
            found.append(str(error))
        return list(dict.fromkeys(found))

    def _read(self, sequence: int) -> Record | Unreadable:
        try:
            return self._record(sequence)
        except ValidationError as error:
            return Unreadable(sequence, describe_problems(error))
        except (StoreFailed, ValueError, TypeError) as error:
            return Unreadable(sequence, " ".join(str(error).split()))

    def _record(self, sequence: int) -> Record:
        with self.snapshot() as connection:
            rows = [read_row(connection, subject, sequence) for subject in ("decisions", "deliveries")]
        decision, delivery = rows
        if decision is None or delivery is None:
            raise ValueError(f"row {sequence} was never written whole")
        return Record(sequence, decision_of(decision), Fate(delivery["fate"]), delivery["reason"], delivery["result"])

    def _rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._turn, failures(self._path):
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """The store as it is at one moment, whoever writes meanwhile."""
        with self._turn, failures(self._path):
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                with suppress(sqlite3.Error):  # SQLite may have ended it by itself
                    self._connection.execute("ROLLBACK")


def decision_of(row: dict[str, Any]) -> Decision:
    """A decision from its row.

    Raises:
        ValidationError: it is none of this version.
    """
    fields = {name: row[name] for name in COLUMNS}
    for name in ("action", "mask"):
        fields[name] = None if fields[name] is None else tuple(fields[name])
    return Decision(**fields)


def _broken_pages(connection: sqlite3.Connection) -> Iterator[str]:
    for (said,) in connection.execute("PRAGMA integrity_check"):
        if said != "ok":
            yield " ".join(str(said).split())


def _other_tables(connection: sqlite3.Connection) -> Iterator[str]:
    made = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid").fetchall()
    if [sql for (sql,) in made] != list(SCHEMA):
        yield OTHER_TABLES


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Hold a file to this program's tables.

    Raises:
        StoreFailed: it has others.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != VERSION:
        raise StoreFailed(f"{path} is of format {version}, this program's is {VERSION}: give another directory")


def read_only(path: Path) -> sqlite3.Connection:
    """A connection that can change nothing."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


@contextmanager
def failures(path: Path) -> Iterator[None]:
    """Say of what SQLite or the system refuses in one line why."""
    try:
        yield
    except Broken as error:
        raise StoreFailed(f"{path}: {error}") from error
    except UNREADABLE as error:
        raise StoreFailed(f"{path}: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise StoreFailed(f"cannot write {error.filename or path}: {error.strerror}") from error
