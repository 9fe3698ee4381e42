"""How hosts compute, whatever the process around them does: threads, and numbers next to zero."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_note_fork)


@contextmanager
def host_computation(num_threads: int) -> Iterator[None]:
    """Compute with a number of torch threads; the process's own number is back after the context.

    A process that was forked computes with one thread: those that torch had started before are not in it, and it
    would wait for them for ever.

    Args:
        num_threads: At least 1.
    """
    if _forked and num_threads > 1:
        warnings.warn(
            f"this process was forked, and torch's threads do not survive that: one thread instead of {num_threads}",
            stacklevel=4,
        )
        num_threads = 1
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
