"""The other end of the way of field reports: whoever learns from them takes each in once, and says so."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from esper_ray.bus.deliveries import Delivery
from esper_ray.bus.interface import Bus
from esper_ray.bus.streams import Role, Stream
from esper_ray.controller import telemetry as items
from esper_ray.controller.emitting import Telemetry
from esper_ray.controller.envelope import Envelope, seal
from esper_ray.controller.keys import KeyRing
from esper_ray.controller.nonces import NonceLedger
from esper_ray.controller.reports.field_report import Experience, ReportAck
from esper_ray.controller.verifier import EnvelopeRefused, Redelivered, Verifier

logger = logging.getLogger(__name__)

LEDGER = "reports"
UNREADABLE = "unreadable"
"""What is refused for that is signed as it must be, and is no report."""


class TakingFailed(RuntimeError):
    """Whoever takes reports could not take one in; it comes again."""


class TakesReports:
    """Takes field reports from a bus, each once by its id, whatever dies meanwhile.

    What is done with a report, its nonce and its id are committed together in the SQLite file of whoever takes it; then
    the signed acknowledgement is sent, and then the bus is told. Whoever dies in between gets the report again, does
    nothing with it, and acknowledges it again. What is no report, or not to be believed, is told of and let go.

    Args:
        bus: To receive from; is not closed.
        keys: Gives the keys as they are now.
        path: Of the SQLite file; is made if it is not there. Whoever takes reports may have tables of their own in it.
        take: What is done with a report, in a transaction of that file that is under way; it neither commits nor rolls
            back. What it raises undoes all of it, is raised, and the bus delivers the report again later.
        consumer: Name on the bus: the same after a restart, and no other one's.
        role: For whom reports are taken.
        telemetry: Where events go, by default nowhere.
        time_ns: Nanoseconds since 1970.

    Attributes:
        connection: To the file, which begins no transaction by itself.
    """

    def __init__(
        self,
        bus: Bus,
        keys: Callable[[], KeyRing],
        path: Path | str,
        take: Callable[[sqlite3.Connection, Experience], None],
        *,
        consumer: str = "learner",
        role: Role = Role.LEARNER,
        telemetry: Telemetry | None = None,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._bus, self._keys, self._do, self._consumer, self._role = bus, keys, take, consumer, role
        self._telemetry, self._time_ns = telemetry or Telemetry(), time_ns
        self._verifier = Verifier(keys, NonceLedger(LEDGER), time_ns)
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")
            self.connection.execute("BEGIN IMMEDIATE")
            NonceLedger.create(self.connection)
            # Ids are never forgotten: a report that was parked may come again after months.
            self.connection.execute("CREATE TABLE IF NOT EXISTS taken_reports (report_id TEXT PRIMARY KEY)")
            self.connection.execute("COMMIT")
        except BaseException:
            self.connection.close()
            raise

    def step(self, wait_s: float = 0.0) -> bool:
        """Take in the next report, if there is one.

        Args:
            wait_s: Seconds to wait for it.

        Returns:
            Whether something came, be it a report, one that was taken before, or nothing to be believed.

        Raises:
            BusError: it was not acknowledged, and comes again; if it was taken in, it will not be a second time.
            sqlite3.Error: nothing of it was done, and it comes again; so of all that ``take`` raises.
        """
        for delivery in self._bus.receive(Stream.REPORTS, self._role, self._consumer, count=1, wait_s=wait_s):
            try:
                experience = self._once(delivery)
            except EnvelopeRefused as refused:
                self._refuse(refused.reason, str(refused))
            except ValueError as error:
                self._refuse(UNREADABLE, f"what is signed as a report is none: {' '.join(str(error).split())}")
            else:
                self._acknowledge(experience)
            self._bus.acknowledge(delivery)
            return True
        return False

    def _once(self, delivery: Delivery) -> Experience:
        """Do with a report what is to be done, if that was not done before.

        Raises:
            EnvelopeRefused: it is not to be believed.
            ValueError: it is no report.
        """
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            try:
                envelope = self._verifier.accept(self.connection, delivery.payload, Stream.REPORTS, None)
            except Redelivered as again:
                if again.envelope is None:
                    raise
                envelope = again.envelope
            experience = _read(envelope)
            new = self.connection.execute(
                "INSERT OR IGNORE INTO taken_reports VALUES (?)", (str(experience.report.report_id),)
            ).rowcount
            if new:
                self._take(experience)
            self.connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite may have taken it back by itself
                self.connection.execute("ROLLBACK")
            raise
        return experience

    def _take(self, experience: Experience) -> None:
        try:
            self._do(self.connection, experience)
        except (ValueError, EnvelopeRefused) as error:  # theirs, and nothing against the report
            raise TakingFailed(f"the report {experience.report.report_id} could not be taken in: {error}") from error

    def _acknowledge(self, experience: Experience) -> None:
        report = experience.report
        ack = ReportAck(report_id=report.report_id, run_id=report.run_id).model_dump_json().encode()
        self._bus.send(
            Stream.ACKS, seal(self._keys().signing, Stream.ACKS, report.run_id, ack, self._time_ns()).content
        )

    def _refuse(self, reason: str, why: str) -> None:
        logger.warning("a report was refused: %s", why)
        self._telemetry.emit(items.REPORT_REFUSED, why, part=reason)

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(envelope: Envelope) -> Experience:
    experience = Experience.of(envelope.payload)
    if experience.report.run_id != envelope.audience:
        raise ValueError("it is about another run than its envelope")
    return experience
