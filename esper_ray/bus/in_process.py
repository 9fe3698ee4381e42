"""The bus of one process: its threads talk, and what was not handled ends with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from threading import Condition

from esper_ray.bus.deliveries import DeadLetter, Delivery, StreamState
from esper_ray.bus.errors import StreamFull
from esper_ray.bus.events import BusEvent, EventKind, log_event
from esper_ray.bus.interface import CLAIM_AFTER_S, MOST_DELIVERIES, Bus
from esper_ray.bus.memory_stream import MemoryStream
from esper_ray.bus.streams import RULES, Stream, StreamRules


class InProcessBus(Bus):
    """A bus between threads.

    Args:
        rules: Of the streams.
        claim_after_s: As every bus has it.
        on_event: Is told what happens.
        clock: Seconds, which only grow.
    """

    def __init__(
        self,
        *,
        rules: Mapping[Stream, StreamRules] = RULES,
        claim_after_s: float = CLAIM_AFTER_S,
        on_event: Callable[[BusEvent], None] = log_event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(rules=rules, claim_after_s=claim_after_s, on_event=on_event)
        self._clock = clock
        self._streams = {stream: MemoryStream(rules[stream], MOST_DELIVERIES) for stream in rules}
        self._turns = {stream: Condition() for stream in rules}

    def close(self) -> None:
        """End it for all threads, those that wait included."""
        super().close()
        for turn in self._turns.values():
            with turn:
                turn.notify_all()

    def _send(self, stream: Stream, payload: bytes) -> str:
        with self._turns[stream]:
            removed = self._streams[stream].trim()[1] if self.rules[stream].keeps_all else []
            entry = self._streams[stream].append(bytes(payload))
            self._turns[stream].notify_all()
        for group, lag in removed:
            self._tell_removed(stream, group, lag)
        if entry is None:
            raise StreamFull(self._full(stream))
        return str(entry)

    def _make_group(self, stream: Stream, group: str) -> None:
        with self._turns[stream]:
            self._streams[stream].make_group(group)

    def _remove_group(self, stream: Stream, group: str) -> None:
        with self._turns[stream]:
            self._streams[stream].remove_group(group)

    def _claim(self, stream: Stream, group: str, consumer: str, count: int) -> tuple[Delivery, ...]:
        with self._turns[stream]:
            claimed = self._streams[stream].claim(group, consumer, count, self._clock(), self.claim_after_s)
        for entry in claimed.buried:
            self._tell_buried(EventKind.DEAD_LETTER, stream, group, str(entry), MOST_DELIVERIES)
        for entry in claimed.unburied:
            self._tell_buried(EventKind.DEAD_LETTERS_FULL, stream, group, str(entry), MOST_DELIVERIES)
        return tuple(
            Delivery(stream, group, consumer, str(entry), payload, times) for entry, payload, times in claimed.entries
        )

    def _read(self, stream: Stream, group: str, consumer: str, count: int, wait_s: float) -> tuple[Delivery, ...]:
        turn = self._turns[stream]
        with turn:
            turn.wait_for(lambda: self._closed or self._streams[stream].has_unread(group), wait_s)
            read = [] if self._closed else self._streams[stream].read(group, consumer, count, self._clock())
        return tuple(Delivery(stream, group, consumer, str(entry), payload) for entry, payload in read)

    def _acknowledge(self, delivery: Delivery) -> bool:
        with self._turns[delivery.stream]:
            return self._streams[delivery.stream].acknowledge(delivery.group, int(delivery.entry_id))

    def _renew(self, delivery: Delivery) -> bool:
        with self._turns[delivery.stream]:
            return self._streams[delivery.stream].renew(
                delivery.group, int(delivery.entry_id), delivery.consumer, self._clock()
            )

    def _trim(self, stream: Stream) -> int:
        with self._turns[stream]:
            gone, removed = self._streams[stream].trim()
        for group, lag in removed:
            self._tell_removed(stream, group, lag)
        return gone

    def _dead_letters(self, stream: Stream, group: str, count: int) -> tuple[DeadLetter, ...]:
        with self._turns[stream]:
            return self._streams[stream].dead_letters(group, count)

    def _discard(self, stream: Stream, group: str, letter: DeadLetter) -> bool:
        with self._turns[stream]:
            return self._streams[stream].discard(group, letter)

    def _state(self, stream: Stream) -> StreamState:
        with self._turns[stream]:
            return self._streams[stream].state()
