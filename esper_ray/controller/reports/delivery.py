"""The way of field reports to whoever learns from them: at least once, until they say that they have them."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Annotated, Self

from envs.ranges import Positive, Range, check_numbers
from esper_ray.bus.deliveries import Delivery
from esper_ray.bus.errors import BusError, BusUnavailable, MemoryFull, NotSent, StreamFull
from esper_ray.bus.interface import Bus
from esper_ray.bus.streams import Role, Stream
from esper_ray.controller import telemetry as items
from esper_ray.controller.chain import Broken
from esper_ray.controller.emitting import Telemetry
from esper_ray.controller.envelope import seal
from esper_ray.controller.keys import KeyRing
from esper_ray.controller.message_ages import SECOND_NS
from esper_ray.controller.nonces import NonceLedger
from esper_ray.controller.records import StoreFailed
from esper_ray.controller.reports import outbox
from esper_ray.controller.reports.backing_off import Backoff, Pause
from esper_ray.controller.reports.field_report import ReportAck
from esper_ray.controller.reports.outbox import DeliveryState
from esper_ray.controller.store import Store
from esper_ray.controller.verifier import EnvelopeRefused, Redelivered, Verifier
from esper_ray.errors import UserError

logger = logging.getLogger(__name__)

LEDGER = "report acks"
LOOK_S = 0.1
"""How often the thread looks for what is new, seconds."""
UNREADABLE = "unreadable"
"""What is refused for that is signed as it must be, and says nothing."""


@dataclass(frozen=True)
class DeliveryConfig:
    """How often and for how long reports are sent."""

    first_wait_s: Positive = 1.0
    """After which a report that nobody acknowledged is sent again, seconds; each wait is twice the one before."""
    longest_wait_s: Positive = 60.0
    """The longest of these waits, seconds."""
    attempts: Annotated[int, Range(1, 10**6, whole=True)] = 20
    """So often a report is sent before it is parked."""
    most_untaken: Annotated[int, Range(1, 10**6, whole=True)] = 1024
    """Entries on the stream that a learner has still to take, from which on nothing more is sent: a server that nobody
    reads from is not filled with reports, as commands need its memory, too."""
    kept_s: Positive = 86_400.0
    """For which a report stays after it was acknowledged, seconds."""
    batch: Annotated[int, Range(1, 1024, whole=True)] = 16
    """Reports that are written down at once: a decision waits for no more of them."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)


