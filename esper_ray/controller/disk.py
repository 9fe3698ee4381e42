"""A thread for all that touches the disk, so that nobody who decides waits for it longer than there is time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from esper_ray.controller.records import StoreFailed

logger = logging.getLogger(__name__)

T = TypeVar("T")


class DiskLate(StoreFailed):
    """What was to be done is not done yet."""


class Disk:
    """Does one thing after another, in the order in which they are given."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "controller's disk")

    def within(self, do: Callable[[], T], seconds: float) -> T:
        """Do something, and wait for it.

        Raises:
            DiskLate: it is not done in time; it will be done all the same.
            Exception: what it raises.
        """
        try:
            return self._thread.submit(do).result(seconds)
        except TimeoutError:
            raise DiskLate("the disk did not answer in time") from None

    def later(self, do: Callable[[], Any]) -> None:
        """Do something after what was given before, and wait for nobody; what it raises is told in the log."""

        def told() -> None:
            try:
                do()
            except StoreFailed as error:
                logger.warning("%s", error)
            except Exception:
                logger.exception("something failed after a decision")

        try:
            self._thread.submit(told)
        except RuntimeError:  # closed
            logger.warning("a controller that is closed was told something")

    def close(self) -> None:
        """Finish what was given."""
        self._thread.shutdown()
