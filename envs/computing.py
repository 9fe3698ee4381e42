"""How hosts compute, whatever the process around them does: threads, and numbers next to zero."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from envs.warning import warn_user

_forked = False


def _after_fork() -> None:
    """Torch's threads are not in a forked process, which would wait for them for ever."""
    global _forked
    _forked = True
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_after_fork)


def _flushes_denormals() -> bool:
    return sys.float_info.min / 2 == 0.0


@contextmanager
def host_computation(num_threads: int) -> Iterator[None]:
    """Compute with a number of torch threads, denormal numbers as 0; both are as before after the context.

    The momentum of what has stopped moving decays into denormal numbers, which processors are slow with. Both hold for
    this thread: with one, the default, a host is the same whatever the process around it has set. Torch's further
    threads treat denormal numbers as this one did when they were started (see ``esper_ray.process.settle``). Two Python
    threads must not be in here at the same time.

    A process that was forked computes with one thread.

    Args:
        num_threads: At least 1.
    """
    if _forked and num_threads > 1:
        warn_user(
            f"this process was forked, and torch's threads do not survive that: one thread instead of {num_threads}"
        )
        num_threads = 1
    threads, flushed = torch.get_num_threads(), _flushes_denormals()
    torch.set_num_threads(num_threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushed)
