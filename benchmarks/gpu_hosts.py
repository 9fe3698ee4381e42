"""Hosts with mixed seeds on a GPU: how busy it is, what replaying graphs gives, and how many CPU cores it is worth."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import Table, awaited, median_ratio, paired_seconds
from benchmarks.living_seeds import LIVING_SHARE, fresh_population
from envs.tasks import make_task

SEEDS = "mixed seeds"
REPEATS = 3

NO_KERNELS = ("Memcpy", "Memset")
"""Beginnings of the names of what a GPU does without computing."""

BUSY = ("hosts", "N", "mini-batches/s", "eager, mini-batches/s", "captured / eager", "kernels per epoch", "busy")
CORES = ("hosts", "GPU, mini-batches/s", "one CPU core, mini-batches/s", "at N", "cores")

NOTE = (
    "On the GPU: mixed seeds, batches of 32. Busy is the time in which it runs a kernel, copies left out, as the "
    "profiler records it over one epoch, over the median time of an epoch without the profiler. A core is one of this "
    "machine, at the best of the numbers of hosts tried. Headline figures are of the host that does worse."
)


@dataclass(frozen=True)
class Epochs:
    """Training epochs of one population.

    Attributes:
        rate: Mini-batches per second.
        eager_rate: The same without graphs.
        speedup: Of graphs: the median of the rounds' ratios.
        kernels: In an epoch.
        busy: Share of the time in which the device computes.
    """

    rate: float
    eager_rate: float
    speedup: float
    kernels: int
    busy: float

    def row(self) -> tuple[str, ...]:
        """Cells of a table."""
        rates = (f"{self.rate:,.0f}", f"{self.eager_rate:,.0f}", f"{self.speedup:.2f}")
        return (*rates, f"{self.kernels:,}", f"{self.busy:.1%}")


def gpu_figures(
    tasks: Mapping[str, str],
    device: torch.device,
    sizes: Sequence[int] = (128, 1024),
    core_sizes: Sequence[int] = (32, 128, 256),
) -> tuple[list[Table], dict[str, float]]:
    """Measure everything.

    Args:
        tasks: Kernels of the hosts → the task that has them.
        device: The GPU.
        sizes: Numbers of hosts on it; the last is compared with a core.
        core_sizes: Numbers of hosts on a core, of which the best counts.

    Returns:
        Tables, and the headline.
    """
    epochs = {(kernels, n): measure_epochs(tasks[kernels], n, device) for kernels in tasks for n in sizes}
    core = {kernels: {n: _core_rate(tasks[kernels], n) for n in core_sizes} for kernels in tasks}
    headline = {}
    for n in sizes:
        headline[f"gpu_busy_share_n{n}"] = round(min(epochs[kernels, n].busy for kernels in tasks), 3)
        headline[f"graph_speedup_n{n}"] = round(min(epochs[kernels, n].speedup for kernels in tasks), 2)
    busy_rows = [(kernels, str(n), *measured.row()) for (kernels, n), measured in epochs.items()]
    core_rows: list[tuple[str, ...]] = []
    cores = []
    for kernels, rates in core.items():
        best, rate = max(rates, key=rates.__getitem__), epochs[kernels, sizes[-1]].rate
        cores.append(rate / rates[best])
        core_rows.append((kernels, f"{rate:,.0f}", f"{rates[best]:,.0f}", str(best), f"{cores[-1]:.1f}"))
    headline[f"gpu_cores_worth_n{sizes[-1]}"] = round(min(cores), 1)
    return [
        Table(f"Training with mixed seeds ({device.type})", BUSY, busy_rows),
        Table(f"{sizes[-1]} hosts with mixed seeds against one CPU core", CORES, core_rows),
    ], headline


def measure_epochs(task_name: str, num_hosts: int, device: torch.device) -> Epochs:
    """Time and profile epochs of one population with mixed seeds."""
    task = make_task(task_name)
    population, lifecycle = fresh_population(task, num_hosts, 1, device, LIVING_SHARE[SEEDS])
    epoch = np.zeros(num_hosts, np.int64)

    def train(capture: bool) -> None:
        population.repeater.capture = capture
        population.train_epoch(epoch, lifecycle)
        if capture and not population.repeater.capture:
            raise RuntimeError(
                "an epoch cannot be captured as a CUDA graph (see the warning above): nothing to compare"
            )

    ways = {name: awaited(functools.partial(train, name == "captured"), device.type) for name in ("captured", "eager")}
    seconds = paired_seconds(ways, REPEATS)
    batches = num_hosts * task.batches_per_epoch
    rates = {name: batches / statistics.median(values) for name, values in seconds.items()}
    kernels = kernel_times(ways["captured"], device)
    return Epochs(
        rates["captured"],
        rates["eager"],
        median_ratio(seconds["eager"], seconds["captured"]),
        len(kernels),
        covered(kernels) / statistics.median(seconds["captured"]),
    )


def kernel_times(work: Callable[[], object], device: torch.device) -> list[tuple[float, float]]:
    """Begin and end, in seconds, of all that a device computes in some work; on a CPU of all operators."""
    kind = device.type.upper()
    with profile(activities=[ProfilerActivity.__members__[kind]]) as profiler:
        work()
    return [
        (event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in profiler.events() or ()
        if event.device_type.name == kind and not event.is_user_annotation and not event.name.startswith(NO_KERNELS)
    ]


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals, which may overlap."""
    total, reached = 0.0, -np.inf
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _core_rate(task_name: str, num_hosts: int) -> float:
    """Mini-batches per second of one CPU core."""
    task = make_task(task_name)
    population, lifecycle = fresh_population(task, num_hosts, 1, torch.device("cpu"), LIVING_SHARE[SEEDS])
    epoch = np.zeros(num_hosts, np.int64)
    seconds = paired_seconds({"core": lambda: population.train_epoch(epoch, lifecycle)}, REPEATS)["core"]
    return num_hosts * task.batches_per_epoch / statistics.median(seconds)
