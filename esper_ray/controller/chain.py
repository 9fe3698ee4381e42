"""What was written is as it was written: every write of a row adds an entry, and each entry holds on to the one before.

An entry has the SHA-256 of all that its row holds, and a hash over itself and the hash before it. The last entry of a
row says what the row must hold now; the hash of the last entry of all stands for everything that was ever written.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from esper_ray.controller.tables import KEYS

UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
"""What reading raises where a file is damaged; the second where the names in it are."""
GENESIS = bytes(32)
"""The hash before the first entry."""
ERASED = hashlib.sha256().digest()
"""In place of a row's digest: it was deleted. No row has it, as each has columns."""
_ENTRY = "sequence, subject, run_id, key, digest, hash"


class Broken(Exception):
    """Something is not as it was written; one line of what."""


@dataclass(frozen=True)
class Head:
    """Where a chain ends.

    Attributes:
        sequence: Of its last entry; 0 where there is none.
        hash: Of that, 32 bytes.
    """

    sequence: int = 0
    hash: bytes = GENESIS


def digest(values: Iterable[Any]) -> bytes:
    """SHA-256 of values as SQLite holds them: kind, length and content of each, so that no two rows share one."""
    parts: list[bytes] = []
    for value in values:
        match value:
            case None:
                kind, content = b"n", b""
            case int():
                kind, content = b"i", str(value).encode()
            case float():
                kind, content = b"f", struct.pack(">d", value)
            case str():
                kind, content = b"s", value.encode()
            case bytes():
                kind, content = b"b", value
            case _:
                raise TypeError(f"SQLite holds no {type(value).__name__}")
        parts += (kind, struct.pack(">Q", len(content)), content)
    return hashlib.sha256(b"".join(parts)).digest()


def tip(connection: sqlite3.Connection) -> Head:
    """Where the chain ends."""
    last = connection.execute("SELECT sequence, hash FROM chain ORDER BY sequence DESC LIMIT 1").fetchone()
    return Head() if last is None else Head(*last)


def check_head(connection: sqlite3.Connection, head: Head) -> None:
    """See whether a chain has what its head file knows; it may have more, which was committed since.

    Raises:
        Broken: it has not.
    """
    if head == Head():
        return
    row = connection.execute("SELECT hash FROM chain WHERE sequence = ?", (head.sequence,)).fetchone()
    if row is None:
        raise Broken(f"what was recorded last is gone: the chain ends before entry {head.sequence}")
    if row[0] != head.hash:
        raise Broken(f"entry {head.sequence} is another than the head file knows")


def write(connection: sqlite3.Connection, subject: str, statement: str, *values: Any) -> list[dict[str, Any]]:
    """Write rows and their entries, in the transaction that is under way.

    Args:
        connection: Within a transaction.
        subject: The table.
        statement: Inserts into it, or updates it.
        values: Of the statement.

    Returns:
        The rows that it wrote, as they are now.
    """
    column = KEYS[subject]
    # The rows are read anew: what RETURNING says of a whole number in a column of floats is not what is stored.
    keys = connection.execute(f"{statement} RETURNING {column}", values).fetchall()
    rows = []
    for (key,) in keys:
        row = _row(connection, subject, key)
        assert row is not None, "it was written in this transaction"
        _enter(connection, subject, row["run_id"], key, _row_digest(row))
        rows.append(row)
    return rows


def erase(connection: sqlite3.Connection, subject: str, key: int | str) -> bool:
    """Delete a row, and enter that it was, in the transaction that is under way.

    Returns:
        Whether there was one.

    Raises:
        Broken: it is not as it was written, and stays.
    """
    row = read_row(connection, subject, key)
    if row is None:
        return False
    connection.execute(f"DELETE FROM {subject} WHERE {KEYS[subject]} = ?", (key,))
    _enter(connection, subject, row["run_id"], key, ERASED)
    return True


