"""A real Redis server on a free loopback port, with a directory of its own: it can be paused, killed and restarted."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from benchmarks.nodes import HOST, free_port

REDIS_SERVER = shutil.which("redis-server")
"""None where it is not installed."""


def end_with_starter() -> None:
    """Before a process begins: the kernel kills it as soon as the thread that started it is gone (PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Server:
    """Runs until it is killed; what was acknowledged is on disk then.

    Args:
        directory: For its files.
        options: Of its configuration, beside what a bus needs.

    Raises:
        RuntimeError: it is not installed, or did not start.

    Attributes:
        port: That it listens on, the same after a restart.
        url: Of its first database.
    """

    def __init__(self, directory: Path, **options: str) -> None:
        if REDIS_SERVER is None:
            raise RuntimeError("redis-server is not installed (Debian: redis-server)")
        self.port = free_port()
        self.url = f"redis://{HOST}:{self.port}/0"
        given = {
            "port": str(self.port),
            "bind": HOST,
            "dir": str(directory),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            **{name.replace("_", "-"): value for name, value in options.items()},
        }
        self._command = [REDIS_SERVER, *(word for name, value in given.items() for word in (f"--{name}", value))]
        self._log = directory / "log"
        self.start()

    def start(self) -> None:
        """Start it, after it was killed once more, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=end_with_starter
            )
        for _ in range(1500):
            if self._process.poll() is not None:
                break
            if self._answers():
                return
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"redis-server did not start: {self._log.read_text()[-2000:]}")

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def pause(self) -> None:
        """Let it answer nobody."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """With SIGKILL."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
