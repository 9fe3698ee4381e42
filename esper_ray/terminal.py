"""Where the program writes: the only place that makes a console, so that one set of rules holds for all it says."""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

LOG_COLUMNS = 120
"""Width of tables in a file or a pipe, where rich would make it 80."""

HEARTBEAT_SECONDS = 15.0


def output() -> Console:
    """Standard output. Text appears as it is given: brackets are no markup, and no line is broken."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a name may be no text at all
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else LOG_COLUMNS
    return Console(width=width, markup=False, highlight=False, soft_wrap=True, emoji=False)


def silent() -> Console:
    """Nobody reads it."""
    return Console(quiet=True)


def command(*words: str | Path) -> str:
    """A command of this program, to be pasted into a shell as it is."""
    return shlex.join(["esper-ray", *map(str, words)])


@contextmanager
def under_way(console: Console, text: str) -> Iterator[Callable[[str], None]]:
    """Say what is under way for as long as it takes: beside a spinner, or into a file or a pipe every 15 s.

    Args:
        console: Where.
        text: What is under way.

    Yields:
        Call it with another text when something else is.
    """
    if console.is_terminal:
        with console.status(Text(text)) as status:
            yield lambda text: status.update(Text(text))
        return
    now, over, began = [text], threading.Event(), time.monotonic()

    def beat() -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            minutes, seconds = divmod(int(time.monotonic() - began), 60)
            console.print(f"{minutes}:{seconds:02d} {now[0]}")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield lambda text: now.__setitem__(0, text)
    finally:
        over.set()
        thread.join()