def _enter(connection: sqlite3.Connection, subject: str, run_id: str, key: int | str, content: bytes) -> None:
    last = tip(connection)
    entry = (last.sequence + 1, subject, run_id, key, content)
    connection.execute(f"INSERT INTO chain ({_ENTRY}) VALUES (?, ?, ?, ?, ?, ?)", (*entry, digest((last.hash, *entry))))


def _row(connection: sqlite3.Connection, subject: str, key: int | str) -> dict[str, Any] | None:
    found = connection.execute(f"SELECT * FROM {subject} WHERE {KEYS[subject]} = ?", (key,))
    names, row = [name for name, *_ in found.description], found.fetchone()
    return None if row is None else dict(zip(names, row, strict=True))


def read_row(connection: sqlite3.Connection, subject: str, key: int | str) -> dict[str, Any] | None:
    """A row, if it is as it was written. Entry and row are read one after the other: give it one snapshot for both.

    Args:
        connection: To read from.
        subject: The table.
        key: Of the row.

    Returns:
        Its values by their names; None if none was ever written, or it was erased.

    Raises:
        Broken: it is not, or its entry is not.
    """
    entry = connection.execute(
        f"SELECT {_ENTRY}, (SELECT hash FROM chain AS before WHERE before.sequence = chain.sequence - 1) "
        "FROM chain WHERE subject = ? AND key = ? ORDER BY sequence DESC LIMIT 1",
        (subject, key),
    ).fetchone()
    row = _row(connection, subject, key)
    if entry is None and row is None:
        return None
    where = f"row {key} of {subject}"
    if entry is None:
        raise Broken(f"{where} was written by no controller")
    if row is None and entry[4] != ERASED:
        raise Broken(f"{where} is gone")
    _check_link(GENESIS if entry[0] == 1 else entry[-1], entry[:-1])
    if row is None:
        return None
    if _row_digest(row) != entry[4]:
        raise Broken(f"{where} is not as it was written")
    return row


def _row_digest(row: dict[str, Any]) -> bytes:
    return digest(part for item in row.items() for part in item)


def _check_link(before: bytes | None, entry: tuple[Any, ...]) -> None:
    if before is None:
        raise Broken(f"entry {entry[0] - 1} of the chain is gone")
    if digest((before, *entry[:-1])) != entry[-1]:
        raise Broken(f"entry {entry[0]} of the chain is not as it was written")


def broken_links(connection: sqlite3.Connection, head: Head) -> Iterator[str]:
    """What is wrong with the chain itself, each in a line.

    Args:
        connection: In one snapshot.
        head: What the chain must hold at least.
    """
    last = Head()
    for entry in connection.execute(f"SELECT {_ENTRY} FROM chain ORDER BY sequence"):
        if entry[0] != last.sequence + 1:
            yield f"entries {last.sequence + 1} to {entry[0] - 1} of the chain are gone"
        else:
            try:
                _check_link(last.hash, entry)
            except Broken as error:
                yield str(error)
        last = Head(entry[0], entry[-1])
        if entry[0] == head.sequence and entry[-1] != head.hash:
            yield f"entry {head.sequence} of the chain is another than the head file knows"
    if last.sequence < head.sequence:
        yield f"what was recorded last is gone: the chain ends with entry {last.sequence}, not {head.sequence}"


def broken_rows(connection: sqlite3.Connection) -> Iterator[str]:
    """Rows that are not as they were written, are gone, or are more than were written; each in a line.

    Args:
        connection: In one snapshot.
    """
    for subject, column in KEYS.items():
        keys: dict[int | str, None] = {}
        for listed in (f"SELECT key FROM chain WHERE subject = '{subject}'", f"SELECT {column} FROM {subject}"):
            try:
                keys |= dict.fromkeys(key for (key,) in connection.execute(listed))
            except UNREADABLE as error:
                yield f"{subject}: {' '.join(str(error).split())}"
        for key in keys:
            try:
                read_row(connection, subject, key)
            except Broken as error:
                yield str(error)
            except UNREADABLE as error:
                yield f"row {key} of {subject}: {' '.join(str(error).split())}"
