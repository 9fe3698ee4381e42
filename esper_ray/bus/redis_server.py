"""A connection to a Redis server that a bus can rely on, and its errors in the bus's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as ServerGone
from redis.exceptions import TimeoutError as ServerSilent
from redis.retry import Retry

from esper_ray.bus.errors import BusUnavailable, GroupMissing, MemoryFull
from esper_ray.errors import UserError

LEAST_VERSION = (7, 0)
"""Of the server: older ones cannot say how far behind a group is."""
CONNECT_WITHIN_S = 2.0
NO_EVICTION = "noeviction"
NO_ADDRESS = (
    "that is no address of a Redis server: redis://HOST:PORT/DB with DB a number, or rediss:// over TLS; in a password "
    "write / # ? @ and : as %2F %23 %3F %40 and %3A"
)
"""What was given is not shown: a password may be anywhere in it."""


class RedisServer:
    """A server that was found fit: its version is known to work, and it throws nothing away by itself.

    Args:
        url: ``redis://HOST:PORT/DB``, or ``rediss://`` over TLS; with ``USER:PASSWORD@`` before the host where it asks
            for one. Options that begin with ``ssl_`` may follow, as redis-py has them.
        timeout_s: Seconds within which it answers.

    Raises:
        UserError: the URL is none, or the server is not fit.
        BusUnavailable: it does not answer, or refuses the password.

    Attributes:
        client: Ready for use; it repeats nothing by itself.
        address: To say where it is, without a password.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.address = _address(url)
        try:
            self.client = redis.Redis.from_url(
                url,
                # redis-py's default depends on how a client is made, and may be to repeat what failed ten times, with
                # pauses: a reader of a dead server hangs for a minute, and what was sent arrives several times.
                retry=Retry(NoBackoff(), 0),
                socket_timeout=timeout_s,
                socket_connect_timeout=min(CONNECT_WITHIN_S, timeout_s),
                socket_keepalive=True,
                protocol=2,
            )
        except (ValueError, TypeError) as error:
            raise self._no_address(error) from None
        try:
            self._check()
        except BaseException:
            self.client.close()
            raise

    def _no_address(self, error: Exception) -> UserError:
        return UserError(f"{self.address} is no address of a Redis server: {_line(error)}")

    def _check(self) -> None:
        with self.failures():
            try:
                said: dict[str, Any] = self.client.info()
            except TypeError as error:  # redis-py looks at options of the URL only now
                raise self._no_address(error) from None
        version = str(said.get("redis_version", ""))
        numbers = tuple(int(number) for number in version.split(".")[:2] if number.isdigit())
        if numbers < LEAST_VERSION:
            least = ".".join(map(str, LEAST_VERSION))
            raise UserError(f"the Redis server at {self.address} is version {version or 'unknown'}: {least} is needed")
        policy = said.get("maxmemory_policy")
        if policy != NO_EVICTION:
            raise UserError(
                f"the Redis server at {self.address} has maxmemory-policy {policy}: it would throw away whole streams "
                f"when its memory is full. Set maxmemory-policy {NO_EVICTION} in its configuration"
            )

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Say what the client raises in the bus's words.

        Raises:
            BusUnavailable: the server does not answer, or not as it should.
            MemoryFull: it has no room.
            GroupMissing: a stream or its group is not there.
        """
        try:
            yield
        except AuthenticationError as error:
            raise BusUnavailable(f"the Redis server at {self.address} refuses user or password: {error}") from error
        except ServerSilent as error:
            raise BusUnavailable(
                f"the Redis server at {self.address} did not answer within {self._timeout_s:g} s; what was sent may "
                "have arrived or not"
            ) from error
        except ServerGone as error:
            raise BusUnavailable(
                f"the Redis server at {self.address} cannot be reached: {_line(error)}; is it running?"
            ) from error
        except ResponseError as error:
            if isinstance(error, OutOfMemoryError) or "'maxmemory'" in str(error):
                raise MemoryFull(
                    f"the memory of the Redis server at {self.address} is full, and nothing was sent: it has room "
                    "again once what is there was handled, or with a higher maxmemory"
                ) from error
            # A reader that waits while its stream is deleted is told so by the second.
            if str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise GroupMissing(_line(error)) from error
            raise BusUnavailable(f"the Redis server at {self.address} refuses: {_line(error)}") from error
        except RedisError as error:
            raise BusUnavailable(f"the Redis server at {self.address} failed: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, port, database = parts.hostname, parts.port or 6379, parts.path.strip("/") or "0"
    except ValueError:
        raise UserError(NO_ADDRESS) from None
    if parts.scheme not in ("redis", "rediss") or not host or not database.isdecimal():
        raise UserError(NO_ADDRESS)
    for option, _ in parse_qsl(parts.query, keep_blank_values=True):
        if not option.startswith("ssl_"):
            raise UserError(
                f"the address of a Redis server admits no option {option!r}, only those that begin with ssl_"
            )
    return f"{parts.scheme}://{host}:{port}/{database}"
