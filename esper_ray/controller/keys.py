"""Keys that messages are signed with, and how one takes another one's place without a message being refused."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Self

from esper_ray.controller.message_ages import DAY_NS, LONGEST_AGE_NS
from esper_ray.errors import UserError
from esper_ray.terminal import command

LEAST_KEY_BYTES = 32
_ID_OF = b"esper/1 key id"
"""What a key's id is its signature of. No message is: each begins with a length."""
_ID_BYTES = 8


class KeyState(StrEnum):
    """What a key does. Every key of a ring verifies."""

    NEW = "new"
    """It verifies, and signs nothing yet."""
    SIGNING = "signing"
    """It signs."""
    RETIRED = "retired"
    """It signs nothing any more, and verifies what is still under way."""


@dataclass(frozen=True)
class Key:
    """A secret that senders and receivers share. It is symmetric: whoever can verify with it can sign with it.

    Args:
        secret: At least 32 random bytes; it shows nowhere.
        state: What it does.
        created_at_ns: When it was made, nanoseconds since 1970; None where nobody knows.
        since_ns: When it came into that state; None likewise.

    Raises:
        UserError: the secret is too short.
    """

    secret: bytes = field(repr=False)
    state: KeyState
    created_at_ns: int | None = None
    since_ns: int | None = None

    def __post_init__(self) -> None:
        if len(self.secret) < LEAST_KEY_BYTES:
            raise UserError(f"a key must have at least {LEAST_KEY_BYTES} bytes, this one has {len(self.secret)}")

    @cached_property
    def key_id(self) -> str:
        """Name of the key, which tells nothing of its secret: the same wherever the key is."""
        return self.sign(_ID_OF)[:_ID_BYTES].hex()

    def sign(self, content: bytes) -> bytes:
        """HMAC-SHA256 of bytes, 32 bytes (RFC 2104)."""
        return hmac.digest(self.secret, content, "sha256")

    def verifies(self, content: bytes, signature: bytes) -> bool:
        """Whether that is the signature of these bytes. It takes the same time wherever they differ."""
        return hmac.compare_digest(self.sign(content), signature)


@dataclass(frozen=True)
class KeyRing:
    """The keys of a process: one that signs, and in a rotation one that comes or one that goes.

    Args:
        keys: In the order in which they were made.

    Raises:
        UserError: not exactly one key signs, there is more than one beside it, or one is given twice.
    """

    keys: tuple[Key, ...]

    def __post_init__(self) -> None:
        states = [key.state for key in self.keys]
        if states.count(KeyState.SIGNING) != 1:
            raise UserError(f"of a ring's keys one must sign, here {states.count(KeyState.SIGNING)} do")
        if len(states) > 2:
            raise UserError(f"a ring has one key, in a rotation two; here are {len(states)}")
        if len({key.key_id for key in self.keys}) < len(self.keys):
            raise UserError(f"the key {self.keys[0].key_id} is in the ring twice")

    @classmethod
    def first(cls, now_ns: int) -> Self:
        """A ring of one random key, which signs.

        Args:
            now_ns: Nanoseconds since 1970.
        """
        return cls((_random_key(KeyState.SIGNING, now_ns),))

    @property
    def signing(self) -> Key:
        """The key that signs."""
        return next(key for key in self.keys if key.state is KeyState.SIGNING)

    def find(self, key_id: str) -> Key | None:
        """The key of that id; None where there is none."""
        return next((key for key in self.keys if key.key_id == key_id), None)

    def with_new_key(self, now_ns: int) -> Self:
        """The first step of a rotation: a random key that verifies.

        Args:
            now_ns: Nanoseconds since 1970.

        Raises:
            UserError: another rotation is under way.
        """
        for key in self.keys:
            if key.state is not KeyState.SIGNING:
                raise UserError(
                    f"a rotation is under way, the key {key.key_id} is {key.state}: end it first with "
                    f"{command('keys', 'rotate')}"
                )
        return replace(self, keys=(*self.keys, _random_key(KeyState.NEW, now_ns)))

    def rotated(self, now_ns: int, at_once: bool = False) -> Self:
        """The second step, in which the new key signs and the old one is retired, or the third, in which that goes.

        Args:
            now_ns: Nanoseconds since 1970.
            at_once: Let a retired key go though messages that it signed may be under way.

        Raises:
            UserError: there is neither a new nor a retired key, the retired one is needed yet, or none would go at
                once.
        """
        other = next((key for key in self.keys if key.state is not KeyState.SIGNING), None)
        if other is None:
            raise UserError(
                f"there is one key, {self.signing.key_id}, and none to take its place: "
                f"{command('keys', 'new')} makes one"
            )
        if other.state is KeyState.NEW:
            if at_once:
                raise UserError(
                    f"no key is retired: the new one, {other.key_id}, signs after {command('keys', 'rotate')}, then "
                    "the old one can go at once"
                )
            return replace(self, keys=tuple(_further(key, now_ns) for key in self.keys))
        age_ns = now_ns - (other.since_ns or 0)
        if not at_once and age_ns <= LONGEST_AGE_NS:
            raise UserError(
                f"the key {other.key_id} was retired {age_ns / DAY_NS:.1f} days ago, and what it signed counts for "
                f"{LONGEST_AGE_NS / DAY_NS:g}: wait, or, if somebody else may have the key, let it go with "
                f"{command('keys', 'rotate', '--at-once')}"
            )
        return replace(self, keys=(self.signing,))


_NEXT = {KeyState.NEW: KeyState.SIGNING, KeyState.SIGNING: KeyState.RETIRED}


def _further(key: Key, now_ns: int) -> Key:
    return replace(key, state=_NEXT[key.state], since_ns=now_ns)


def _random_key(state: KeyState, now_ns: int) -> Key:
    return Key(secrets.token_bytes(LEAST_KEY_BYTES), state, now_ns, now_ns)
