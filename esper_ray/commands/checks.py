"""Checks that several commands make."""

from __future__ import annotations

import os
from pathlib import Path

from esper_ray.errors import UserError


def at_least(flag: str, value: int, least: int) -> None:
    """Refuse a flag's value below ``least``."""
    if value < least:
        raise UserError(f"{flag} must be at least {least}, got {value}")


def writable(path: Path) -> Path:
    """A file that is written when long work is done, refused before it begins; its directory is made if need be.

    Raises:
        UserError: it is a directory, or there can be no file there.
    """
    if path.is_dir():
        raise UserError(f"--output {path} is a directory: name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"--output {path} can't be written: a file is in the way of its directory") from error
    except OSError as error:
        raise UserError(f"--output {path} can't be written: {error.strerror}: {error.filename}") from error
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--output {path} can't be written: no permission")
    return path
