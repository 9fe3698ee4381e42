"""A thread for all that touches the disk, so that nobody who decides waits for it longer than there is time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from esper_ray.controller.errands import Errands
from esper_ray.controller.records import StoreFailed

T = TypeVar("T")


class DiskLate(StoreFailed):
    """What was to be done is not done yet."""


class Disk(Errands):
    """What is to be done on it, some of which is waited for."""

    def __init__(self) -> None:
        super().__init__("controller's disk")

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
