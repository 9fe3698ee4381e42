"""Time for those who take long over an entry."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from threading import Event, Thread
from typing import Self

from esper_ray.bus.deliveries import Delivery
from esper_ray.bus.errors import BusError
from esper_ray.bus.interface import Bus

logger = logging.getLogger(__name__)

RENEWALS = 3
"""So many within the time after which another may take an entry: one or two may fail."""


class Renewed:
    """Keeps entries in their consumer's hands while they are handled, in a thread of its own; a context manager.

    Args:
        bus: Where they are from.
        deliveries: Are renewed until they are acknowledged, lost, or the context ends.

    Attributes:
        lost: Those that another has meanwhile, or that were acknowledged.
    """

    def __init__(self, bus: Bus, deliveries: Iterable[Delivery]) -> None:
        self._bus, self._kept = bus, list(deliveries)
        self.lost: tuple[Delivery, ...] = ()
        self._ended = Event()
        self._thread = Thread(target=self._run, name="bus renewal", daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(self._bus.claim_after_s / RENEWALS):
            for delivery in list(self._kept):
                if self._ended.is_set():
                    return
                try:
                    if not self._bus.renew(delivery):
                        self._kept.remove(delivery)
                        self.lost += (delivery,)
                except BusError as error:
                    logger.warning("an entry of the stream %s could not be kept: %s", delivery.stream, error)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
