"""Messages between a service and its workers: bytes behind their lengths, of which none are ever unpickled."""

from __future__ import annotations

import asyncio
import socket

from policies.strategic.packet_values import Message

MOST_BYTES = 1 << 26
"""Of a message; a longer one is none of ours."""
_PREFIX = 8
"""Bytes of a length."""


def framed(message: Message, *blobs: bytes) -> bytes:
    """A message as JSON and the bytes that belong to it, as one frame: its length, then each part behind its own."""
    parts = (message.model_dump_json().encode(), *blobs)
    return prefixed(b"".join(prefixed(part) for part in parts))


def received(connection: socket.socket) -> list[bytes]:
    """The parts of the next frame of a blocking connection.

    Raises:
        EOFError: it has ended.
        ValueError: what came is no frame.
    """
    return parts_of(_exactly(connection, _body_length(_exactly(connection, _PREFIX))))


async def read(stream: asyncio.StreamReader) -> list[bytes]:
    """The parts of the next frame of a stream.

    Raises:
        EOFError: it has ended.
        ValueError: what came is no frame.
    """
    return parts_of(await stream.readexactly(_body_length(await stream.readexactly(_PREFIX))))


def prefixed(content: bytes) -> bytes:
    """Bytes behind their length."""
    return len(content).to_bytes(_PREFIX, "big") + content


def parts_of(body: bytes, most: int | None = None) -> list[bytes]:
    """What :func:`prefixed` was put together of.

    Args:
        body: All of it.
        most: Parts that it may have; None for any number.

    Raises:
        ValueError: the lengths do not add up to it, or there are more parts.
    """
    parts: list[bytes] = []
    at = 0
    while at < len(body):
        if len(parts) == most:
            raise ValueError(f"there is more behind the {most} parts of a message")
        start = at + _PREFIX
        at = start + int.from_bytes(body[at:start], "big")
        parts.append(body[start:at])
    if at != len(body):
        raise ValueError("the parts of a message are not as long as it")
    return parts


def _exactly(connection: socket.socket, count: int) -> bytes:
    content = bytearray(count)
    rest = memoryview(content)
    while rest:
        taken = connection.recv_into(rest)
        if not taken:
            raise EOFError
        rest = rest[taken:]
    return bytes(content)


def _body_length(prefix: bytes) -> int:
    length = int.from_bytes(prefix, "big")
    if length > MOST_BYTES:
        raise ValueError(f"a message of {length} bytes is longer than {MOST_BYTES}")
    return length
