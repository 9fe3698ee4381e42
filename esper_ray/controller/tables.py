"""The tables of a controller's store."""

from __future__ import annotations

from esper_ray.controller.nonce_tables import SCHEMA as NONCES

VERSION = 3
"""Of the tables."""
PAGE = 4096
"""Bytes of the file's pages. Of a file without a whole one SQLite deletes the log, even if it only reads."""
OPEN = "fate IN ('pending', 'sent')"
"""Of deliveries whose command still waits for something; the fates are :class:`esper_ray.controller.records.Fate`'s."""
KEYS = {
    "decisions": "sequence",
    "deliveries": "sequence",
    "runs": "run_id",
    "orders": "run_id",
    "windows": "run_id",
    "reports": "report_id",
    "updates": "sequence",
}
"""Of each table with content the column that says which row it is. All have a column ``run_id``."""
SCHEMA = (
    """CREATE TABLE decisions (
    sequence INTEGER PRIMARY KEY,
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
)""",
    "CREATE INDEX decisions_of_run ON decisions (run_id)",
    """CREATE TABLE deliveries (
    sequence INTEGER PRIMARY KEY REFERENCES decisions,
    command_id TEXT NOT NULL UNIQUE,
    run_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    fate TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    result BLOB
)""",
    f"CREATE INDEX open_deliveries ON deliveries (run_id, epoch) WHERE {OPEN}",
    """CREATE TABLE runs (
    run_id TEXT PRIMARY KEY,
    memory BLOB NOT NULL,
    hidden BLOB,
    policy_version TEXT
)""",
    """CREATE TABLE orders (
    run_id TEXT PRIMARY KEY,
    paused INTEGER NOT NULL,
    release INTEGER NOT NULL
)""",
    """CREATE TABLE windows (
    run_id TEXT PRIMARY KEY,
    content BLOB NOT NULL
)""",
    """CREATE TABLE reports (
    report_id TEXT PRIMARY KEY,
    run_id TEXT NOT NULL,
    sequence INTEGER NOT NULL REFERENCES decisions,
    content BLOB NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_ns INTEGER NOT NULL,
    note TEXT NOT NULL DEFAULT ''
)""",
    "CREATE INDEX reports_by_due ON reports (state, due_ns)",
    """CREATE TABLE updates (
    sequence INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL,
    envelope TEXT NOT NULL UNIQUE,
    version INTEGER,
    sha256 TEXT,
    policy TEXT,
    before TEXT,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    trained_on TEXT NOT NULL,
    at_ns INTEGER NOT NULL,
    ended_at_ns INTEGER,
    inferences INTEGER NOT NULL DEFAULT 0,
    anomalies INTEGER NOT NULL DEFAULT 0,
    ordered INTEGER NOT NULL DEFAULT 0
)""",
    """CREATE TABLE chain (
    sequence INTEGER PRIMARY KEY,
    subject TEXT NOT NULL,
    run_id TEXT NOT NULL,
    key NOT NULL,
    digest BLOB NOT NULL,
    hash BLOB NOT NULL
)""",
    "CREATE INDEX chain_of_rows ON chain (subject, key)",
    "CREATE INDEX chain_of_decisions ON chain (run_id, key) WHERE subject = 'decisions'",
    # Nonces are not chained. A row of them that is lost lets a message in again, and what is chained keeps that from
    # harm: a result or an acknowledgement has its effect once. A packet is too old to be decided on again by then.
    *NONCES,
)
"""The statements that make them, as SQLite keeps them."""
