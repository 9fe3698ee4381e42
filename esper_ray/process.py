"""What a process that trains hosts needs, beyond torch's defaults (figures: docs/performance.md)."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT_BYTES = 1 << 28
"""Freed memory that stays with the process. By default glibc hands every large activation back to the kernel, which
zeroes its pages anew at the next one: up to half of a training step."""

PRIMITIVES = 128
"""oneDNN keeps a compiled primitive for each shape it has seen, 1,024 of them by default, which grow to a gigabyte:
a blueprint is computed over as many members as have it, and that changes with every germination."""


def settle(threads: int = 1) -> None:
    """Prepare this process for training hosts: call it before the first of them is trained.

    Args:
        threads: For torch. Runners share a machine's cores between them; a second thread beside another busy process
            makes both wait for each other.
    """
    torch.set_num_threads(threads)
    # RLlib asks for deterministic algorithms, and with them torch fills all fresh memory before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
