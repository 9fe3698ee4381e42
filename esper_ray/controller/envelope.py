"""What every message travels in: signed bytes, which are stored and sent as they are.

The bytes are eight parts, each behind its length in 8 bytes (big-endian), and nothing else: ``esper/1``, key id, type,
audience, timestamp (8 bytes, big-endian), nonce, payload, signature. Signed is all before the signature's length
(HMAC-SHA256, RFC 2104), as it came: nothing is written anew to be verified. The payload is bytes to whoever carries it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Self

from esper_ray.bus.streams import MOST_ENVELOPE_BYTES, MOST_PAYLOAD_BYTES, Stream
from esper_ray.controller.framing import parts_of, prefixed
from esper_ray.controller.keys import Key

VERSION = b"esper/1"
NONCE_BYTES = 16
SIGNATURE_BYTES = 32
_MOST_BYTES = {"key id": 64, "type": 32, "audience": 800, "payload": MOST_PAYLOAD_BYTES, "signature": SIGNATURE_BYTES}
_EXACT_BYTES = {"timestamp": 8, "nonce": NONCE_BYTES}
_NAMES = ("version", "key id", "type", "audience", "timestamp", "nonce", "payload", "signature")


@dataclass(frozen=True)
class Envelope:
    """A message as it travels. That it can be read says nothing of who sent it.

    Attributes:
        key_id: Of the key that it is signed with, it says.
        type: What it is; a text that may be no :class:`Stream`.
        audience: Id of the run that it is about.
        timestamp_ns: When it was signed, nanoseconds since 1970.
        nonce: 16 bytes that no other envelope has.
        payload: The message itself, at most 65 MiB.
        signature: 32 bytes; empty where it is not signed.
        content: All of it, exactly as it is stored and sent.
    """

    key_id: str
    type: str
    audience: str
    timestamp_ns: int
    nonce: bytes
    payload: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    content: bytes = field(repr=False)

    @classmethod
    def read(cls, content: bytes) -> Self:
        """Take bytes apart, and believe none of them.

        Raises:
            ValueError: they are no envelope.
        """
        if len(content) > MOST_PAYLOAD_BYTES + MOST_ENVELOPE_BYTES:
            raise ValueError(f"{len(content)} bytes are more than an envelope has")
        parts = parts_of(content, len(_NAMES))
        if len(parts) < len(_NAMES):
            raise ValueError(f"it has {len(parts)} parts in place of {len(_NAMES)}")
        version, key_id, kind, audience, timestamp, nonce, payload, signature = parts
        if version != VERSION:
            raise ValueError(f"it does not begin with {VERSION.decode()}")
        for name, part in zip(_NAMES, parts, strict=True):
            if len(part) > _MOST_BYTES.get(name, len(part)) or len(part) != _EXACT_BYTES.get(name, len(part)):
                raise ValueError(f"its {name} has {len(part)} bytes")
        return cls(
            key_id.decode("ascii"),
            kind.decode("ascii"),
            audience.decode(),
            int.from_bytes(timestamp, "big"),
            nonce,
            payload,
            signature,
            content,
        )

    @property
    def signed(self) -> bytes:
        """Of the content what the signature is of."""
        return self.content[: len(self.content) - len(prefixed(self.signature))]


def seal(key: Key, kind: Stream, audience: str, payload: bytes, timestamp_ns: int) -> Envelope:
    """Sign a message, with a nonce of its own. What is sent again later is sealed again.

    Args:
        key: To sign with.
        kind: What it is.
        audience: Id of the run that it is about.
        payload: The message, at most 65 MiB.
        timestamp_ns: Now, nanoseconds since 1970.

    Raises:
        ValueError: the audience or the payload is too long, or the audience is no text.
        OverflowError: a time before 1970.
    """
    signed = b"".join(
        map(
            prefixed,
            (
                VERSION,
                key.key_id.encode(),
                kind.encode(),
                audience.encode(),
                timestamp_ns.to_bytes(_EXACT_BYTES["timestamp"], "big"),
                secrets.token_bytes(NONCE_BYTES),
                payload,
            ),
        )
    )
    return Envelope.read(signed + prefixed(key.sign(signed)))
