"""Is an iteration of PPO faster with hosts and learner on one GPU, or on all CPU cores of the same machine?

Run it with::

    python -m benchmarks.gpu_iteration --json gpu_iteration.json
"""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
import tyro
from rich.console import Console

from benchmarks.harness import Report, Table, Watch, median_ratio, paired_seconds, require_gpu
from benchmarks.quickstart import quickstart, start_ray
from esper_ray.learning.ppo import EsperPPOConfig
from esper_ray.presets import QUICKSTART
from esper_ray.process import settle

GPU, CPU = "one GPU", "all CPU cores"
ITERATION, UPDATE = "iteration", "update"

NOTE = (
    "The same number of hosts in both: on the GPU in one process, on the CPU one runner per core. The update, in the "
    "driver, is on the GPU in the one and on all cores in the other. Iterations are taken in turns, the first of each "
    "does not count. Network and settings are the quickstart preset's, its episodes shorter, since rollout and update "
    "both grow with their length."
)


@dataclass(frozen=True)
class GpuIteration:
    """Wall seconds of an iteration of PPO on one GPU and on all CPU cores."""

    json: Path | None = None
    """Report to write; the table is always printed."""
    hosts: int = 1024
    """Of all runners together, rounded down to a multiple of the cores times the learner's minibatches."""
    epochs: int = 8
    """Steps of an episode."""
    repeats: int = 1
    """Timed iterations of each."""
    task: str = QUICKSTART.env.task
    """Data and host."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        require_gpu()
        cores = len(os.sched_getaffinity(0))
        dealt = cores * QUICKSTART.learner.minibatches
        hosts = max(self.hosts // dealt, 1) * dealt
        config = functools.partial(quickstart, epochs=self.epochs, task=self.task)
        configs = {
            GPU: config(num_env_runners=0, hosts_per_runner=hosts, device="cuda", gpus_per_learner=1),
            CPU: config(num_env_runners=cores, hosts_per_runner=hosts // cores),
        }
        with console.status("iterations of PPO, in turns"):
            seconds = iteration_seconds(configs, cores, self.repeats)
        rows = [
            (arm, *(f"{statistics.median(seconds[arm, part]):.2f}" for part in (ITERATION, UPDATE))) for arm in configs
        ]
        title = f"An iteration of PPO with {hosts} hosts ({self.task}, episodes of {self.epochs} epochs), {cores} cores"
        ratio = median_ratio(seconds[CPU, ITERATION], seconds[GPU, ITERATION])
        report = Report("gpu_iteration", {"gpu_iteration_speedup": round(ratio, 2)}, notes=[NOTE])
        report.tables.append(Table(title, ("hosts on", "iteration, s", "update in it, s"), rows))
        report.publish(console, self.json)


def iteration_seconds(
    configs: Mapping[str, EsperPPOConfig], cores: int, repeats: int
) -> dict[tuple[str, str], list[float]]:
    """Wall seconds of iterations and of the updates in them, by config, taken in turns.

    Args:
        configs: Of what is compared, by name.
        cores: Of the machine; torch's threads in the driver, which learns while no runner plays.
        repeats: Timed iterations of each.
    """
    watch = Watch()
    start_ray(cores)
    try:
        iterations: dict[str, Callable[[], object]] = {}
        for name, config in configs.items():
            algorithm = config.build_algo()
            algorithm.learner_group.update = watch.timed(name, algorithm.learner_group.update)
            iterations[name] = algorithm.train
        torch.set_num_threads(cores)
        seconds = paired_seconds(iterations, repeats)
    finally:
        ray.shutdown()
    updates = {(name, UPDATE): values[-repeats:] for name, values in watch.seconds.items()}
    return {(name, ITERATION): values for name, values in seconds.items()} | updates


if __name__ == "__main__":
    settle()
    tyro.cli(GpuIteration).run(Console())
