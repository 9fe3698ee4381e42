"""What happens on a bus that somebody should know of."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum

from esper_ray.bus.streams import Stream

logger = logging.getLogger(__name__)


class EventKind(StrEnum):
    """What happened."""

    DEAD_LETTER = "dead_letter"
    """An entry was delivered as often as it may be, or is none of ours: it lies with the dead letters."""
    DEAD_LETTERS_FULL = "dead_letters_full"
    """One that should lie there has no room: nobody gets it, and it holds back the stream's trimming."""
    GROUP_REMOVED = "group_removed"
    """A group that is not required lagged too far behind."""
    GROUP_REMADE = "group_remade"
    """A group was gone, and begins again at the oldest entry."""
    ENTRY_MISSING = "entry_missing"
    """An entry that was not acknowledged was deleted by somebody else."""


@dataclass(frozen=True)
class BusEvent:
    """Something that happened.

    Attributes:
        kind: What.
        stream: Where.
        group: Whose.
        detail: In a few words.
    """

    kind: EventKind
    stream: Stream
    group: str
    detail: str


def log_event(event: BusEvent) -> None:
    """Tell it in the log."""
    logger.warning("bus: %s on %s, group %s: %s", event.kind, event.stream, event.group, event.detail)
