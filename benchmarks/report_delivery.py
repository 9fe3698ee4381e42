"""The way of field reports over a real Redis server: how long it is, and what is left of them when all of it dies."""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.field_writer import FieldWriter
from benchmarks.redis_server import Server
from benchmarks.report_taker import CLAIM_AFTER_S, Taker
from esper_ray.bus.opening import open_bus
from esper_ray.bus.streams import Role, Stream
from esper_ray.controller.key_file import CurrentKeys
from esper_ray.controller.records import Records
from esper_ray.controller.remote.serving import BUS_SECONDS
from esper_ray.controller.reports.delivery import ReportDelivery
from esper_ray.controller.reports.outbox import DeliveryState, Entry, count, entries
from esper_ray.controller.store import Store

DELIVERED = DeliveryState.DELIVERED
DOWN_SECONDS = 1.0
"""For which a server that was killed is away."""
BETWEEN_SECONDS = 0.05
"""From one decision to the next while it is."""
PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Delivered:
    """How reports were delivered.

    Attributes:
        written: Reports that were committed.
        lost: Of these that never had an effect where they are taken, or are not known to have had it.
        twice: Effects that a report had beyond its first.
        backlog_rate: Reports per second of those that waited when delivery began.
        latencies: From a report's commit to that of its acknowledgement, of single reports, seconds.
        recoveries: From the moment that a server answers again to the next report's delivery, seconds.
        catching_up: From the same moment until all were delivered, seconds.
    """

    written: int
    lost: int
    twice: int
    backlog_rate: float
    latencies: tuple[float, ...]
    recoveries: tuple[float, ...]
    catching_up: tuple[float, ...]


class Way:
    """A store with a sender, a Redis server that keeps all that it acknowledges, and who takes reports from it.

    Args:
        place: An empty directory.
        store: Of the reports.
        directory: Of the store.
        keys: File of the keys.
        writer: Of the reports; some are there already.
        seed: Of chance.
    """

    def __init__(self, place: Path, store: Store, directory: Path, keys: Path, writer: FieldWriter, seed: int) -> None:
        self._writer, self._draw, self._file = writer, random.Random(seed), place / "taken"
        self._undo = ExitStack()
        with ExitStack() as undo:
            (redis := place / "redis").mkdir()
            self._server = undo.enter_context(Server(redis))
            self._taker = undo.enter_context(Taker(self._server.url, keys, self._file))
            self._records = undo.enter_context(Records.open(directory))
            bus = undo.enter_context(open_bus(self._server.url, on_event=lambda _: None, timeout_s=BUS_SECONDS))
            self._bus = bus
            self._delivery = undo.enter_context(closing(ReportDelivery(store, bus, CurrentKeys(keys))))
            self._undo = undo.pop_all()

    def close(self) -> None:
        """End all of it."""
        self._undo.close()

    @property
    def _delivered(self) -> int:
        return count(self._records, DELIVERED)

    @property
    def _untaken(self) -> int:
        group = self._bus.state(Stream.REPORTS).groups[Role.LEARNER]
        return group.pending + (group.unread or 0)

    def _wait(self, reports: int) -> float:
        """Seconds until so many reports are delivered, counted from the beginning."""
        began = time.perf_counter()
        while self._delivered < reports:
            time.sleep(0.002)
            if time.perf_counter() - began > PATIENCE_SECONDS:
                raise RuntimeError(f"{self._delivered} of {reports} reports are delivered, and no more for long")
        return time.perf_counter() - began

    def backlog(self) -> float:
        """Begin to deliver; reports per second of those that wait."""
        self._delivery.start()
        seconds = self._wait(self._writer.reports)
        while self._untaken:  # those that were sent again while the learner had not come to them
            time.sleep(0.01)
        return self._writer.reports / seconds

    def latency(self) -> float:
        """Seconds from one report's commit to that of its acknowledgement; nothing else is under way."""
        time.sleep(self._draw.uniform(0.0, 0.2))
        self._writer.write()
        return self._wait(self._writer.reports)

    def recovery(self) -> tuple[float, float]:
        """Kill the server under load, and start it again.

        Returns:
            Seconds from then to the next report's delivery, and until all are delivered.
        """
        self._write_for(DOWN_SECONDS / 2)
        self._server.kill()
        self._write_for(DOWN_SECONDS)
        self._server.start()
        began, before = time.perf_counter(), self._delivered
        self._wait(before + 1)
        found = time.perf_counter() - began
        self._wait(self._writer.reports)
        return found, time.perf_counter() - began

    def other_taker(self) -> None:
        """Kill who takes reports under load, start it again, and wait until all are delivered."""
        self._write_for(self._draw.uniform(0.1, DOWN_SECONDS))
        self._taker.kill()
        self._write_for(BETWEEN_SECONDS)
        self._taker.start()
        self._wait(self._writer.reports)

    def _write_for(self, seconds: float) -> None:
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            self._writer.write()
            time.sleep(BETWEEN_SECONDS)

    def settle(self) -> tuple[int, int, int]:
        """End the run, wait until all is delivered, and for what may come again.

        Returns:
            Reports that were written, lost, and taken twice.
        """
        self._writer.end()
        with suppress(RuntimeError):  # those are lost
            self._wait(self._writer.decisions)
        time.sleep(CLAIM_AFTER_S + 1.0)
        with closing(sqlite3.connect(self._file)) as connection:
            taken = [key for (key,) in connection.execute("SELECT report_id FROM effects")]
        delivered = {
            str(entry.report.report_id) for entry in entries(self._records, DELIVERED) if isinstance(entry, Entry)
        }
        written = self._writer.decisions
        return written, written - len(delivered & {*taken}), len(taken) - len({*taken})


def deliver(way: Way, latencies: int, deaths: int, taker_deaths: int) -> Delivered:
    """Send reports over Redis: those that wait, one by one, and while all dies that is on their way.

    Args:
        way: That they go; nothing was delivered yet.
        latencies: That are measured.
        deaths: Of the server.
        taker_deaths: Of who takes reports.
    """
    backlog = way.backlog()
    seconds = tuple(way.latency() for _ in range(latencies))
    recoveries = [way.recovery() for _ in range(deaths)]
    for _ in range(taker_deaths):
        way.other_taker()
    firsts, wholes = (tuple(one[at] for one in recoveries) for at in (0, 1))
    return Delivered(*way.settle(), backlog, seconds, firsts, wholes)
