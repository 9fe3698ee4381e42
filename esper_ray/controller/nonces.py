"""Which messages have had their effect: a ledger in the SQLite file of those effects, so that none happens twice."""

from __future__ import annotations

import hashlib
import sqlite3
from enum import StrEnum

from esper_ray.controller.envelope import Envelope
from esper_ray.controller.message_ages import LONGEST_AGE_NS
from esper_ray.controller.nonce_tables import SCHEMA


class Entry(StrEnum):
    """What the ledger says of an envelope."""

    UNKNOWN = "unknown"
    """Nothing: it had no effect yet."""
    COMMITTED = "committed"
    """Its effect is committed: it was delivered again, and is to be acknowledged."""
    OTHER = "other"
    """Another envelope with its nonce has had its effect."""
    FORGOTTEN = "forgotten"
    """It may have had one: it is as old as what the ledger has forgotten, so that the clock must have gone back."""


class NonceLedger:
    """Whom a message has reached, in the file that its effect is written to.

    It opens nothing and commits nothing: each call takes the connection of whoever writes the effect, in their
    transaction, so that the two are on disk together or not at all.

    Args:
        consumer: Whose effects they are. Of several in one file each has a message once.
    """

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer

    @staticmethod
    def create(connection: sqlite3.Connection) -> None:
        """Make its tables where they are not there yet."""
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'nonces'").fetchone() is None:
            for statement in SCHEMA:
                connection.execute(statement)

    def look(self, connection: sqlite3.Connection, envelope: Envelope) -> Entry:
        """What is known of an envelope that was verified."""
        known = connection.execute(
            "SELECT digest FROM nonces WHERE consumer = ? AND nonce = ?", (self._consumer, envelope.nonce)
        ).fetchone()
        if known is not None:
            return Entry.COMMITTED if known[0] == _digest(envelope) else Entry.OTHER
        forgotten = self._newest_forgotten(connection)
        return Entry.FORGOTTEN if forgotten is not None and envelope.timestamp_ns <= forgotten else Entry.UNKNOWN

    def enter(self, connection: sqlite3.Connection, envelope: Envelope) -> Entry:
        """Enter an envelope that was verified, if it is unknown: then its effect belongs in the same transaction.

        Args:
            connection: In a transaction.
            envelope: It.

        Returns:
            What was known of it before.

        Raises:
            RuntimeError: there is no transaction.
        """
        if not connection.in_transaction:
            raise RuntimeError("a nonce is entered in the transaction of its message's effect: begin one")
        entry = self.look(connection, envelope)
        if entry is Entry.UNKNOWN:
            connection.execute(
                "INSERT INTO nonces VALUES (?, ?, ?, ?)",
                (self._consumer, envelope.nonce, envelope.timestamp_ns, _digest(envelope)),
            )
        return entry

    def forget(self, connection: sqlite3.Connection, now_ns: int) -> int:
        """Drop what is too old to be received again, and remember how old that was.

        Args:
            connection: In a transaction, or one that commits by itself statement by statement.
            now_ns: Nanoseconds since 1970.

        Returns:
            How many were dropped.
        """
        before = now_ns - LONGEST_AGE_NS
        connection.execute(
            "INSERT INTO forgotten_nonces SELECT consumer, max(timestamp_ns) FROM nonces "
            "WHERE consumer = ? AND timestamp_ns < ? GROUP BY consumer "
            "ON CONFLICT DO UPDATE SET newest_ns = max(newest_ns, excluded.newest_ns)",
            (self._consumer, before),
        )
        return connection.execute(
            "DELETE FROM nonces WHERE consumer = ? AND timestamp_ns < ?", (self._consumer, before)
        ).rowcount

    def _newest_forgotten(self, connection: sqlite3.Connection) -> int | None:
        row = connection.execute(
            "SELECT newest_ns FROM forgotten_nonces WHERE consumer = ?", (self._consumer,)
        ).fetchone()
        return None if row is None else row[0]


def _digest(envelope: Envelope) -> bytes:
    return hashlib.sha256(envelope.content).digest()
