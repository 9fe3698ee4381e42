"""How the program ends when it is asked to: soon, and with one line."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)

PATIENCE_SECONDS = 10.0
"""For what has to be closed first, Ray's processes above all; after it the process is gone."""


def one_line(text: str) -> str:
    """The text, with line breaks and whatever else a terminal would act on written as Python does."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def say(text: str) -> None:
    """One line about the program itself, on stderr."""
    sys.stderr.buffer.write(f"esper-ray: {one_line(text)}\n".encode(errors="backslashreplace"))
    sys.stderr.flush()


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within it Ctrl-C and SIGTERM are a ``KeyboardInterrupt``, and at its end one line and the usual exit code.

    The interrupt's own text says what is left. Further signals change nothing: ``PATIENCE_SECONDS`` after the first the
    process is gone, should whatever runs have swallowed it or be slow to close.
    """
    received: list[int] = []
    said = False

    def stop(number: int, frame: FrameType | None) -> None:
        if received:
            return
        received.append(number)
        deadline = threading.Timer(PATIENCE_SECONDS, end)
        deadline.daemon = True
        deadline.start()
        raise KeyboardInterrupt

    def end() -> NoReturn:
        if not said:
            say("interrupted")
        os._exit(128 + received[0])

    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        said = True
        for number in SIGNALS:  # at its very end Python would put the default back
            signal.signal(number, signal.SIG_IGN)
        say(f"interrupted; {str(interrupt) or 'nothing was written'}")
        # `python -m` ends by the signal itself, whatever code it is given, if the interrupt met a text that was being
        # executed, as dataclasses are while they are made; the next such text makes Python forget it.
        exec("")
        # A training stops at the first Ctrl-C by itself, and its caller says so by an interrupt of its own.
        sys.exit(128 + (received[0] if received else signal.SIGINT))
