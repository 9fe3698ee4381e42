"""The compiled kernels: built from ``kernels.c`` on this machine, for this machine, the first time they are wanted."""

from __future__ import annotations

import ctypes
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
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where they cannot be built: hosts then compute with torch's own operators alone.

    ``CC`` names the compiler, by default the first of cc, gcc and clang. What is built stays in the user's cache
    directory, under a name that depends on source, compiler and processor.
    """
    compiler = _compiler()
    if compiler is None:
        logger.warning("no C compiler (%s): hosts train without compiled kernels, slower", ", ".join(COMPILERS))
        return None
    try:
        return ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        logger.warning("hosts train without compiled kernels, slower: %s failed: %s", shlex.join(compiler), reason)
        return None


def _compiler() -> list[str] | None:
    if chosen := os.environ.get("CC"):
        return shlex.split(chosen)
    return next(([found] for name in COMPILERS if (found := shutil.which(name))), None)


def _built(compiler: list[str]) -> Path:
    """The library's file; another process that builds it at the same time does no harm."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = (SOURCE.read_text(), *FLAGS, *compiler, version, _processor())
    target = _cache_directory() / f"kernels-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            fresh = Path(scratch) / target.name
            command = [*compiler, *FLAGS, str(SOURCE), "-o", str(fresh), "-lm"]
            subprocess.run(command, capture_output=True, text=True, check=True)
            fresh.replace(target)
    return target


def _cache_directory() -> Path:
    wanted = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esper-ray"
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        if os.access(wanted, os.W_OK):
            return wanted
    except OSError:
        pass
    # A directory of this user alone: what lies in it is loaded as code.
    return Path(tempfile.mkdtemp(prefix="esper-ray-"))


def _processor() -> str:
    """What ``-march=native`` depends on: a home directory may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
