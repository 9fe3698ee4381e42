"""Envelopes by their description (docs/security.md) and nothing else, so that tests can also make what nobody would."""

import hashlib
import hmac
import sqlite3
import struct

from esper_ray.bus.streams import Stream
from esper_ray.controller.keys import Key, KeyRing, KeyState
from esper_ray.controller.nonces import NonceLedger
from esper_ray.controller.verifier import Verifier

NOW = 1_800_000_000 * 10**9
SECOND = 10**9
DAY = 86_400 * SECOND
SECRET, OTHER_SECRET = bytes(range(32)), bytes(range(100, 140))
RING = KeyRing((Key(SECRET, KeyState.SIGNING),))
PARTS = ("version", "key_id", "type", "audience", "timestamp", "nonce", "payload", "signature")


def framed(parts):
    return b"".join(struct.pack(">Q", len(part)) + part for part in parts)


def parts_of(content):
    parts = []
    while content:
        (length,) = struct.unpack(">Q", content[:8])
        parts.append(content[8 : 8 + length])
        content = content[8 + length :]
    return parts


def sealed(secret=SECRET, **given):
    """The bytes of an envelope, signed as they are unless a signature is given."""
    fields = {
        "version": b"esper/1",
        "key_id": hmac.new(secret, b"esper/1 key id", hashlib.sha256).digest()[:8].hex().encode(),
        "type": b"commands",
        "audience": b"run",
        "timestamp": struct.pack(">Q", NOW),
        "nonce": bytes(16),
        "payload": b"payload",
    } | given
    signed = framed(fields[name] for name in PARTS[:-1])
    signature = fields.get("signature", hmac.new(secret, signed, hashlib.sha256).digest())
    return signed + framed([signature])


class Place:
    """Somebody who takes messages: a clock, keys, and a file of effects."""

    def __init__(self, path=":memory:", ring=RING, now=NOW):
        self.now, self.ring, self.ledger = now, ring, NonceLedger("executor")
        self.verifier = Verifier(lambda: self.ring, self.ledger, lambda: self.now)
        self.path = path
        self.open()

    def open(self):
        self.connection = sqlite3.connect(self.path, isolation_level=None)
        self.connection.execute("PRAGMA synchronous = OFF")  # no test pulls the plug
        self.connection.execute("PRAGMA journal_mode = MEMORY")
        self.connection.execute("BEGIN IMMEDIATE")
        NonceLedger.create(self.connection)
        self.connection.execute("CREATE TABLE IF NOT EXISTS effects (payload BLOB)")
        self.connection.execute("COMMIT")

    def restart(self):
        self.connection.close()
        self.open()

    def take(self, content, kind=Stream.COMMANDS, audience="run", fail=False):
        """Carry a message out, or fail at it, in one transaction with its nonce."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            envelope = self.verifier.accept(self.connection, content, kind, audience)
            self.connection.execute("INSERT INTO effects VALUES (?)", (envelope.payload,))
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("ROLLBACK" if fail else "COMMIT")
        return envelope

    @property
    def effects(self):
        return [payload for (payload,) in self.connection.execute("SELECT payload FROM effects ORDER BY rowid")]

    @property
    def nonces(self):
        return self.connection.execute("SELECT count(*) FROM nonces").fetchone()[0]
