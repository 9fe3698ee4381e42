"""Metrics and events onto a bus."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from esper_ray.bus.errors import BusError
from esper_ray.bus.interface import Bus
from esper_ray.bus.streams import Stream
from esper_ray.controller.commands import Severity
from esper_ray.controller.envelope import seal
from esper_ray.controller.keys import KeyRing
from esper_ray.controller.records import Nanoseconds
from esper_ray.controller.telemetry import Reading, Route
from policies.strategic.packet_values import Message, Name, Natural

logger = logging.getLogger(__name__)

SERVICE = "service"
"""What something is about that is no run's."""


class Told(Message):
    """A metric or an event, as it travels."""

    name: Name
    """Of the item, as docs/telemetry.md has it."""
    value: float | str
    """Of the item; JSON has no infinity, so that what is not finite is a text."""
    run_id: str
    """Empty of what is the service's own."""
    epoch: Natural
    part: str
    """Which of the item's values it is."""
    severity: Name
    time_ns: Nanoseconds
    """Nanoseconds since 1970."""


class BusSink:
    """Sends readings on, signed; those of HIGH and CRITICAL go to the emergencies as well.

    What the bus does not take is gone, and the log says so once per outage: telemetry is no record.

    Args:
        bus: Where to.
        keys: Gives the keys as they are now.
        time_ns: Nanoseconds since 1970.

    Attributes:
        lost: Messages that the bus has not taken.
    """

    route = Route.BUS

    def __init__(self, bus: Bus, keys: Callable[[], KeyRing], time_ns: Callable[[], int] = time.time_ns) -> None:
        self._bus, self._keys, self._time_ns, self.lost = bus, keys, time_ns, 0
        self._stuck: set[Stream] = set()

    def take(self, reading: Reading) -> None:
        """Send it."""
        value = reading.value
        told = Told(
            name=reading.item.name,
            value=value if isinstance(value, str) or abs(value) < float("inf") else str(value),
            run_id=reading.run_id,
            epoch=reading.epoch,
            part=reading.part,
            severity=reading.severity.name,
            time_ns=reading.time_ns,
        )
        streams = [Stream.TELEMETRY, *([Stream.EMERGENCY] if reading.severity >= Severity.HIGH else [])]
        for stream in streams:
            self._send(stream, reading.run_id or SERVICE, told.model_dump_json().encode())

    def _send(self, stream: Stream, audience: str, payload: bytes) -> None:
        content = seal(self._keys().signing, stream, audience, payload, self._time_ns()).content
        try:
            self._bus.send(stream, content)
            self._stuck.discard(stream)
        except BusError as error:
            self.lost += 1
            if stream not in self._stuck:
                self._stuck.add(stream)
                logger.warning("telemetry does not leave: %s", error)

    def close(self) -> None:
        """The bus is its giver's."""
