"""What a service has decided and what became of it, as it is read: by itself, and beside it while it runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Self
from urllib.parse import quote

from pydantic import Field, ValidationError

from esper_ray.errors import UserError
from esper_ray.reading import describe_problems
from policies.strategic.packet_values import Message, Name, Natural

DIRECTORY = Path("var/controller")
"""Where a service keeps what outlives it."""
FILE = "controller.sqlite"
VERSION = 1
"""Of the file's tables."""

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
        with failures(path):
            connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, isolation_level=None)
        with closing(connection):
            with failures(path):
                check_version(connection, path)
            yield cls(path, connection)

    def runs(self) -> list[str]:
        """Ids of all runs, the first first."""
        return [run_id for (run_id,) in self._rows("SELECT run_id FROM runs ORDER BY rowid")]

    def state(self, run_id: str) -> StoredRun | None:
        """The latest state of a run; None of one that is not known."""
        names = tuple(StoredRun.model_fields)
        rows = self._rows(f"SELECT {', '.join(names)} FROM runs WHERE run_id = ?", run_id)
        return StoredRun(**dict(zip(names, rows[0], strict=True))) if rows else None

    def order(self, run_id: str) -> Order:
        """What holds by an operator's word."""
        rows = self._rows("SELECT paused, release FROM orders WHERE run_id = ?", run_id)
        return Order(paused=bool(rows[0][0]), release=bool(rows[0][1])) if rows else Order()

    def latest(self, run_id: str | None = None) -> Record | Unreadable | None:
        """The last decision of a run, or of all runs; None where there is none."""
        of, values = ("", ()) if run_id is None else (" WHERE run_id = ?", (run_id,))
        ((sequence,),) = self._rows(f"SELECT max(sequence) FROM decisions{of}", *values)
        return None if sequence is None else self._read(sequence)

    def records(self, run_id: str, after: int = 0) -> Iterator[Record | Unreadable]:
        """Decisions of a run in their order, those that cannot be read as such.

        Args:
            run_id: Of the run.
            after: The sequence from which on to read.

        Raises:
            StoreFailed: not even which there are.
        """
        numbers = self._rows(
            "SELECT sequence FROM decisions WHERE run_id = ? AND sequence > ? ORDER BY sequence", run_id, after
        )
        yield from (self._read(sequence) for (sequence,) in numbers)

    def _read(self, sequence: int) -> Record | Unreadable:
        try:
            return self._record(sequence)
        except ValidationError as error:
            return Unreadable(sequence, describe_problems(error))
        except (StoreFailed, ValueError, TypeError) as error:
            return Unreadable(sequence, " ".join(str(error).split()))

    def _record(self, sequence: int) -> Record:
        (row,) = self._rows(f"SELECT {', '.join(COLUMNS)} FROM decisions WHERE sequence = ?", sequence)
        ((fate, reason, result),) = self._rows(
            "SELECT fate, reason, result FROM deliveries WHERE sequence = ?", sequence
        )
        fields = dict(zip(COLUMNS, row, strict=True))
        for name in ("action", "mask"):
            fields[name] = None if fields[name] is None else tuple(fields[name])
        return Record(sequence, Decision(**fields), Fate(fate), reason, result)

    def _rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._turn, failures(self._path):
            return self._connection.execute(statement, values).fetchall()


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Hold a file to this program's tables.

    Raises:
        StoreFailed: it has others.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != VERSION:
        raise StoreFailed(f"{path} is of format {version}, this program's is {VERSION}: give another directory")


@contextmanager
def failures(path: Path) -> Iterator[None]:
    """Say of what SQLite or the system refuses in one line why."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreFailed(f"{path}: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise StoreFailed(f"cannot write {error.filename or path}: {error.strerror}") from error