class ReportDelivery:
    """Sends a store's reports and takes in their acknowledgements, in a thread of its own or step by step.

    A report is sealed anew for every attempt. What cannot be sent because of the bus is no attempt: all waits until it
    can. What is sent is noted after it was, so that after a crash it is sent once more, and never less.

    Args:
        store: Of the decisions.
        bus: To send on; is not closed.
        keys: Gives the keys as they are now.
        consumer: Name on the stream of acknowledgements: the same after a restart, and no other service's.
        config: How often.
        telemetry: Where metrics and events go, by default nowhere.
        time_ns: Nanoseconds since 1970.
        draw: Waits are drawn from it; by default another one each time.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        keys: Callable[[], KeyRing],
        *,
        consumer: str = "service",
        config: DeliveryConfig | None = None,
        telemetry: Telemetry | None = None,
        time_ns: Callable[[], int] = time.time_ns,
        draw: random.Random | None = None,
    ) -> None:
        self._store, self._bus, self._keys, self._consumer = store, bus, keys, consumer
        self._config, self._telemetry, self._time_ns = config or DeliveryConfig(), telemetry or Telemetry(), time_ns
        self._verifier = Verifier(keys, NonceLedger(LEDGER), time_ns)
        self._backoff = Backoff(self._config.first_wait_s, self._config.longest_wait_s, draw or random.Random())
        self._sending, self._receiving = Pause(self._backoff), Pause(self._backoff)
        self._unreadable: dict[str, int] = {}
        self._counts: dict[DeliveryState, int] = {}
        self._closed, self._thread = Event(), Thread(target=self.run, name="controller's reports", daemon=True)

    # ------------------------------------------------------------------ by itself
    def run(self) -> None:
        """Do what is due, until it is closed. It raises nothing: what fails is tried again, and the log says so."""
        while not self._closed.is_set():
            try:
                wait_s = self.step()
            except Exception:
                logger.exception("delivering reports failed")
                wait_s = self._config.first_wait_s
            self._closed.wait(min(wait_s, LOOK_S))

    def start(self) -> None:
        """Run in a thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, and wait for it. What is not delivered is in the store."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ step by step
    def step(self) -> float:
        """Take in acknowledgements, send what is due, let go of what has been delivered for long enough.

        What bus and store refuse it does not raise: nothing is lost by it, and it is tried again after a pause.

        Returns:
            Seconds until something is due; 0 where something is now, infinity where nothing waits. An acknowledgement
            may come at any time.
        """
        again = self._guarded(self._receiving, self._take_acks) | self._guarded(self._sending, self._send)
        return 0.0 if again else self._next()

    def _guarded(self, pause: Pause, do: Callable[[int], bool]) -> bool:
        """Do something unless it failed a moment ago; whether there is more of it to do at once."""
        now = self._time_ns()
        if pause.left(now):
            return False
        try:
            again = do(now)
        except (BusError, StoreFailed) as error:
            if pause.failed(now):
                logger.warning("reports: %s; they are kept, and it is tried again", error)
                self._telemetry.emit(items.REPORTS_HELD_UP, str(error))
            return False
        pause.succeeded()
        return again

    def _next(self) -> float:
        now = self._time_ns()
        try:
            at = outbox.next_due(self._store)
        except StoreFailed:
            return self._config.first_wait_s
        if at is None:
            return math.inf
        return min(max(at - now, self._sending.left(now), 0), self._backoff.longest_ns) / SECOND_NS

    # ------------------------------------------------------------------ sending
    def _send(self, now: int) -> bool:
        most = min(self._config.batch, self._room(now))
        self._unreadable = {key: until for key, until in self._unreadable.items() if until > now}
        found = outbox.due(self._store, now, now + self._backoff.longest_ns, most, self._unreadable)
        sent: dict[str, int] = {}
        parked: dict[str, str] = {}
        held_up: BusError | None = None
        for report_id, attempts in found:
            if attempts >= self._config.attempts:
                parked[report_id] = f"it was sent {attempts} times, and nobody has acknowledged it"
                continue
            try:
                if self._send_one(report_id, now):
                    sent[report_id] = attempts
            except (StreamFull, MemoryFull, BusUnavailable) as error:
                held_up = error
                break
            except NotSent as error:  # it alone, however often it were sent
                parked[report_id] = str(error)
        self._note(now, sent, parked)
        if held_up is not None:
            raise held_up
        return len(found) == most

    def _room(self, now: int) -> int:
        """How many reports may be sent, as far as those who are to take them have room; a batch where none is due.

        Raises:
            BusError: none, or nobody knows.
        """
        most, at = self._config.most_untaken, outbox.next_due(self._store)
        if at is None or now < at <= now + self._backoff.longest_ns:
            return self._config.batch
        state = self._bus.state(Stream.REPORTS)
        if state.missing:  # what is sent to nobody would be sent again and again, and parked in the end
            raise NotSent(f"nobody has joined the stream {Stream.REPORTS} yet, which takes a learner")
        groups = [state.groups[name] for name in self._bus.rules[Stream.REPORTS].required]
        untaken = [state.entries if group.unread is None else group.pending + group.unread for group in groups]
        room = most - max(untaken, default=0)
        if room <= 0:
            raise StreamFull(f"{most:,} reports or more lie on the stream {Stream.REPORTS} untaken: start a learner")
        return room

    def _send_one(self, report_id: str, now: int) -> bool:
        """Send a report.

        Returns:
            Whether there is one that can be read.
        """
        try:
            experience = outbox.read_experience(self._store, report_id)
        except StoreFailed as error:
            self._unreadable[report_id] = now + self._backoff.longest_ns
            self._refuse(UNREADABLE, str(error))
            return False
        if experience is None:
            return False
        run_id = experience.report.run_id
        envelope = seal(self._keys().signing, Stream.REPORTS, run_id, experience.framed(), self._time_ns())
        self._bus.send(Stream.REPORTS, envelope.content)
        return True

    def _note(self, now: int, sent: dict[str, int], parked: dict[str, str]) -> None:
        gone = outbox.over(self._store, now, self._config.batch)
        if sent or parked or gone:
            with self._store.transaction() as connection:
                for report_id, attempts in sent.items():
                    with self._alone(report_id):
                        outbox.note_sent(connection, report_id, now + self._backoff.after(attempts + 1))
                for report_id, why in parked.items():
                    with self._alone(report_id):
                        outbox.park(connection, report_id, why)
                outbox.forget(connection, gone)
        for report_id, attempts in sent.items():
            if attempts:
                self._telemetry.emit(items.REPORT_RETRIED, f"{report_id}, for the {attempts + 1}. time")
        for report_id, why in parked.items():
            logger.warning("the report %s is parked: %s", report_id, why)
            self._telemetry.emit(items.REPORT_PARKED, f"{report_id}: {why}")
        self._tell_counts()

    @contextmanager
    def _alone(self, report_id: str) -> Iterator[None]:
        """A report that is not as it was written is left so, and holds up no other one."""
        try:
            yield
        except Broken as error:
            self._unreadable[report_id] = self._time_ns() + self._backoff.longest_ns
            self._refuse(UNREADABLE, str(error))

    # ------------------------------------------------------------------ acknowledgements
    def _take_acks(self, now: int) -> bool:
        most = self._config.batch
        taken = self._bus.receive(Stream.ACKS, Role.SERVICE, self._consumer, count=most)
        if taken:
            refused = self._take(taken, now)
            for delivery in taken:
                self._bus.acknowledge(delivery)
            for reason, why in refused:
                self._refuse(reason, why)
            self._tell_counts()
        return len(taken) == most

    def _take(self, taken: Sequence[Delivery], now: int) -> list[tuple[str, str]]:
        """All that came at once, in one transaction; what is refused changes nothing in it."""
        refused: list[tuple[str, str]] = []
        gone_ns = now + int(self._config.kept_s * SECOND_NS)
        with self._store.transaction() as connection:
            for delivery in taken:
                try:
                    envelope = self._verifier.accept(connection, delivery.payload, Stream.ACKS, None)
                    ack = ReportAck.model_validate_json(envelope.payload)
                    if ack.run_id != envelope.audience:
                        raise ValueError("an acknowledgement is about another run than its envelope")
                    outbox.note_delivered(connection, ack.report_id, ack.run_id, gone_ns)
                except Redelivered:
                    continue
                except EnvelopeRefused as error:
                    refused.append((error.reason, str(error)))
                except (ValueError, Broken) as error:
                    refused.append((UNREADABLE, " ".join(str(error).split())))
        return refused

    # ------------------------------------------------------------------ telling
    def _refuse(self, reason: str, why: str) -> None:
        logger.warning("reports: %s", why)
        self._telemetry.emit(items.REPORT_REFUSED, why, part=reason)

    def _tell_counts(self) -> None:
        for state, item in (
            (DeliveryState.PENDING, items.REPORTS_PENDING),
            (DeliveryState.PARKED, items.REPORTS_PARKED),
        ):
            number = outbox.count(self._store, state)
            if self._counts.get(state) != number:
                self._counts[state] = number
                self._telemetry.emit(item, float(number))
