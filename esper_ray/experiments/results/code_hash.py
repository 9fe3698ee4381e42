"""What figures depend on, in one number."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from esper_ray.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
"""Of the checkout."""

PACKAGES = ("envs", "policies", "esper_ray")
PINS = "constraints.txt"


def code_hash(study_files: Iterable[Path], root: Path = ROOT) -> str:
    """SHA-256 of the program, the versions that it is tested with, Python's first two numbers, and a study.

    Args:
        study_files: The study's, and that of the study whose trainings it takes.
        root: Of the checkout.

    Raises:
        UserError: this is no checkout, it has files in the packages that git does not know, or other versions are
            installed.
    """
    pins = root / PINS
    if not pins.is_file():
        raise UserError(f"results are made in a checkout, and {root} has no {PINS}: clone the repository")
    digest = hashlib.sha256(f"Python {'.'.join(map(str, sys.version_info[:2]))}\0".encode())
    for path in [*program(root), pins]:
        digest.update(_framed(path.relative_to(root).as_posix(), path))
    for path in study_files:
        digest.update(_framed(path.name, path))
    check_versions(pins.read_text(encoding="utf-8"))
    return digest.hexdigest()


def program(root: Path = ROOT) -> list[Path]:
    """The files of the packages, as git has them.

    Raises:
        UserError: git cannot say, or there are others beside them.
    """

    def listed(*flags: str) -> list[str]:
        command = ["git", "-C", str(root), "ls-files", "-z", *flags, "--", *PACKAGES]
        try:
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"results are made in a checkout, and git does not know one at {root}: {error}") from error
        return [name for name in said.split("\0") if name]

    if others := listed("--others", "--exclude-standard"):
        raise UserError(f"figures would depend on files that git does not know: commit or remove {', '.join(others)}")
    return [path for name in sorted(listed()) if (path := root / name).is_file()]


@cache
def check_versions(pins: str) -> None:
    """Refuse a program that is installed with other versions than it is tested with; absent extras are no fault.

    Args:
        pins: What constraints.txt says.

    Raises:
        UserError: a version that differs.
    """
    for name, pinned in re.findall(r"^([\w.-]+)==([^\s;]+)", pins, flags=re.MULTILINE):
        try:
            installed = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
        if installed != pinned.split("+")[0]:
            raise UserError(f"figures are made with {name} {pinned}, and {installed} is installed: run make install")


def changed_since(began: float, root: Path = ROOT) -> list[Path]:
    """Files of the packages that were written after a time, in seconds since the epoch, whatever is in them now."""
    return [path for path in program(root) if path.stat().st_mtime > began]


def _framed(name: str, path: Path) -> bytes:
    """A file's name and content, with their lengths told, so that nothing can move from one into the other."""
    content = path.read_bytes()
    return f"{name}\0{len(content)}\0".encode() + content
