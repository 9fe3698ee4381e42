"""The bus as those who use it see it, wherever it is."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Self, TypeVar

from esper_ray.bus.deliveries import DeadLetter, Delivery, StreamState
from esper_ray.bus.errors import BusUnavailable, GroupMissing, NotSent
from esper_ray.bus.events import BusEvent, EventKind, log_event
from esper_ray.bus.streams import RULES, Stream, StreamRules

T = TypeVar("T")
logger = logging.getLogger(__name__)

NAME = "esper"
"""Of a bus, unless another is given."""
CLAIM_AFTER_S = 20.0
"""For so long an entry belongs to whom it was delivered: less than what is acted on may be old, so that another one
still gets it in time."""
CLOSED = "the bus is closed"
MOST_DELIVERIES = 5
"""After so many an entry lies with the dead letters."""
LOOK_EVERY_S = 1.0
"""How often one who waits looks for what others have left."""
TIMEOUT_S = 5.0
"""Within which a server answers."""


class Bus(ABC):
    """Streams of bytes, each read by groups of consumers. Any thread may call it.

    An entry goes to one consumer of every group, at least once: until it is acknowledged it is delivered again, to
    whoever of the group asks after it has been left alone for ``claim_after_s``; handling must therefore do no harm
    when it happens twice. A consumer that takes longer renews its claim (:class:`esper_ray.bus.renewing.Renewed`). A
    group that is new begins with the oldest entry that is left.

    Args:
        rules: Of the streams.
        claim_after_s: Seconds after which an entry that was neither acknowledged nor renewed is delivered again. Longer
            than handling one takes.
        on_event: Is told what happens, in the caller's thread; by default the log is.

    Raises:
        ValueError: ``claim_after_s`` is below a millisecond.
    """

    def __init__(
        self,
        *,
        rules: Mapping[Stream, StreamRules] = RULES,
        claim_after_s: float = CLAIM_AFTER_S,
        on_event: Callable[[BusEvent], None] = log_event,
    ) -> None:
        if not claim_after_s >= 1e-3:
            raise ValueError(f"claim_after_s must be at least 0.001, got {claim_after_s}")
        self.rules, self.claim_after_s, self._on_event = rules, claim_after_s, on_event
        self._joined: set[tuple[Stream, str]] = set()
        self._closed = False

    def send(self, stream: Stream, payload: bytes) -> str:
        """Send something; it is on the stream when this returns.

        What every group has acknowledged goes from the stream first, if all that are required exist.

        Args:
            stream: Where.
            payload: What.

        Returns:
            The entry's id.

        Raises:
            StreamFull: too much on it is not acknowledged.
            MemoryFull: the server has no room.
            NotSent: it is larger than the stream admits.
            BusUnavailable: whether it was sent is not known.
        """
        self._check_open()
        limit = self.rules[stream].payload_bytes
        if len(payload) > limit:
            raise NotSent(f"the stream {stream} admits {limit:,} bytes at most, and got {len(payload):,}")
        return self._send(stream, payload)

    def join(self, stream: Stream, group: str) -> None:
        """Make a group, if it does not exist: nothing that is on the stream goes before it has read it.

        Raises:
            MemoryFull: the server has no room.
            BusUnavailable: it may not exist.
        """
        self._check_open()
        self._make_group(stream, group)
        self._joined.add((stream, group))

    def leave(self, stream: Stream, group: str) -> None:
        """Remove a group that will read nothing more: what it has not handled holds nothing up, and is lost to it.

        Raises:
            BusUnavailable: it may still be there.
        """
        self._check_open()
        self._joined.discard((stream, group))
        self._remove_group(stream, group)

    def receive(
        self, stream: Stream, group: str, consumer: str, *, count: int = 16, wait_s: float = 0.0
    ) -> tuple[Delivery, ...]:
        """Take what a group has still to handle: first what others have left, then what is new. Makes the group.

        Args:
            stream: From where.
            group: For whom.
            consumer: Who takes it: a name that no other of the group has, and the same after a restart.
            count: So many at most; all are to be handled within ``claim_after_s``, or renewed.
            wait_s: Seconds to wait for the first.

        Returns:
            None, or at least one.

        Raises:
            BusUnavailable: what was taken meanwhile, if anything, is delivered again later.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        ends = time.monotonic() + wait_s
        while True:
            self._check_open()
            if claimed := self._in_group(stream, group, lambda: self._claim(stream, group, consumer, count)):
                return claimed
            wait = min(max(ends - time.monotonic(), 0.0), LOOK_EVERY_S, self.claim_after_s)
            if read := self._in_group(stream, group, lambda: self._read(stream, group, consumer, count, wait)):  # noqa: B023 - called at once
                return read
            if time.monotonic() >= ends:
                return ()

    def acknowledge(self, delivery: Delivery) -> bool:
        """Say that an entry is handled: the group never gets it again.

        Returns:
            Whether it was still to be handled; false the second time.

        Raises:
            BusUnavailable: it may be delivered again.
        """
        self._check_open()
        return self._acknowledge(delivery)

    def renew(self, delivery: Delivery) -> bool:
        """Keep an entry for another ``claim_after_s``.

        Returns:
            Whether it is still this consumer's: false once another has it, or it is acknowledged.

        Raises:
            BusUnavailable: another may get it.
        """
        self._check_open()
        return self._renew(delivery)

    def trim(self, stream: Stream) -> int:
        """Let go of what every group has acknowledged, if all that are required exist; :meth:`send` does it, too.

        Returns:
            How many entries went.

        Raises:
            BusUnavailable: it may have been done.
        """
        self._check_open()
        return self._trim(stream) if self.rules[stream].keeps_all else 0

    def dead_letters(self, stream: Stream, group: str, count: int = 100) -> tuple[DeadLetter, ...]:
        """The oldest entries that a group could not handle; they stay.

        Raises:
            BusUnavailable: the bus does not answer.
        """
        self._check_open()
        return self._dead_letters(stream, group, count)

    def discard(self, stream: Stream, group: str, letter: DeadLetter) -> bool:
        """Throw a dead letter away.

        Returns:
            Whether it was there.

        Raises:
            BusUnavailable: it may still be there.
        """
        self._check_open()
        return self._discard(stream, group, letter)

    def state(self, stream: Stream) -> StreamState:
        """How full a stream is, and why.

        Raises:
            BusUnavailable: the bus does not answer.
        """
        self._check_open()
        return self._state(stream)

    def close(self) -> None:
        """Let go of it. Entries in the caller's hands are delivered again."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise BusUnavailable(CLOSED)

    def _in_group(self, stream: Stream, group: str, do: Callable[[], T]) -> T:
        try:
            return do()
        except GroupMissing:
            self._make_group(stream, group)
            if (stream, group) in self._joined:
                self._tell(EventKind.GROUP_REMADE, stream, group, "it was gone: it begins again at the oldest entry")
            self._joined.add((stream, group))
            return do()

    def _tell(self, kind: EventKind, stream: Stream, group: str, detail: str) -> None:
        try:
            self._on_event(BusEvent(kind, stream, group, detail))
        except Exception:  # what was done is done, whoever is told
            logger.exception("an event of the bus could not be told")

    def _tell_removed(self, stream: Stream, group: str, lag: int) -> None:
        limit = self.rules[stream].most_lag
        self._tell(EventKind.GROUP_REMOVED, stream, group, f"{lag:,} entries behind, and {limit:,} are admitted")

    def _tell_buried(self, kind: EventKind, stream: Stream, group: str, entry_id: str, times: int) -> None:
        why = f"delivered {times} times" if times else "not the bus's own"
        self._tell(kind, stream, group, f"entry {entry_id}: {why}")

    def _full(self, stream: Stream) -> str:
        return (
            f"the stream {stream} holds {self.rules[stream].capacity:,} entries that not all of its groups have "
            f"acknowledged (required: {', '.join(self.rules[stream].required) or 'none'}): start those who read it, or "
            "send it again later"
        )

    @abstractmethod
    def _send(self, stream: Stream, payload: bytes) -> str: ...

    @abstractmethod
    def _make_group(self, stream: Stream, group: str) -> None: ...

    @abstractmethod
    def _remove_group(self, stream: Stream, group: str) -> None: ...

    @abstractmethod
    def _claim(self, stream: Stream, group: str, consumer: str, count: int) -> tuple[Delivery, ...]:
        """Take what was left alone for too long; GroupMissing without the group."""

    @abstractmethod
    def _read(self, stream: Stream, group: str, consumer: str, count: int, wait_s: float) -> tuple[Delivery, ...]:
        """Take what is new, within the time; GroupMissing without the group."""

    @abstractmethod
    def _acknowledge(self, delivery: Delivery) -> bool: ...

    @abstractmethod
    def _renew(self, delivery: Delivery) -> bool: ...

    @abstractmethod
    def _trim(self, stream: Stream) -> int: ...

    @abstractmethod
    def _dead_letters(self, stream: Stream, group: str, count: int) -> tuple[DeadLetter, ...]: ...

    @abstractmethod
    def _discard(self, stream: Stream, group: str, letter: DeadLetter) -> bool: ...

    @abstractmethod
    def _state(self, stream: Stream) -> StreamState: ...
