"""What a directory held when it was written, so that what was damaged or lost since is found before it is read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import TypeAdapter

from esper_ray.errors import UserError
from esper_ray.reading import checked, read_json

MANIFEST_FILE = "files.json"
"""SHA-256 of every other file of a directory, by its path in it."""


def file_sha256(path: Path) -> str:
    """Hexadecimal.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def write_manifest(directory: Path) -> None:
    """Note down what is in a directory."""
    (directory / MANIFEST_FILE).write_text(json.dumps(_files(directory), indent=2) + "\n")


def check_manifest(directory: Path) -> None:
    """Compare a directory with what it held when it was written.

    Raises:
        UserError: a file is another one, missing or new, or cannot be read.
    """
    remedy = "restore it from a copy, or train anew"
    path = directory / MANIFEST_FILE
    written = checked(read_json(path), TypeAdapter(dict[str, str]), f"{path} is damaged, {remedy}")
    found = _files(directory)
    for name in sorted(written.keys() | found.keys()):
        if written.get(name) != found.get(name):
            problem = "missing" if name not in found else "not what was written" if name in written else "no part of it"
            raise UserError(f"{directory} is damaged, {remedy}: {name} is {problem}")


def _files(directory: Path) -> dict[str, str]:
    paths = (path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST_FILE)
    return {path.relative_to(directory).as_posix(): file_sha256(path) for path in paths}
