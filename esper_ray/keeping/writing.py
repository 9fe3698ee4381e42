"""Files that outlive a process: written aside, brought to disk, then put in place. What fails leaves nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from esper_ray.errors import UserError
from policies.replacing import aside, replacing, sync

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of what cannot be written there in one line why.

    Raises:
        UserError: a full disk, no permission, a file where a directory should be.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def make_directories(path: Path) -> list[Path]:
    """Make a directory and those above it.

    Returns:
        Those that were not there before, the outermost first. Of several processes that make the same one, one is
        told so.

    Raises:
        UserError: it cannot be made.
    """
    with writing(path):
        made = [] if path.parent.is_dir() else make_directories(path.parent)
        try:
            path.mkdir()
            made.append(path)
        except FileExistsError:
            if not path.is_dir():
                raise UserError(f"cannot write {path}: a file is in the way of that directory") from None
    return made


def remove_empty(directories: Iterable[Path]) -> None:
    """Remove what :func:`make_directories` made, where nothing has come into it."""
    for directory in reversed(list(directories)):
        with suppress(OSError):
            directory.rmdir()


def check_writable(path: Path) -> None:
    """Find out whether a file can be written, by making what it is written as first: permissions alone do not say it.

    Raises:
        UserError: it cannot.
    """
    probe = aside(path)
    with writing(path):
        probe.touch(exist_ok=False)
        probe.unlink()


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of another one when it is whole: a reader sees the old or the new one.

    Yields:
        Where to write it; its name has another end.

    Raises:
        UserError: it cannot be written; the one before is still there.
    """
    with writing(path), replacing(path) as unfinished:
        yield unfinished


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file as :func:`replaced` does.

    Raises:
        UserError: it cannot be written.
    """
    with replaced(path) as unfinished:
        unfinished.write_bytes(content)


def replace_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text as :func:`replaced` does.

    Raises:
        UserError: it cannot be written.
    """
    replace_bytes(path, text.encode())


def replace_figure(path: Path, figure: Figure) -> None:
    """Write a picture, of the kind that its name says, as :func:`replaced` does.

    Raises:
        UserError: it cannot be written.
    """
    with replaced(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix[1:])


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill, which appears under its name when it and all in it is on disk.

    Yields:
        Where to fill it.

    Raises:
        UserError: it cannot be written, or there is such a directory by now; nothing is left of it.
    """
    unfinished = aside(path)
    try:
        with writing(path):
            unfinished.mkdir()
            yield unfinished
            for folder, _, names in os.walk(unfinished):
                for name in names:
                    sync(Path(folder, name))
                sync(Path(folder))
            unfinished.rename(path)
            sync(path.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
