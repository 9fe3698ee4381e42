"""Checks that several commands make."""

from __future__ import annotations

import os
from pathlib import Path

from esper_ray.errors import UserError

WORKERS = min(2, os.cpu_count() or 1)
"""Processes that train hosts, unless told otherwise."""


def writable(path: Path) -> Path:
    """A file that is written when long work is done, refused before it begins; its directory is made if need be.

    Raises:
        UserError: there can be no such file.
    """
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"cannot write {path}: a file is in the way of its directory") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}: {error.filename}") from error
    # Reports replace the file before them, which takes permission for the directory.
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: no permission to write in {path.parent}")
    return path
