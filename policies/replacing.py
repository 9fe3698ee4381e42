"""Files that take the place of others when they are whole: written aside, brought to disk, then put in place."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = ".unfinished"
"""End of a name under which something is written before it is whole."""


def aside(path: Path) -> Path:
    """A name beside a path that nobody else writes under."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no such thing for directories.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of another one when it is whole: a reader sees the old or the new one.

    Yields:
        Where to write it; its name has another end.

    Raises:
        OSError: it cannot be written; the one before is still there.
    """
    unfinished = aside(path)
    try:
        yield unfinished
        sync(unfinished)
        os.replace(unfinished, path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            unfinished.unlink()
