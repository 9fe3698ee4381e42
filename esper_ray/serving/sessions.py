"""Sessions: their names, and what a replica holds of each until it has not been used for too long."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

StateT = TypeVar("StateT")


class EndedError(Exception):
    """A session that this service opened is not held any more."""


class FullError(Exception):
    """No room for another session."""


class SessionNames:
    """Names that say which replica holds the session, and that the service recognises as its own without a list.

    So a session that has ended can be told from one that never was, however long ago it ended, and nobody reaches a
    session by guessing.

    Args:
        key: Secret of the service.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def new(self, replica: int) -> str:
        """A name nobody has, of a session that this replica will hold."""
        body = f"{replica}-{secrets.token_hex(16)}"
        return f"{body}-{self._seal(body)}"

    def replica(self, name: str) -> int:
        """Which replica holds the session.

        Raises:
            ValueError: not a name that :meth:`new` gave with this key.
        """
        body, _, seal = name.rpartition("-")
        if not hmac.compare_digest(seal.encode(), self._seal(body).encode()):
            raise ValueError(name)
        return int(body.partition("-")[0])

    def _seal(self, body: str) -> str:
        return hmac.digest(self._key, body.encode(), hashlib.sha256)[:16].hex()


class Sessions(Generic[StateT]):
    """What is held, by name; a session ends when it has not been used for too long.

    Args:
        seconds: How long that is.
        capacity: Sessions at most.
        clock: Seconds that never run backwards.
    """

    def __init__(self, seconds: float, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._capacity, self._clock = seconds, capacity, clock
        self._held: OrderedDict[str, tuple[float, StateT]] = OrderedDict()  # the one used longest ago first

    def __len__(self) -> int:
        self._drop_ended()
        return len(self._held)

    def open(self, name: str, state: StateT) -> None:
        """Hold a new session.

        Raises:
            FullError: as many are held as may be; none is ended early for it.
        """
        self._drop_ended()
        if len(self._held) >= self._capacity:
            raise FullError
        self._held[name] = (self._clock(), state)

    def use(self, name: str) -> StateT:
        """What is held of a session, whose time starts anew.

        Raises:
            EndedError: nothing is held.
        """
        state = self.close(name)
        self._held[name] = (self._clock(), state)
        return state

    def close(self, name: str) -> StateT:
        """End a session and return what was held of it.

        Raises:
            EndedError: nothing is held.
        """
        self._drop_ended()
        try:
            return self._held.pop(name)[1]
        except KeyError:
            raise EndedError from None

    def _drop_ended(self) -> None:
        now = self._clock()
        while self._held:
            name = next(iter(self._held))
            if now - self._held[name][0] < self._seconds:
                return
            del self._held[name]
