"""What a learner was told, on disk before it is acknowledged: a SQLite file with a place for each decision.

A decision and the reports about it are joined by the command's id. A report that was taken changes nothing when it
comes again. There is a limit to how many decisions are kept; of those that are gone the ids of their reports stay.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Self

from esper_ray.controller.learner.score import ScoreTerms
from esper_ray.controller.records import Decision, StoreFailed, failures
from esper_ray.controller.reports.field_report import Experience, FieldReport

FILE = "learner.sqlite"
_VERSION = 1
_SCHEMA = (
    """CREATE TABLE decisions (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    command_id TEXT NOT NULL UNIQUE,
    run_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    decided_at_ns INTEGER NOT NULL,
    has_action INTEGER NOT NULL,
    slots TEXT,
    accuracy REAL,
    living INTEGER NOT NULL,
    extra INTEGER,
    host INTEGER,
    learnt_in INTEGER
)""",
    "CREATE INDEX decisions_of_run ON decisions (run_id, epoch)",
    "CREATE TABLE contents (sequence INTEGER PRIMARY KEY REFERENCES decisions, experience BLOB NOT NULL)",
    "CREATE TABLE reports (report_id TEXT PRIMARY KEY, command_id TEXT NOT NULL, report BLOB)",
    "CREATE INDEX reports_of_command ON reports (command_id)",
    "CREATE TABLE updates (version INTEGER PRIMARY KEY, trained_on TEXT NOT NULL, sent INTEGER NOT NULL DEFAULT 0)",
    # Of an epoch with several decisions the one that a policy acted in, or else the first, is the run's step. Its
    # host's size is known from any packet of the run.
    """CREATE VIEW steps AS SELECT sequence, command_id, run_id, epoch, slots, accuracy, living, extra, sizes.host,
    learnt_in, accuracy IS NOT NULL AND extra IS NOT NULL AND (extra = 0 OR sizes.host IS NOT NULL) AS scored
    FROM (SELECT *, row_number() OVER (
        PARTITION BY run_id, epoch ORDER BY has_action DESC, decided_at_ns, command_id
    ) AS place FROM decisions WHERE slots IS NOT NULL)
    JOIN (SELECT run_id, max(host) AS host FROM decisions GROUP BY run_id) AS sizes USING (run_id)
    WHERE place = 1""",
    """CREATE VIEW complete AS
    SELECT step.sequence, step.run_id, step.epoch, step.learnt_in FROM steps AS step
    JOIN steps AS later ON later.run_id = step.run_id AND later.epoch = step.epoch + 1 AND later.slots = step.slots
    WHERE step.scored AND later.scored""",
)


@dataclass(frozen=True)
class Told:
    """A decision that is kept, and what the latest report on it says.

    Attributes:
        sequence: Number of its row.
        decision: The decision.
        report: The report.
        terms: Of its packet's score; the host's parameters are those that any packet of the run tells.
        is_new: Whether no update has learnt from it.
    """

    sequence: int
    decision: Decision
    report: FieldReport
    terms: ScoreTerms
    is_new: bool


class ExperienceStore:
    """A learner's own, in a directory that no second learner uses. Any thread may call it.

    Args:
        directory: That exists.
        capacity: Decisions that are kept at most.

    Raises:
        StoreFailed: it cannot be written, or is another program's.

    Attributes:
        path: Of the file.
    """

    def __init__(self, directory: Path, capacity: int) -> None:
        self.path, self._capacity, self._turn = directory / FILE, capacity, Lock()
        with failures(self.path):
            self._connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            try:
                self._begin()
            except BaseException:
                self._connection.close()
                raise

    def _begin(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        with self._transaction() as connection:
            ((version,),) = connection.execute("PRAGMA user_version").fetchall()
            if version == 0:
                for statement in (*_SCHEMA, f"PRAGMA user_version = {_VERSION}"):
                    connection.execute(statement)
            elif version != _VERSION:
                raise StoreFailed(
                    f"{self.path} is of format {version}, this program's is {_VERSION}: give another directory"
                )

    def add(self, experience: Experience, terms: ScoreTerms, slots: str | None) -> bool:
        """Keep what was told; it is on disk when this returns. Arguments and result are those of :meth:`add_within`.

        Raises:
            StoreFailed: nothing is kept.
        """
        with self._transaction() as connection:
            return self.add_within(connection, experience, terms, slots)

    def add_within(
        self, connection: sqlite3.Connection, experience: Experience, terms: ScoreTerms, slots: str | None
    ) -> bool:
        """Keep what was told, in a transaction of somebody who writes more to the file.

        Args:
            connection: To the file, in a transaction.
            experience: A report and its decision.
            terms: Of the packet's score.
            slots: Of the packet, as text; None where nothing can be learnt from it. Packets of other slots do not
                follow each other.

        Returns:
            Whether it is new: false of a report that was taken before.
        """
        report, decision = experience.report, experience.decision
        taken = connection.execute(
            "INSERT INTO reports VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (str(report.report_id), decision.command_id, report.model_dump_json().encode()),
        )
        if not taken.rowcount:
            return False
        added = connection.execute(
            "INSERT INTO decisions (command_id, run_id, epoch, decided_at_ns, has_action, slots, accuracy, living, "
            "extra, host) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (
                *(decision.command_id, decision.run_id, decision.epoch, decision.decided_at_ns),
                *(decision.action is not None, slots),
                *(terms.accuracy, terms.living, terms.extra, terms.host),
            ),
        )
        if added.rowcount:
            connection.execute("INSERT INTO contents VALUES (?, ?)", (added.lastrowid, experience.framed()))
            self._make_room(connection)
        return True

    def _make_room(self, connection: sqlite3.Connection) -> None:
        ((kept,),) = connection.execute("SELECT count(*) FROM decisions").fetchall()
        gone = connection.execute(
            "SELECT sequence, command_id FROM decisions ORDER BY learnt_in IS NULL, sequence LIMIT ?",
            (max(kept - self._capacity, 0),),
        ).fetchall()
        for sequence, command_id in gone:
            connection.execute("DELETE FROM contents WHERE sequence = ?", (sequence,))
            connection.execute("DELETE FROM decisions WHERE sequence = ?", (sequence,))
            connection.execute("UPDATE reports SET report = NULL WHERE command_id = ?", (command_id,))

    def new_steps(self) -> int:
        """Decisions that no update has learnt from, and whose run's next packet is there."""
        ((count,),) = self._rows("SELECT count(*) FROM complete WHERE learnt_in IS NULL")
        return int(count)

    def runs(self) -> tuple[list[str], list[str]]:
        """Runs with something new to learn, of which the oldest is first; and the others, the latest first."""
        told = self._rows(
            "SELECT run_id, min(CASE WHEN learnt_in IS NULL THEN sequence END), max(sequence) FROM complete "
            "GROUP BY run_id"
        )
        new = sorted((first, run_id) for run_id, first, _ in told if first is not None)
        others = sorted(((last, run_id) for run_id, first, last in told if first is None), reverse=True)
        return [run_id for _, run_id in new], [run_id for _, run_id in others]

    def steps(self, run_id: str) -> list[Told]:
        """What is kept of a run, a decision per epoch, in their order.

        Raises:
            StoreFailed: it cannot be read.
        """
        rows = self._rows(
            "SELECT sequence, experience, accuracy, living, extra, host, learnt_in IS NULL, "
            "(SELECT report FROM reports WHERE reports.command_id = steps.command_id ORDER BY rowid DESC LIMIT 1) "
            "FROM steps JOIN contents USING (sequence) WHERE run_id = ? ORDER BY epoch",
            run_id,
        )
        try:
            return [
                Told(
                    sequence=sequence,
                    decision=Experience.of(experience).decision,
                    report=FieldReport.model_validate_json(report),
                    terms=ScoreTerms(*terms),
                    is_new=bool(is_new),
                )
                for sequence, experience, *terms, is_new, report in rows
            ]
        except ValueError as error:
            raise StoreFailed(f"{self.path} is damaged, run {run_id}: {' '.join(str(error).split())}") from error

    def updated(self, version: int, trained_on: str, sequences: Sequence[int]) -> None:
        """Note an update that is to be sent, and what it has learnt from.

        Raises:
            StoreFailed: nothing is noted.
        """
        with self._transaction() as connection:
            connection.execute("INSERT INTO updates (version, trained_on) VALUES (?, ?)", (version, trained_on))
            connection.executemany(
                "UPDATE decisions SET learnt_in = ? WHERE sequence = ? AND learnt_in IS NULL",
                [(version, sequence) for sequence in sequences],
            )

    def latest_update(self) -> tuple[int, str, bool] | None:
        """Version of the latest update, what it was trained on, and whether it was sent; None before the first."""
        rows = self._rows("SELECT version, trained_on, sent FROM updates ORDER BY version DESC LIMIT 1")
        return next(((version, trained_on, bool(sent)) for version, trained_on, sent in rows), None)

    def mark_sent(self, version: int) -> None:
        """Note that an update was sent.

        Raises:
            StoreFailed: it is not noted, and will be sent again.
        """
        with self._transaction() as connection:
            connection.execute("UPDATE updates SET sent = 1 WHERE version = ?", (version,))

    def close(self) -> None:
        """Let go of the file."""
        with self._turn:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._turn, failures(self.path), closing(self._connection.execute(statement, values)) as found:
            return found.fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing."""
        with self._turn, failures(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite may have taken it back by itself
                    self._connection.execute("ROLLBACK")
                raise
