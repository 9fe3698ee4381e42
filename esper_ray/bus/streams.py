"""Which streams there are, who must have read what is on them before it goes, and how much they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from policies.strategic.packet_values import MOST_PACKET_BYTES

MEBIBYTE = 1 << 20
MOST_PAYLOAD_BYTES = 65 * MEBIBYTE
"""Of the largest message, an update: 64 MiB of weights, which it may not exceed, and what is said of them."""
MOST_ENVELOPE_BYTES = 4096
"""Of what it travels in."""


class Stream(StrEnum):
    """What is sent where."""

    STATES = "states"
    """Packets of runs."""
    COMMANDS = "commands"
    """To a run; each run's executor is a group of its own (:func:`group_of_run`)."""
    RESULTS = "results"
    """What became of commands."""
    REPORTS = "reports"
    """Field reports."""
    ACKS = "acks"
    """Of field reports, end to end."""
    UPDATES = "updates"
    """Of the policy."""
    TELEMETRY = "telemetry"
    """Metrics and events; of these alone the oldest go when there are too many."""
    EMERGENCY = "emergency"
    """What is HIGH or CRITICAL, once more."""


class Role(StrEnum):
    """Who reads, but for the executors of runs. Each role is one group of consumers: an entry goes to one of them."""

    SERVICE = "service"
    """Decides."""
    LEARNER = "learner"
    """Learns from reports."""
    MONITOR = "monitor"
    """Somebody is told by it."""


@dataclass(frozen=True)
class StreamRules:
    """What holds of a stream.

    Attributes:
        required: Groups that must have acknowledged an entry before it may go. While one of them does not exist nothing
            goes.
        capacity: Entries that it holds at most; then it refuses more.
        payload_bytes: Size of the largest payload, bytes.
        keeps_all: False: the oldest entries go when there are more than ``capacity``, whoever has read them.

    Raises:
        ValueError: one of the numbers is below 1.
    """

    required: tuple[str, ...] = ()
    capacity: int = 4096
    payload_bytes: int = MEBIBYTE
    keeps_all: bool = True

    def __post_init__(self) -> None:
        if min(self.capacity, self.payload_bytes) < 1:
            raise ValueError(
                f"a stream holds at least one entry of one byte, got {self.capacity} of {self.payload_bytes}"
            )

    @property
    def most_lag(self) -> int:
        """Entries that a group which is not required may have before it, or hold unacknowledged.

        One that has more is removed by trimming, for which the required groups must exist.
        """
        return self.capacity // 2


RULES: Mapping[Stream, StreamRules] = MappingProxyType(
    {
        Stream.STATES: StreamRules(
            (Role.SERVICE,), capacity=1024, payload_bytes=MOST_PACKET_BYTES + MOST_ENVELOPE_BYTES
        ),
        Stream.COMMANDS: StreamRules(),
        Stream.RESULTS: StreamRules((Role.SERVICE,)),
        # A report has the packet that its decision was made on.
        Stream.REPORTS: StreamRules((Role.LEARNER,), capacity=65_536, payload_bytes=MOST_PACKET_BYTES + MEBIBYTE),
        Stream.ACKS: StreamRules((Role.SERVICE,), capacity=65_536),
        Stream.UPDATES: StreamRules(
            (Role.SERVICE,), capacity=8, payload_bytes=MOST_PAYLOAD_BYTES + MOST_ENVELOPE_BYTES
        ),
        Stream.TELEMETRY: StreamRules(capacity=65_536, keeps_all=False),
        Stream.EMERGENCY: StreamRules((Role.MONITOR,)),
    }
)
"""Of every stream."""


def group_of_run(run_id: str) -> str:
    """The group that takes the commands to a run, of which it is the only consumer."""
    return f"run:{run_id}"
