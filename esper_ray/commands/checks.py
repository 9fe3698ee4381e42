"""Checks that several commands make."""

from __future__ import annotations

import os
from pathlib import Path

from esper_ray.errors import UserError
from esper_ray.keeping.writing import check_writable, make_directories

WORKERS = min(2, os.cpu_count() or 1)
"""Processes that train hosts, unless told otherwise."""


def writable(path: Path) -> Path:
    """A file that is written when long work is done, refused before it begins; its directory is made if need be.

    Raises:
        UserError: there can be no such file.
    """
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory")
    make_directories(path.parent)
    check_writable(path)  # reports replace the file before them
    return path


def picture_name(path: Path) -> Path:
    """The name of a picture of a kind that can be drawn.

    Raises:
        UserError: it ends otherwise.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    if path.suffix[1:] not in FigureCanvasBase.get_supported_filetypes():
        raise UserError(f"--output {path} names no picture: end it on .png, .svg or .pdf")
    return path
