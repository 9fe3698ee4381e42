"""The compiled kernels: built from ``kernels.c`` on this machine, for this machine, the first time they are wanted."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
# Tuned for one processor, gcc fuses multiplications and additions in some loops and not in others, and a sample's bits
# would depend on how many it is computed with.
FLAGS = ("-O3", "-march=native", "-mtune=generic", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where they cannot be built: hosts then compute with torch's own operators alone.

    ``CC`` names the compiler, by default the first of cc, gcc and clang. What is built stays in the user's cache
    directory, under a name that depends on source, compiler and processor.
    """
    try:
        compiler = find_compiler()
        if compiler is None:
            logger.warning("no C compiler (%s): hosts train without compiled kernels, slower", ", ".join(COMPILERS))
            return None
        return _loaded(compiler)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        logger.warning("the kernels cannot be compiled: hosts train without them, slower: %s", _reason(error))
        return None


def find_compiler() -> list[str] | None:
    """The command that compiles C; None if there is none.

    Raises:
        ValueError: ``CC`` is no command line.
    """
    if chosen := os.environ.get("CC"):
        return shlex.split(chosen)
    return next(([found] for name in COMPILERS if (found := shutil.which(name))), None)


def _reason(error: Exception) -> str:
    if not isinstance(error, subprocess.CalledProcessError):
        return str(error)
    lines = error.stderr.strip().splitlines() or [f"{shlex.join(error.cmd)} failed"]
    return next((line for line in lines if "error" in line), lines[0])


def _loaded(compiler: list[str]) -> ctypes.CDLL:
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = (SOURCE.read_text(), *FLAGS, *compiler, version, _processor())
    name = f"kernels-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    home = _cache_directory()
    if home is not None and (home / name).exists():
        return ctypes.CDLL(str(home / name))
    if home is None or not os.access(home, os.W_OK):
        with tempfile.TemporaryDirectory(prefix="esper-ray-") as scratch:  # once loaded, it needs no file any more
            _compile(compiler, Path(scratch) / name)
            return ctypes.CDLL(str(Path(scratch) / name))
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a machine's runners start at once: one compiles, the others wait for it
        if not (home / name).exists():
            fresh = home / "being-built.so"
            _compile(compiler, fresh)
            fresh.replace(home / name)
    return ctypes.CDLL(str(home / name))


def _compile(compiler: list[str], target: Path) -> None:
    command = [*compiler, *FLAGS, str(SOURCE), "-o", str(target), "-lm"]
    subprocess.run(command, capture_output=True, text=True, check=True)


def _cache_directory() -> Path | None:
    """Where libraries of this user stay; None without one that nobody else can write to, since they run as code."""
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esper-ray"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return path if status.st_uid == os.geteuid() and not status.st_mode & 0o022 else None


def _processor() -> str:
    """What ``-march=native`` depends on: a home directory may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
