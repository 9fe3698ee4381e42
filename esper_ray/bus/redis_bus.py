"""The bus between processes, on Redis Streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from redis.exceptions import ResponseError

from esper_ray.bus import redis_scripts as scripts
from esper_ray.bus.deliveries import DeadLetter, Delivery, GroupState, StreamState
from esper_ray.bus.errors import BusUnavailable, GroupMissing, MemoryFull, StreamFull
from esper_ray.bus.events import BusEvent, EventKind, log_event
from esper_ray.bus.interface import CLAIM_AFTER_S, CLOSED, LOOK_EVERY_S, MOST_DELIVERIES, NAME, TIMEOUT_S, Bus
from esper_ray.bus.redis_server import RedisServer
from esper_ray.bus.streams import RULES, Stream, StreamRules

_PAYLOAD = scripts.PAYLOAD.encode()


class RedisBus(Bus):
    """A bus on a server that all who use it reach.

    Args:
        url: Of the server (:class:`esper_ray.bus.redis_server.RedisServer`).
        name: Keys on the server begin with it: buses of other names know nothing of this one.
        rules: Of the streams, the same for all who use it.
        claim_after_s: As every bus has it.
        on_event: Is told what happens.
        timeout_s: Seconds within which the server answers; more than a reader waits in one piece.

    Raises:
        UserError: the URL is none, or the server is not fit.
        BusUnavailable: the server does not answer.
        ValueError: ``timeout_s`` is too short.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = NAME,
        rules: Mapping[Stream, StreamRules] = RULES,
        claim_after_s: float = CLAIM_AFTER_S,
        on_event: Callable[[BusEvent], None] = log_event,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        super().__init__(rules=rules, claim_after_s=claim_after_s, on_event=on_event)
        if timeout_s <= LOOK_EVERY_S:
            raise ValueError(f"timeout_s must be above {LOOK_EVERY_S:g}, for which a reader waits; got {timeout_s:g}")
        self._name = name
        self._server = RedisServer(url, timeout_s)
        client = self._server.client
        self._trim_script = client.register_script(scripts.TRIM)
        self._send_script = client.register_script(scripts.SEND)
        self._claim_script = client.register_script(scripts.CLAIM)
        self._bury_script = client.register_script(scripts.BURY)
        self._renew_script = client.register_script(scripts.RENEW)
        self._state_script = client.register_script(scripts.STATE)

    def close(self) -> None:
        """Close the connections."""
        super().close()
        self._server.client.close()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """As of :meth:`RedisServer.failures`; whatever a connection raises that is closed under somebody's hands."""
        try:
            with self._server.failures():
                yield
        except (ValueError, OSError, BusUnavailable) as error:
            if self._closed:
                raise BusUnavailable(CLOSED) from error
            raise

    def _key(self, stream: Stream) -> str:
        return f"{self._name}:{stream}"

    def _letters(self, stream: Stream, group: str = "") -> str:
        return f"{self._key(stream)}:dead:{group}"

    def _call(self, script: Callable[..., Any], keys: list[str], *values: str | bytes | float) -> Any:
        with self._failures():
            return script(keys=keys, args=values)

    def _send(self, stream: Stream, payload: bytes) -> str:
        rules, key = self.rules[stream], self._key(stream)
        if not rules.keeps_all:
            with self._failures():
                sent: Any = self._server.client.xadd(
                    key, {scripts.PAYLOAD: payload}, maxlen=rules.capacity, approximate=False
                )
            return _text(sent)
        values: list[str | bytes | float] = [payload, rules.capacity, rules.most_lag, *rules.required]
        try:
            entry, removed = self._call(self._send_script, [key], *values)
        except MemoryFull:
            if not self._trim(stream):
                raise
            entry, removed = self._call(self._send_script, [key], *values)
        self._tell_of(stream, removed)
        if entry is None:
            raise StreamFull(self._full(stream))
        return _text(entry)

    def _make_group(self, stream: Stream, group: str) -> None:
        with self._failures():
            try:
                self._server.client.xgroup_create(self._key(stream), group, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):  # it exists
                    raise

    def _remove_group(self, stream: Stream, group: str) -> None:
        with self._failures():
            try:
                self._server.client.xgroup_destroy(self._key(stream), group)
            except ResponseError as error:
                if "requires the key to exist" not in str(error):  # nothing was ever sent: there is no group either
                    raise

    def _claim(self, stream: Stream, group: str, consumer: str, count: int) -> tuple[Delivery, ...]:
        found, buried, unburied, missing = self._call(
            self._claim_script,
            [self._key(stream), self._letters(stream, group)],
            group,
            consumer,
            max(round(1e3 * self.claim_after_s), 1),
            count,
            MOST_DELIVERIES,
            self.rules[stream].capacity,
        )
        for entry, times in buried:
            self._tell_buried(EventKind.DEAD_LETTER, stream, group, _text(entry), times)
        for entry, times in unburied:
            self._tell_buried(EventKind.DEAD_LETTERS_FULL, stream, group, _text(entry), times)
        if self.rules[stream].keeps_all:
            for entry in missing:
                detail = f"entry {_text(entry)} was deleted before it was acknowledged"
                self._tell(EventKind.ENTRY_MISSING, stream, group, detail)
        return tuple(Delivery(stream, group, consumer, _text(entry), payload, times) for entry, payload, times in found)

    def _read(self, stream: Stream, group: str, consumer: str, count: int, wait_s: float) -> tuple[Delivery, ...]:
        block = max(round(1e3 * wait_s), 1) if wait_s > 0 else None  # 0 would be for ever
        with self._failures():
            read: Any = self._server.client.xreadgroup(
                group, consumer, {self._key(stream): ">"}, count=count, block=block
            )
        deliveries = []
        for entry, fields in read[0][1] if read else ():
            if set(fields) == {_PAYLOAD}:
                deliveries.append(Delivery(stream, group, consumer, _text(entry), fields[_PAYLOAD]))
            else:
                self._bury(stream, group, _text(entry))
        return tuple(deliveries)

    def _bury(self, stream: Stream, group: str, entry: str) -> None:
        keys = [self._key(stream), self._letters(stream, group)]
        buried = self._call(self._bury_script, keys, group, entry, self.rules[stream].capacity)
        kind = EventKind.DEAD_LETTER if buried else EventKind.DEAD_LETTERS_FULL
        self._tell_buried(kind, stream, group, entry, 0)

    def _acknowledge(self, delivery: Delivery) -> bool:
        with self._failures():
            return bool(self._server.client.xack(self._key(delivery.stream), delivery.group, delivery.entry_id))

    def _renew(self, delivery: Delivery) -> bool:
        values = (delivery.group, delivery.consumer, delivery.entry_id)
        try:
            return bool(self._call(self._renew_script, [self._key(delivery.stream)], *values))
        except GroupMissing:
            return False

    def _trim(self, stream: Stream) -> int:
        rules = self.rules[stream]
        gone, removed = self._call(self._trim_script, [self._key(stream)], rules.most_lag, *rules.required)
        self._tell_of(stream, removed)
        return int(gone)

    def _tell_of(self, stream: Stream, removed: list[Any]) -> None:
        for name, lag in zip(removed[::2], removed[1::2], strict=True):
            self._tell_removed(stream, _text(name), lag)

    def _dead_letters(self, stream: Stream, group: str, count: int) -> tuple[DeadLetter, ...]:
        with self._failures():
            letters: Any = self._server.client.xrange(self._letters(stream, group), count=count)
        return tuple(
            DeadLetter(_text(letter), _text(fields[b"entry"]), fields.get(_PAYLOAD, b""), int(fields[b"count"]))
            for letter, fields in letters
        )

    def _discard(self, stream: Stream, group: str, letter: DeadLetter) -> bool:
        with self._failures():
            return bool(self._server.client.xdel(self._letters(stream, group), letter.letter_id))

    def _state(self, stream: Stream) -> StreamState:
        entries, rows = self._call(self._state_script, [self._key(stream)], self._letters(stream))
        groups = {_text(name): GroupState(pending, unread, dead) for name, pending, unread, dead in rows}
        missing = tuple(name for name in self.rules[stream].required if name not in groups)
        return StreamState(entries, self.rules[stream].capacity, groups, missing)


def _text(given: bytes) -> str:
    return given.decode(errors="replace")
