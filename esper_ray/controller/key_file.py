"""Where keys come from: a file that is its owner's alone, or the environment. What they are is never said."""

from __future__ import annotations

import base64
import binascii
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from esper_ray.controller.keys import LEAST_KEY_BYTES, Key, KeyRing, KeyState
from esper_ray.controller.records import DIRECTORY, Nanoseconds
from esper_ray.errors import UserError
from esper_ray.keeping.lock import locked
from esper_ray.keeping.secret_file import read_secret
from esper_ray.keeping.writing import make_directories, remove_empty, replaced
from esper_ray.terminal import command
from policies.strategic.packet_values import Message

KEY_FILE = DIRECTORY / "signing_keys.json"
KEY_VARIABLE = "ESPER_SIGNING_KEY"
MODE = 0o600

logger = logging.getLogger(__name__)


class _StoredKey(Message):
    """A key as the file has it."""

    secret: str
    """Base64, URL-safe."""
    state: KeyState
    created_at_ns: Nanoseconds
    since_ns: Nanoseconds


class _StoredRing(Message):
    """The file."""

    keys: tuple[_StoredKey, ...]


def read_keys(path: Path = KEY_FILE, environment: Mapping[str, str] = os.environ) -> KeyRing:
    """The keys of this process.

    Args:
        path: Of the file.
        environment: Variables, of which one may have a key in place of the file.

    Raises:
        UserError: there are none, they are in both places, somebody else may use the file, or what it holds is no ring.
    """
    if KEY_VARIABLE not in environment:
        return read_key_file(path)
    if os.path.lexists(path):
        raise UserError(
            f"{KEY_VARIABLE} is set, and {path} holds keys too: unset the variable, or give another file, so that it "
            "is clear which count"
        )
    try:
        key = Key(_decoded(environment[KEY_VARIABLE].strip()), KeyState.SIGNING)
    except (UserError, ValueError) as error:
        raise UserError(
            f"{KEY_VARIABLE} holds no key ({error}): it must be base64 of at least {LEAST_KEY_BYTES} random bytes, as "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes them"
        ) from None
    return KeyRing((key,))


def read_key_file(path: Path) -> KeyRing:
    """The keys of a file.

    Raises:
        UserError: as of :func:`read_keys`.
    """
    content = read_secret(
        path,
        "key",
        missing=f"there is no signing key: {command('keys', 'new', '--file', path)} makes one, or set {KEY_VARIABLE}",
        leaked="rotate the keys (docs/security.md)",
    )
    try:
        ring = _StoredRing.model_validate_json(content)
        return KeyRing(
            tuple(Key(_decoded(key.secret), key.state, key.created_at_ns, key.since_ns) for key in ring.keys)
        )
    except UserError as error:
        reason = str(error)
    except ValueError:  # of which nothing may be quoted: a secret may stand where it does not belong
        reason = "it is not as this program writes it"
    raise UserError(f"{path} holds no keys that can be used ({reason}): take the copy of another machine, or a backup")


def write_key_file(path: Path, ring: KeyRing) -> None:
    """Write keys, whole or not at all, for their owner alone.

    Raises:
        UserError: they cannot be written, or one of them is not from a file; what was there before is there.
    """
    if any(key.created_at_ns is None or key.since_ns is None for key in ring.keys):
        raise UserError(f"keys of {KEY_VARIABLE} are not written to a file: make new ones there")
    stored = _StoredRing(
        keys=tuple(
            _StoredKey(
                secret=base64.urlsafe_b64encode(key.secret).decode(),
                state=key.state,
                created_at_ns=key.created_at_ns or 0,
                since_ns=key.since_ns or 0,
            )
            for key in ring.keys
        )
    )
    with replaced(path) as unfinished:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        with open(descriptor, "wb") as file:
            file.write(stored.model_dump_json(indent=1).encode())


def change_key_file(path: Path, change: Callable[[KeyRing | None], KeyRing]) -> KeyRing:
    """Read the keys of a file, change them and write them; of several who do so at once one waits for nobody.

    Args:
        path: Of the file; it and its directory may not be there yet.
        change: Makes of the ring that was there, or None, the one that will be.

    Returns:
        What is written.

    Raises:
        UserError: what ``change`` refuses, somebody else is changing them, or as of :func:`read_keys`.
    """
    made = make_directories(path.parent)
    try:
        with locked(path.with_name(f".{path.name}.lock"), path):
            ring = change(read_key_file(path) if os.path.lexists(path) else None)
            write_key_file(path, ring)
    finally:
        remove_empty(made)
    return ring


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):  # which quote what they were given
        raise ValueError("it is not base64") from None


class CurrentKeys:
    """The keys of this process as they are now: a file that takes the place of the one before is read.

    So that a rotation stops nobody who is at work. One that cannot be used changes nothing, and the log says so.

    Args:
        path: As for :func:`read_keys`.
        environment: Likewise.

    Raises:
        UserError: as of :func:`read_keys`.
    """

    def __init__(self, path: Path = KEY_FILE, environment: Mapping[str, str] = os.environ) -> None:
        self._path = None if KEY_VARIABLE in environment else path
        self._seen = self._look()
        self._ring, self._told = read_keys(path, environment), ""

    def __call__(self) -> KeyRing:
        """They."""
        seen = self._look()
        if self._path is not None and seen != self._seen:
            try:
                self._ring, self._seen, self._told = read_key_file(self._path), seen, ""
            except UserError as error:  # is tried again: a disk or a process may be short of something for a moment
                if str(error) != self._told:
                    self._told = str(error)
                    logger.warning("going on with the signing keys as they were: %s", error)
        return self._ring

    def _look(self) -> tuple[int, ...] | None:
        """What is another one when the file is; None where there is none."""
        if self._path is None:
            return None
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
