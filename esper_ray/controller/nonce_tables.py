"""The tables of a ledger of nonces (:class:`esper_ray.controller.nonces.NonceLedger`)."""

from __future__ import annotations

SCHEMA = (
    """CREATE TABLE nonces (
    consumer TEXT NOT NULL,
    nonce BLOB NOT NULL,
    timestamp_ns INTEGER NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (consumer, nonce)
) WITHOUT ROWID""",
    "CREATE INDEX nonces_by_age ON nonces (consumer, timestamp_ns)",
    """CREATE TABLE forgotten_nonces (
    consumer TEXT PRIMARY KEY,
    newest_ns INTEGER NOT NULL
) WITHOUT ROWID""",
)
"""The statements that make them, as SQLite keeps them."""
