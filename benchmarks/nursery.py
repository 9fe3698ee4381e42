"""Processes that are killed at any moment, each started in no time.

A nursery is a process that has imported all that they need, and forks one for each line that it reads. Each child tells
its process number, then what it has done.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Self

from benchmarks.nodes import ROOT

DONE = "done"
"""Told by a child that has nothing left to do, and waits to be killed."""
_ENDED = "ended"


class Nursery:
    """Starts children, and kills them.

    Args:
        module: Whose main function is :func:`raise_children`.
    """

    def __init__(self, module: str) -> None:
        command = [sys.executable, "-m", module]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def killed(self, line: str, seconds: float, after: int = 0) -> list[str]:
        """Start a child, and kill it.

        Args:
            line: That it is given.
            seconds: For which it lives, once it has told so many lines or is done.
            after: How many.

        Returns:
            The lines that it told.
        """
        child, told = self._start(line), list[str]()
        while len(told) < after and (said := self._line()) != DONE:
            assert said != _ENDED, "it has ended by itself"
            told.append(said)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        return told + self._rest()

    def ended(self, line: str) -> list[str]:
        """Start a child that ends by itself; returns the lines that it told."""
        self._start(line)
        return self._rest()

    def _start(self, line: str) -> int:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return int(self._line())

    def _rest(self) -> list[str]:
        return [line for line in iter(self._line, _ENDED) if line != DONE]

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery has ended"
        return line.rstrip("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def raise_children(live: Callable[[str], None]) -> None:
    """Start a child for each line of this process's input.

    Args:
        live: What it does with its line; it tells with :func:`tell`. Who is to be killed never ends by itself.
    """
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            try:
                tell(str(os.getpid()))
                live(line.rstrip("\n"))
            except BaseException:
                traceback.print_exc()
            os._exit(0)  # nothing of it goes on as a second nursery
        os.waitpid(child, 0)
        tell(_ENDED)


def tell(line: str) -> None:
    """Write a line, whole or not at all.

    Raises:
        ValueError: it is longer than a pipe takes at once.
    """
    content = f"{line}\n".encode()
    if len(content) > select.PIPE_BUF:
        raise ValueError(f"a line has {len(content):,} bytes, and may have {select.PIPE_BUF:,}")
    os.write(1, content)
