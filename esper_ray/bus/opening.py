"""One way to every bus."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from esper_ray.bus.events import BusEvent, log_event
from esper_ray.bus.in_process import InProcessBus
from esper_ray.bus.interface import CLAIM_AFTER_S, NAME, TIMEOUT_S, Bus
from esper_ray.bus.streams import RULES, Stream, StreamRules
from esper_ray.errors import UserError


def open_bus(
    url: str | None = None,
    *,
    name: str = NAME,
    rules: Mapping[Stream, StreamRules] = RULES,
    claim_after_s: float = CLAIM_AFTER_S,
    on_event: Callable[[BusEvent], None] = log_event,
    timeout_s: float = TIMEOUT_S,
) -> Bus:
    """Open a bus.

    Args:
        url: ``redis://HOST:PORT/DB`` of a Redis server, or ``rediss://`` over TLS; None is a new bus of this process.
        name: Of the bus on the server: buses of other names there know nothing of this one.
        rules: Of the streams, the same for all who use it.
        claim_after_s: Seconds after which an entry that was neither acknowledged nor renewed is delivered again.
        on_event: Is told what happens; by default the log is.
        timeout_s: Seconds within which a server answers; more than one, for which a reader waits in one piece.

    Returns:
        The bus, to be closed by the caller.

    Raises:
        UserError: the URL is none, redis-py is not installed, or the server is not fit.
        BusUnavailable: the server does not answer.
    """
    if url is None:
        return InProcessBus(rules=rules, claim_after_s=claim_after_s, on_event=on_event)
    try:
        from esper_ray.bus.redis_bus import RedisBus
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise UserError("a bus on Redis needs redis-py: pip install 'esper-ray[redis]'") from None
    return RedisBus(url, name=name, rules=rules, claim_after_s=claim_after_s, on_event=on_event, timeout_s=timeout_s)
