"""Files that hold a secret: nobody but their owner can use them, or they are not used."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from esper_ray.errors import UserError

_MOST_BYTES = 65_536
"""Of a file; what is kept in one has hundreds."""


def read_secret(path: Path, kind: str, *, missing: str, leaked: str) -> bytes:
    """What a file holds that is its owner's alone.

    Args:
        path: Of the file.
        kind: Of secret, for messages: "key", "token".
        missing: The message where there is no such file.
        leaked: What to do about a secret that others may have read, as a command.

    Raises:
        UserError: it cannot be read, is no file, or somebody else may use it.
    """
    try:
        # Whatever waits at the other end of a pipe is not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UserError(missing) from None
    except OSError as error:
        raise UserError(f"cannot read the {kind} file {path}: {error.strerror}") from None
    try:
        _check_private(path, kind, leaked, os.fstat(descriptor))
        return os.read(descriptor, _MOST_BYTES)
    except OSError as error:
        raise UserError(f"cannot read the {kind} file {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _check_private(path: Path, kind: str, leaked: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"the {kind} file {path} is no file")
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise UserError(f"others may use the {kind} file {path} (mode {mode:04o}): chmod 600 {path}, and {leaked}")
    if found.st_uid != os.geteuid():
        raise UserError(
            f"the {kind} file {path} belongs to user {found.st_uid}, and you are user {os.geteuid()}: give a file of "
            "your own, or chown it"
        )
    if found.st_size > _MOST_BYTES:
        raise UserError(f"{path} has {found.st_size} bytes and cannot be a {kind} file")
