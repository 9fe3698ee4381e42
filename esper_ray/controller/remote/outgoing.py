"""What a run sends, without waiting for a bus."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from threading import Condition, Thread

from esper_ray.bus.errors import BusError
from esper_ray.bus.interface import Bus
from esper_ray.bus.streams import Stream

logger = logging.getLogger(__name__)

MOST_KEPT = 256
"""Messages that are kept while the bus does not take them; then the oldest go."""
AGAIN_AFTER_S = 1.0
"""From one try to send what the bus did not take to the next."""
PATIENCE_S = 5.0
"""For which the bus is waited for at the end."""


class Outgoing:
    """Sends one message after another in a thread of its own.

    Args:
        bus: That they are sent on.
        seal: Makes of a stream and a payload what is sent. It is called anew at every try: an envelope ages.
    """

    def __init__(self, bus: Bus, seal: Callable[[Stream, bytes], bytes]) -> None:
        self._bus, self._seal = bus, seal
        self._kept: deque[tuple[Stream, bytes]] = deque(maxlen=MOST_KEPT)
        self._latest: tuple[Stream, bytes] | None = None
        self._news, self._closing, self._stuck = Condition(), False, False
        self._thread = Thread(target=self._run, name="outgoing", daemon=True)
        self._thread.start()

    def latest(self, stream: Stream, payload: bytes) -> None:
        """Send something that nobody wants any more once there is another one, or if the bus does not take it."""
        with self._news:
            self._latest = stream, payload
            self._news.notify_all()

    def keep(self, stream: Stream, payload: bytes) -> None:
        """Send something, and try again until the bus takes it."""
        with self._news:
            self._kept.append((stream, payload))
            self._news.notify_all()

    def close(self) -> None:
        """Send what is left, if the bus takes it soon."""
        with self._news:
            self._closing = True
            self._news.notify_all()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        while True:
            with self._news:
                if self._stuck:
                    self._news.wait_for(lambda: self._latest is not None or self._closing, AGAIN_AFTER_S)
                else:
                    self._news.wait_for(lambda: self._latest is not None or self._kept or self._closing)
                if self._closing and (self._stuck or not (self._latest or self._kept)):
                    return
                latest, self._latest = self._latest, None
                first = latest if latest is not None else self._kept[0] if self._kept else None
            if first is None:
                self._stuck = False
                continue
            if self._sent(*first) and latest is None:
                with self._news:
                    if self._kept and self._kept[0] is first:
                        self._kept.popleft()

    def _sent(self, stream: Stream, payload: bytes) -> bool:
        try:
            self._bus.send(stream, self._seal(stream, payload))
        except BusError as error:
            if not self._stuck:
                logger.warning("what this run says does not leave: %s", error)
            self._stuck = True
            return False
        if self._stuck:
            logger.warning("what this run says leaves again")
        self._stuck = False
        return True
