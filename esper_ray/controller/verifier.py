"""Whether a message is believed: signed by who has a key, meant for here, fresh, and not carried out before."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from enum import StrEnum

from esper_ray.bus.streams import Stream
from esper_ray.controller.envelope import Envelope
from esper_ray.controller.keys import KeyRing
from esper_ray.controller.message_ages import FUTURE_NS, MOST_AGE_NS, SECOND_NS
from esper_ray.controller.nonces import Entry, NonceLedger


class Untrusted(StrEnum):
    """Why an envelope is refused: the first that holds, in this order."""

    MISSING_SIGNATURE = "missing_signature"
    """It is not signed, or the bytes are no envelope."""
    UNKNOWN_KEY = "unknown_key"
    """It is signed with a key that is not in the ring here."""
    BAD_SIGNATURE = "bad_signature"
    """It is not what was signed: it was changed on its way, or forged."""
    WRONG_TYPE = "wrong_type"
    """It is another kind of message than is taken here."""
    WRONG_AUDIENCE = "wrong_audience"
    """It is about another run."""
    FUTURE = "future"
    """It was signed more than 5 s from now: one of the two clocks is wrong."""
    STALE = "stale"
    """It was signed too long ago: commands and packets 60 s, all others 7 days."""
    REPLAYED_NONCE = "replayed_nonce"
    """It has had its effect, or another message with its nonce has."""


class EnvelopeRefused(Exception):
    """An envelope is not believed, or not again.

    Args:
        reason: Why.
        detail: The same in words; nothing of a payload or a key.
        envelope: It, where its signature was good; else None.

    Attributes:
        reason: As given.
        envelope: As given.
    """

    def __init__(self, reason: Untrusted, detail: str, envelope: Envelope | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.envelope = reason, envelope


class Redelivered(EnvelopeRefused):
    """The effect of this very message is committed: acknowledge it, and carry nothing out."""


class Verifier:
    """Believes messages, and none twice.

    What has its effect later than it is received is verified when it comes (:meth:`verify`) and entered with its effect
    (:meth:`enter`); what has it at once is both at once (:meth:`accept`).

    Args:
        keys: Gives the keys as they are now.
        ledger: Of what has had its effect.
        time_ns: Nanoseconds since 1970.
    """

    def __init__(
        self, keys: Callable[[], KeyRing], ledger: NonceLedger, time_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._keys, self._ledger, self._time_ns = keys, ledger, time_ns

    def verify(self, content: bytes, kind: Stream, audience: str | None) -> Envelope:
        """Check all but whether it came before.

        Args:
            content: Exactly as it came.
            kind: That it must be.
            audience: Run that it must be about. None takes any: hold what the payload says to the envelope's.

        Returns:
            The envelope, which can be believed.

        Raises:
            EnvelopeRefused: it can not.
        """
        envelope = self._authentic(content)
        if envelope.type != kind:
            raise EnvelopeRefused(
                Untrusted.WRONG_TYPE, f"it is of the type {envelope.type!r}, not {kind.value!r}", envelope
            )
        if audience is not None and envelope.audience != audience:
            raise EnvelopeRefused(
                Untrusted.WRONG_AUDIENCE, f"it is about the run {envelope.audience!r}, not {audience!r}", envelope
            )
        age_ns = self._time_ns() - envelope.timestamp_ns
        if age_ns < -FUTURE_NS:
            raise EnvelopeRefused(
                Untrusted.FUTURE, f"it was signed {-age_ns / SECOND_NS:.1f} s from now: see to both clocks", envelope
            )
        if age_ns > MOST_AGE_NS[kind]:
            detail = f"it is {age_ns / SECOND_NS:.1f} s old, and may be {MOST_AGE_NS[kind] / SECOND_NS:g}"
            raise EnvelopeRefused(Untrusted.STALE, detail, envelope)
        return envelope

    def _authentic(self, content: bytes) -> Envelope:
        try:
            envelope = Envelope.read(content)
        except ValueError as error:
            raise EnvelopeRefused(Untrusted.MISSING_SIGNATURE, f"these bytes are no envelope: {error}") from None
        if not envelope.signature:
            raise EnvelopeRefused(Untrusted.MISSING_SIGNATURE, "it is not signed")
        key = self._keys().find(envelope.key_id)
        if key is None:
            raise EnvelopeRefused(Untrusted.UNKNOWN_KEY, f"there is no key {envelope.key_id!r} here")
        if not key.verifies(envelope.signed, envelope.signature):
            raise EnvelopeRefused(Untrusted.BAD_SIGNATURE, "its signature is that of something else")
        return envelope

    def enter(self, connection: sqlite3.Connection, envelope: Envelope) -> None:
        """Enter a message that was verified; its effect belongs in the same transaction. What is too old is dropped.

        Args:
            connection: In a transaction.
            envelope: As :meth:`verify` returned it. How old it has become since does not matter.

        Raises:
            Redelivered: its effect is committed.
            EnvelopeRefused: the nonce was another message's; or what was received at its time is forgotten.
            RuntimeError: there is no transaction.
        """
        entry = self._ledger.enter(connection, envelope)
        if entry is Entry.UNKNOWN:
            self._ledger.forget(connection, self._time_ns())
        if entry is Entry.COMMITTED:
            raise Redelivered(Untrusted.REPLAYED_NONCE, "its effect is committed", envelope)
        if entry is Entry.OTHER:
            raise EnvelopeRefused(Untrusted.REPLAYED_NONCE, "another message had its nonce", envelope)
        if entry is Entry.FORGOTTEN:
            detail = (
                "it is as old as messages that are forgotten here: it was received long ago, or the clock has gone back"
            )
            raise EnvelopeRefused(Untrusted.STALE, detail, envelope)

    def accept(self, connection: sqlite3.Connection, content: bytes, kind: Stream, audience: str | None) -> Envelope:
        """Verify a message and enter it; its effect belongs in the same transaction.

        Args:
            connection: In a transaction.
            content: Exactly as it came.
            kind: As for :meth:`verify`.
            audience: As for :meth:`verify`.

        Returns:
            The envelope, whose effect is to be.

        Raises:
            Redelivered: its effect is committed; also of a message that is too old by now, or from a time to which the
                clock has gone back.
            EnvelopeRefused: it is not believed.
            RuntimeError: there is no transaction.
        """
        try:
            envelope = self.verify(content, kind, audience)
        except EnvelopeRefused as refused:
            untimely = refused.envelope if refused.reason in (Untrusted.FUTURE, Untrusted.STALE) else None
            if untimely is not None and self._ledger.look(connection, untimely) is Entry.COMMITTED:
                raise Redelivered(refused.reason, "its effect is committed", untimely) from None
            raise
        self.enter(connection, envelope)
        return envelope
