"""Envelopes that nobody must believe: real ones that were changed on their way, and forged ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random

from esper_ray.bus.streams import Stream
from esper_ray.controller.envelope import Envelope, seal
from esper_ray.controller.framing import parts_of, prefixed
from esper_ray.controller.keys import Key, KeyState
from esper_ray.controller.message_ages import DAY_NS, SECOND_NS

Change = Callable[[Random, bytes, bytes], bytes]
"""Of the bytes of an envelope, with those of another one at hand."""


def joined(parts: Iterable[bytes]) -> bytes:
    """An envelope's bytes of its parts."""
    return b"".join(map(prefixed, parts))


# ------------------------------------------------------------------ changes
def flipped(draw: Random, content: bytes, other: bytes) -> bytes:
    """Some bits."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 8, 64))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(draw: Random, content: bytes, other: bytes) -> bytes:
    """A piece, or all but a piece."""
    start, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return draw.choice((content[:start], content[end:], content[:start] + content[end:]))


def extended(draw: Random, content: bytes, other: bytes) -> bytes:
    """Something more in it."""
    at = draw.choice((0, len(content), draw.randrange(len(content))))
    return content[:at] + draw.choice((draw.randbytes(draw.randrange(1, 40)), bytes(8), content, other)) + content[at:]


def fields_swapped(draw: Random, content: bytes, other: bytes) -> bytes:
    """Two fields change places."""
    parts = parts_of(content)
    one, another = draw.sample(range(len(parts)), 2)
    parts[one], parts[another] = parts[another], parts[one]
    return joined(parts)


def field_of_another(draw: Random, content: bytes, other: bytes) -> bytes:
    """One field is another envelope's."""
    parts, at = parts_of(content), draw.randrange(8)
    parts[at] = parts_of(other)[at]
    return joined(parts)


def field_changed(draw: Random, content: bytes, other: bytes) -> bytes:
    """One field."""
    parts, at = parts_of(content), draw.randrange(8)
    parts[at] = draw.choice((b"", parts[at][:-1], parts[at] + b"\0", draw.randbytes(len(parts[at])), parts[at].upper()))
    return joined(parts)


def fields_moved_on(draw: Random, content: bytes, other: bytes) -> bytes:
    """Their borders are elsewhere, the bytes between them the same."""
    parts, at = parts_of(content), draw.randrange(7)
    both, border = parts[at] + parts[at + 1], draw.randrange(40)
    parts[at : at + 2] = both[:border], both[border:]
    return joined(parts)


def fields_dropped_or_doubled(draw: Random, content: bytes, other: bytes) -> bytes:
    """One field is not there, or twice."""
    parts, at = parts_of(content), draw.randrange(8)
    parts[at : at + 1] = draw.choice(([], [parts[at]] * 2))
    return joined(parts)


def length_changed(draw: Random, content: bytes, other: bytes) -> bytes:
    """One length says something else."""
    parts, at = parts_of(content), draw.randrange(8)
    place = len(joined(parts[:at]))
    length = draw.choice((0, 1, len(parts[at]) + 1, max(0, len(parts[at]) - 1), len(content), 2**63, 2**64 - 1))
    return content[:place] + length.to_bytes(8, "big") + content[place + 8 :]


CHANGES = (
    flipped,
    cut,
    extended,
    fields_swapped,
    field_of_another,
    field_changed,
    fields_moved_on,
    fields_dropped_or_doubled,
    length_changed,
)


def bad_envelopes(draw: Random, key: Key, originals: Sequence[bytes]) -> Iterator[bytes]:
    """Bad envelopes without end: real ones that were changed in every way, and forged ones.

    Args:
        draw: Chance.
        key: That receivers know; what is signed with it is bad for another reason.
        originals: At least two real envelopes of one stream, which are not among what is returned.
    """
    stranger = Key(draw.randbytes(40), KeyState.SIGNING)
    while True:
        original, other = draw.sample(originals, 2)
        changed = (change(draw, original, other) for change in CHANGES)
        for content in (*changed, *_forged(draw, key, stranger, original, other)):
            if content not in originals:
                yield content


def _forged(draw: Random, key: Key, stranger: Key, original: bytes, other: bytes) -> Iterator[bytes]:
    """Another key's, an unsigned one, one with another's signature, of another kind, for another run, at no time."""
    real, now_ns = Envelope.read(original), time.time_ns()
    kind, run_id, payload = Stream(real.type), real.audience, real.payload
    yield seal(stranger, kind, run_id, payload, now_ns).content
    yield real.signed + prefixed(b"")
    yield real.signed + prefixed(Envelope.read(other).signature)
    yield seal(key, draw.choice([stream for stream in Stream if stream is not kind]), run_id, payload, now_ns).content
    yield seal(key, kind, f"not {run_id}", payload, now_ns).content
    yield seal(key, kind, run_id, payload, now_ns - 8 * DAY_NS).content
    yield seal(key, kind, run_id, payload, now_ns + 3600 * SECOND_NS).content
