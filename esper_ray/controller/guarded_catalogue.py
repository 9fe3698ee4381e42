"""The catalogue as a decision has it: at once, whatever reading it anew takes or comes to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Thread

from esper_ray.controller.breakers import BreakerOpenError, CircuitBreaker, RetryConfig
from esper_ray.controller.catalogue import Catalogue, CatalogueCache
from esper_ray.controller.commands import Reason
from esper_ray.errors import UserError

logger = logging.getLogger(__name__)

WAIT_SECONDS = 0.005
"""For which a decision waits while the catalogue is read anew; then it takes the one before."""


class GuardedCatalogue:
    """Reads a catalogue in a thread of its own, inside a breaker; any thread may look.

    A catalogue that cannot be read any more is told, and the one before stays; so often that the breaker opens, nothing
    is decided by it.

    Args:
        cache: Of it; read once at the beginning.
        breaker: Around reading.
        retry: Inside of one call of the breaker.
        deadline_s: Within which reading must have ended.
        now: Seconds on a clock that never goes back.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(
        self,
        cache: CatalogueCache,
        breaker: CircuitBreaker,
        retry: RetryConfig,
        deadline_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache, self._breaker, self._retry, self._deadline_s, self._now = cache, breaker, retry, deadline_s, now
        self._held = cache.get()
        self._asked: SimpleQueue[Future[Catalogue] | None] = SimpleQueue()
        # It may wait for a disk for ever; as a daemon it keeps no process from ending.
        Thread(target=self._read, name="catalogue", daemon=True).start()
        self._lock = Lock()
        self._reading: Future[Catalogue] | None = None
        self._began = now()

    def look(self) -> tuple[Catalogue, frozenset[Reason]]:
        """The latest catalogue, and what is wrong with reading it."""
        with self._lock:
            if self._reading is None:
                self._reading, self._began = Future(), self._now()
                self._asked.put(self._reading)
            reading, began = self._reading, self._began
        faults: frozenset[Reason] = frozenset()
        try:
            self._held = reading.result(WAIT_SECONDS)
        except TimeoutError:
            late = self._now() - began >= self._deadline_s
            return self._held, frozenset({Reason.TIMEOUT_CATALOGUE}) if late else faults
        except BreakerOpenError:
            faults = frozenset({Reason.BREAKER_CATALOGUE})
        except Exception as error:
            logger.warning("the catalogue stays as it was: %s", " ".join(str(error).split()))
        with self._lock:
            if self._reading is reading:
                self._reading = None
        return self._held, faults

    def _read(self) -> None:
        while (reading := self._asked.get()) is not None:
            try:
                reading.set_result(self._breaker.call(self._cache.get, self._retry, (UserError,)))
            except Exception as error:
                reading.set_exception(error)

    def close(self) -> None:
        """Read no more."""
        self._asked.put(None)
