"""How old a message of each stream may be when it is received."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from esper_ray.bus.streams import Stream

RECEIVED_WITHIN_MS = 60_000
"""Age at which a command is too old to be received."""
SECOND_NS = 10**9
DAY_NS = 86_400 * SECOND_NS
FUTURE_NS = 5 * SECOND_NS
"""How far a sender's clock may be ahead, nanoseconds."""


_ACTED_ON = (Stream.STATES, Stream.COMMANDS)
"""Of a run as it is now; what is told of it later is as true when it comes late."""
MOST_AGE_NS: Mapping[Stream, int] = MappingProxyType(
    {kind: RECEIVED_WITHIN_MS * 10**6 if kind in _ACTED_ON else 7 * DAY_NS for kind in Stream}
)
"""Age at which a message is too old to be received, nanoseconds."""
LONGEST_AGE_NS = max(MOST_AGE_NS.values())
"""After it nothing counts any more, whatever it is."""
