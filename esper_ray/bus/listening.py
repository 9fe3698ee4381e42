"""Threads that take what comes for a group."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread

from esper_ray.bus.deliveries import Delivery
from esper_ray.bus.errors import BusError
from esper_ray.bus.interface import LOOK_EVERY_S, Bus
from esper_ray.bus.streams import Stream

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 5.0
"""Between two tries on a bus that does not answer."""


class Listener:
    """Hands every entry of a stream to a function, and acknowledges it when that returns.

    An entry with which the function fails comes again, until it lies with the dead letters. A bus that does not answer
    is asked again and again; the log says when it stops answering, and when it does again.

    Args:
        bus: Of the stream.
        stream: That is listened to.
        group: For whom.
        handle: Is called with every entry, in one of the threads. It must do no harm to be called twice with one.
        name: Of the consumers, the same after a restart, and no others' of the group.
        threads: Entries that are handled at once.
    """

    def __init__(
        self,
        bus: Bus,
        stream: Stream,
        group: str,
        handle: Callable[[Delivery], None],
        *,
        name: str,
        threads: int = 1,
    ) -> None:
        self._bus, self._stream, self._group, self._handle = bus, stream, group, handle
        self._ended = Event()
        self._threads = [
            Thread(target=self._run, args=(f"{name}-{number}",), name=f"{stream} {number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Finish what is being handled, and take nothing more."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self, consumer: str) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            try:
                deliveries = self._bus.receive(self._stream, self._group, consumer, count=1, wait_s=LOOK_EVERY_S)
                if pause:
                    logger.warning("the stream %s answers again", self._stream)
                pause = 0.0
                for delivery in deliveries:
                    self._take(delivery)
            except BusError as error:
                if not pause and not self._ended.is_set():
                    logger.warning("the stream %s cannot be listened to, and is tried again: %s", self._stream, error)
                pause = min(max(2.0 * pause, 0.1), LONGEST_PAUSE_S)

    def _take(self, delivery: Delivery) -> None:
        try:
            self._handle(delivery)
        except BusError:
            raise
        except Exception:
            logger.exception("an entry of the stream %s could not be handled", self._stream)
        else:
            self._bus.acknowledge(delivery)
