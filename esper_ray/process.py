"""What a process that trains hosts needs, beyond torch's defaults (figures: docs/performance.md)."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import threading
from concurrent.futures import ProcessPoolExecutor

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT_BYTES = 1 << 28
"""Freed memory that stays with the process. By default glibc hands every large activation back to the kernel, which
zeroes its pages anew at the next one: up to half of a training step. See also :func:`release_memory`."""

PRIMITIVES = 128
"""oneDNN keeps a compiled primitive for each shape it has seen, 1,024 of them by default, which grow to a gigabyte:
a blueprint is computed over as many members as have it, and that changes with every germination."""


def release_memory() -> None:
    """Hand freed memory back to the kernel after all, between rollouts.

    Once per rollout that costs milliseconds, and gaps between what is in use do not add up.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def settle(threads: int = 1) -> None:
    """Prepare this process for training hosts: call it before the first of them is trained.

    Args:
        threads: For torch. Runners share a machine's cores between them; a second thread beside another busy process
            makes both wait for each other.
    """
    torch.set_num_threads(threads)
    # cuDNN would round convolutions to TF32 by default: hosts on a GPU compute in float32, as on a CPU.
    torch.backends.cudnn.allow_tf32 = False
    # RLlib asks for deterministic algorithms, and with them torch fills all fresh memory before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)


def host_processes(count: int) -> ProcessPoolExecutor:
    """Processes to train hosts in, which end with this one however it ends.

    By itself a pool's process outlives a killed parent and computes on.
    """
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)  # whatever this process is computing, nobody waits for it

    threading.Thread(target=watch, daemon=True).start()
