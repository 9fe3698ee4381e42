"""What figures depend on, in one number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from esper_ray.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
"""Of the checkout."""

PACKAGES = ("envs", "policies", "esper_ray")
PINS = "constraints.txt"


def code_hash(study_files: Iterable[Path], root: Path = ROOT) -> str:
    """SHA-256 of the program, the versions that it is tested with, and a study.

    Args:
        study_files: The study's, and that of the study whose trainings it takes.
        root: Of the checkout.

    Raises:
        UserError: this is no checkout.
    """
    if not (root / PINS).is_file():
        raise UserError(f"results are made in a checkout, and {root} has no {PINS}: clone the repository")
    program = [
        path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    digest = hashlib.sha256()
    for path in [*program, root / PINS]:
        _add(digest, path.relative_to(root).as_posix(), path)
    for path in study_files:
        _add(digest, path.name, path)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, path: Path) -> None:
    """Take in a file, by its name and what is in it, so that nothing can move from one into the other."""
    content = path.read_bytes()
    digest.update(f"{name}\0{len(content)}\0".encode())
    digest.update(content)
