"""What a bus hands out."""

from __future__ import annotations

from dataclasses import dataclass, field

from esper_ray.bus.streams import Stream


@dataclass(frozen=True)
class Delivery:
    """An entry in somebody's hands, until it is acknowledged or claimed by another.

    Attributes:
        stream: Where it was sent.
        group: Whom it is for.
        consumer: Of the group, who has it.
        entry_id: Of the entry, on its stream.
        payload: What was sent, bit for bit.
        count: How often it was delivered to the group, this time included.
    """

    stream: Stream
    group: str
    consumer: str
    entry_id: str
    payload: bytes = field(repr=False)
    count: int = 1


@dataclass(frozen=True)
class DeadLetter:
    """An entry that a group could not handle.

    Attributes:
        letter_id: Of the letter, among the group's.
        entry_id: Of the entry, on its stream.
        payload: What was sent; empty where that was nothing of ours.
        count: How often it was delivered.
    """

    letter_id: str
    entry_id: str
    payload: bytes = field(repr=False)
    count: int


@dataclass(frozen=True)
class GroupState:
    """How far a group is.

    Attributes:
        pending: Entries that it has not acknowledged.
        unread: Entries that it has not been given; None where the server cannot tell.
        dead: Its dead letters.
    """

    pending: int
    unread: int | None
    dead: int


@dataclass(frozen=True)
class StreamState:
    """How full a stream is, and why.

    Attributes:
        entries: That it holds.
        capacity: That it may hold.
        groups: Those that exist, by name.
        missing: Required groups that do not: nothing is trimmed.
    """

    entries: int
    capacity: int
    groups: dict[str, GroupState]
    missing: tuple[str, ...]
