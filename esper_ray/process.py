"""What a process that trains hosts needs, beyond torch's defaults (figures: docs/performance.md)."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path

import torch

TRAINER_NICENESS = 5
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT_BYTES = 1 << 28
"""Freed memory that stays with the process. By default glibc hands every large activation back to the kernel, which
zeroes its pages anew at the next one: up to half of a training step. See also :func:`release_memory`."""


def release_memory() -> None:
    """Hand freed memory back to the kernel after all, between rollouts.

    Once per rollout that costs milliseconds, and gaps between what is in use do not add up.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def processor() -> str:
    """The model of the processor and the instructions that torch uses on it, on which rounding depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, platform.processor() or platform.machine())
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def settle(threads: int = 1) -> None:
    """Prepare this process for training hosts: call it before the first of them is trained.

    Args:
        threads: For torch. Runners share a machine's cores between them; a second thread beside another busy process
            makes both wait for each other.
    """
    torch.set_num_threads(threads)
    if threads > 1:  # torch's further threads take over what holds here when they are started
        torch.set_flush_denormal(True)
    # cuDNN would round convolutions to TF32 by default: hosts on a GPU compute in float32, as on a CPU.
    torch.backends.cudnn.allow_tf32 = False
    # RLlib asks for deterministic algorithms, and with them torch fills all fresh memory before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)


def step_back() -> None:
    """Let others compute before this thread and whatever it starts from now on; there is no way back.

    Niceness is the process's on systems where it is no thread's.
    """
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, TRAINER_NICENESS))


class _HostProcess(SpawnProcess):
    """A Ctrl-C in the terminal reaches every process of the group; what it means for this one its parent says."""

    def start(self) -> None:
        # A child begins with the mask of the thread that starts it, so that not even its imports are interrupted.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _HostProcesses(SpawnContext):
    Process = _HostProcess


@contextmanager
def host_processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes to train hosts in, which end with this one however it ends, and at once if it is interrupted.

    By itself a pool's process outlives a killed parent and computes on, and the parent waits for it.
    """
    pool = ProcessPoolExecutor(count, _HostProcesses(), initializer=_end_with_parent)
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            if isinstance(process, _HostProcess):
                process.kill()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _end_with_parent() -> None:
    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)  # whatever this process is computing, nobody waits for it

    threading.Thread(target=watch, daemon=True).start()
