"""The way of metrics and events out of the service: it neither waits for those who take them nor hears their errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from threading import Thread
from typing import Protocol, Self

from esper_ray.controller.commands import Severity
from esper_ray.controller.telemetry import Item, Reading, Route

logger = logging.getLogger(__name__)

WAITING = 4096
"""Readings that may wait for a sink; what comes then is lost for it."""
USUAL_PATIENCE_S = 5.0
"""For which sinks are waited for at the end."""


class Sink(Protocol):
    """What takes readings, in a thread of its own."""

    @property
    def route(self) -> Route:
        """Which readings it takes."""
        ...

    def take(self, reading: Reading) -> None:
        """Take one; whatever it raises, it gets no more."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class CallingSink:
    """Hands readings on to a function, which is called in a thread of its own.

    Args:
        call: The function.
        route: Which readings it gets.
    """

    def __init__(self, call: Callable[[Reading], None], route: Route = Route.BUS) -> None:
        self._call, self.route = call, route

    def take(self, reading: Reading) -> None:
        """Call it."""
        self._call(reading)

    def close(self) -> None:
        """Nothing is held."""


class Telemetry:
    """Emits to any number of sinks, each of which has a queue and a thread of its own.

    A sink that fails is closed, which is logged once; the others go on. One that is slower than what comes loses it,
    which is logged once, too.

    Args:
        sinks: Are closed with it.
        time_ns: Nanoseconds since 1970.
        patience_s: Seconds for which they are waited for then.
    """

    def __init__(
        self,
        sinks: Iterable[Sink] = (),
        time_ns: Callable[[], int] = time.time_ns,
        patience_s: float = USUAL_PATIENCE_S,
    ) -> None:
        self._outlets, self._time_ns, self._patience_s = [_Outlet(sink) for sink in sinks], time_ns, patience_s

    def emit(
        self,
        item: Item,
        value: float | str | None,
        run_id: str = "",
        epoch: int = 0,
        *,
        part: str = "",
        severity: Severity = Severity.DEBUG,
    ) -> None:
        """Emit a value or an event; it returns at once.

        Args:
            item: Which.
            value: Of it; None is not measured, and not emitted.
            run_id: Of the run; empty of what is the service's own.
            epoch: Of the run.
            part: Which of the item's values it is.
            severity: How bad an event is, if it is worse than the item says.

        Raises:
            ValueError: nothing like it is declared, which is the caller's mistake.
        """
        if value is None:
            return
        reading = Reading(item, value, run_id, epoch, part, max(severity, item.severity), self._time_ns())
        for outlet in self._outlets:
            outlet.put(reading)

    def close(self) -> None:
        """Write what is waiting, and close all sinks; one that does not come to an end is left."""
        for outlet in self._outlets:
            outlet.end()
        ends = time.monotonic() + self._patience_s
        for outlet in self._outlets:
            outlet.thread.join(max(ends - time.monotonic(), 0.0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Outlet:
    """A sink, its queue and its thread."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self._route = sink, sink.route
        self._name = type(sink).__name__
        self._queue: SimpleQueue[Reading | None] = SimpleQueue()
        self._open, self._behind = True, False
        self.thread = Thread(target=self._run, name=f"telemetry {self._name}", daemon=True)
        self.thread.start()

    def put(self, reading: Reading) -> None:
        if not self._open or self._route not in reading.item.routes:
            return
        if self._queue.qsize() < WAITING:
            self._queue.put(reading)
        elif not self._behind:
            self._behind = True
            logger.warning("telemetry: %s does not keep up, and loses what comes too fast", self._name)

    def end(self) -> None:
        self._open = False
        self._queue.put(None)

    def _run(self) -> None:
        try:
            while (reading := self._queue.get()) is not None:
                self._sink.take(reading)
        except Exception as error:
            self._open = False
            reason = " ".join(str(error).split())
            logger.warning("telemetry: %s gets no more: %s: %s", self._name, type(error).__name__, reason)
        finally:
            self._close()

    def _close(self) -> None:
        try:
            self._sink.close()
        except Exception as error:
            logger.warning("telemetry: %s could not be closed: %s", self._name, " ".join(str(error).split()))
