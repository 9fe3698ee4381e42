"""What does a second runner add, how much memory do runners take, and what does a GPU do with more hosts?

Run it with::

    python -m benchmarks.scaling --json scaling.json
    python -m benchmarks.scaling --parts gpu
"""

from __future__ import annotations

import functools
import math
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import torch
import tyro
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from rich.console import Console
from rich.progress import track

from benchmarks.harness import Report, Table, median_ratio, paired_seconds, require_gpu
from benchmarks.quickstart import quickstart, start_ray
from esper_ray.process import settle

RUNNERS = 2
WARMUP = 2
"""Rounds of all runners that do not count: the first of a runner has other seeds."""
SETTLED = 5
"""Iterations after which memory should not grow any more."""

Part = Literal["runners", "memory", "gpu"]

MEMORY = (
    "iterations",
    "larger runner",
    "its own pages",
    "driver with learner",
    "driver and runners",
    "all, with Ray's",
)

NOTES = (
    "Two processes take episodes with the quickstart preset's network through RLlib's group of runners; the rate of "
    "one, beside the idle other, is taken in turns with that of both. A step is one epoch of one host. In every round "
    "every runner plays the same episodes, hosts and actions, and the returns are checked: two unequal ones would be "
    "as slow as the slower.",
    "Memory is what is resident (VmRSS) after so many iterations of rollout and update. Pages that processes share "
    "count once in each, so the sum is an upper bound; it covers the driver and all that it started, Ray's own "
    "processes included. A process's own pages (RssAnon) are those without shared libraries and Ray's object store.",
    "The runner on a GPU plays in this process, and its policy stays on the CPU. Only the later half of an episode's "
    "epochs is timed: until then seeds are planted. A row whose time is up ends early.",
)


@dataclass(frozen=True)
class Scaling:
    """Env steps per second with one and two runners, and their memory; and on a GPU."""

    json: Path | None = None
    """Report to write; the tables are always printed."""
    parts: tuple[Part, ...] = ("runners", "memory", "gpu")
    """What to measure; ``gpu`` is left out where there is none, and refused if it is all that was asked for."""
    hosts: int = 32
    """Hosts of each runner."""
    epochs: int = 16
    """Steps of an episode; the quickstart preset has 60."""
    repeats: int = 3
    """Timed rounds of one episode per host."""
    task: str = "digits_impaired"
    """Data and host for the rates."""
    memory_task: str = "digits"
    """Data and host for the memory."""
    iterations: int = 20
    """Rollouts and updates over which memory is watched."""
    gpu_hosts: tuple[int, ...] = (64, 256, 1024)
    """Hosts of a runner on a GPU."""
    gpu_epochs: int = 12
    """Epochs that they play at most, the later half of them timed."""
    gpu_seconds: float = 75.0
    """For all of them together: each takes an equal part of what is left, and an epoch more at most."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        if self.parts == ("gpu",):
            require_gpu()
        report = Report("scaling", notes=list(NOTES))
        if {"runners", "memory"} & {*self.parts}:
            self._with_ray(report, console)
        if "gpu" in self.parts and torch.cuda.is_available():
            report.tables.append(self._on_device("cuda", console))
        report.publish(console, self.json)

    def _with_ray(self, report: Report, console: Console) -> None:
        start_ray(RUNNERS)
        try:
            if "runners" in self.parts:
                with console.status("one runner and two, in turns"):
                    self._rates(report)
            if "memory" in self.parts:
                self._memory(report, console)
        finally:
            ray.shutdown()

    def _rates(self, report: Report) -> None:
        config = quickstart(num_env_runners=RUNNERS, hosts_per_runner=self.hosts, epochs=self.epochs, task=self.task)
        algorithm = config.build_algo()
        seconds = one_and_all(algorithm.env_runner_group, self.repeats)
        algorithm.stop()
        ratio = RUNNERS * median_ratio(seconds["one"], seconds["all"])
        steps, counts = self.hosts * self.epochs, {"one": 1, "all": RUNNERS}
        rates = [f"{steps * count / statistics.median(seconds[name]):,.1f}" for name, count in counts.items()]
        report.tables.append(
            Table(
                f"Env steps per second, {self.hosts} hosts per runner ({self.task}, episodes of {self.epochs} epochs)",
                ("one runner", "two runners", "ratio"),
                [(*rates, f"{ratio:.2f}")],
            )
        )
        report.headline["two_runner_ratio"] = round(ratio, 2)

    def _memory(self, report: Report, console: Console) -> None:
        config = quickstart(
            num_env_runners=RUNNERS, hosts_per_runner=self.hosts, epochs=self.epochs, task=self.memory_task
        )
        algorithm = config.build_algo()
        watched = {0, 1, SETTLED, 10, self.iterations}
        rows: list[tuple[str, ...]] = []
        runner_megabytes: dict[int, float] = {}
        for iteration in track(range(self.iterations + 1), description="memory", console=console, transient=True):
            if iteration > 0:
                algorithm.train()
            if iteration not in watched:
                continue
            runners = algorithm.env_runner_group.foreach_env_runner(
                lambda _: (resident_megabytes(os.getpid()), resident_megabytes(os.getpid(), "RssAnon")),
                local_env_runner=False,
            )
            runner, private = max(runners)
            runner_megabytes[iteration] = runner
            driver = resident_megabytes(os.getpid())
            everything = sum(resident_megabytes(process) for process in family(os.getpid()))
            both = driver + sum(total for total, _ in runners)
            rows.append((str(iteration), *(f"{m:,.0f}" for m in (runner, private, driver, both, everything))))
        algorithm.stop()
        report.tables.append(
            Table(
                f"Resident MB, {RUNNERS} runners of {self.hosts} hosts "
                f"({self.memory_task}, episodes of {self.epochs} epochs)",
                MEMORY,
                rows,
            )
        )
        report.headline["runner_rss_mb"] = round(runner_megabytes[self.iterations])
        if self.iterations > SETTLED:
            growth = runner_megabytes[self.iterations] - runner_megabytes[SETTLED]
            report.headline[f"rss_growth_mb_{self.iterations}_iterations"] = round(growth)
            report.notes.append(
                f"The headline's growth is that of the larger runner from iteration {SETTLED} to {self.iterations}."
            )

    def _on_device(self, device: str, console: Console) -> Table:
        """Rates of one local runner whose hosts live on a device, each printed as soon as it is there."""
        title = f"One runner with its hosts on the GPU ({self.task})"
        table = Table(title, ("hosts", "env steps per second", "over epochs", "GPU memory, MB"), [])
        ends = time.perf_counter() + self.gpu_seconds
        for done, num_hosts in enumerate(self.gpu_hosts):
            now = time.perf_counter()
            seconds = self._epoch_seconds(num_hosts, device, now + (ends - now) / (len(self.gpu_hosts) - done))
            timed = seconds[len(seconds) // 2 :]
            megabytes = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else math.nan
            rate = num_hosts * len(timed) / sum(timed)
            epochs = f"{len(seconds) - len(timed) + 1}–{len(seconds)}"
            console.print(f"{num_hosts} hosts: {rate:,.0f} env steps per second, {megabytes:,.0f} MB")
            table.rows.append((str(num_hosts), f"{rate:,.0f}", epochs, f"{megabytes:,.0f}"))
        return table

    def _epoch_seconds(self, num_hosts: int, device: str, ends: float) -> list[float]:
        """Seconds of each epoch of an episode, as many as fit."""
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        config = quickstart(
            num_env_runners=0, hosts_per_runner=num_hosts, epochs=self.gpu_epochs, task=self.task, device=device
        )
        runner = SingleAgentEnvRunner(config=config, worker_index=0)
        seconds: list[float] = []
        while len(seconds) < self.gpu_epochs and (len(seconds) < 2 or time.perf_counter() < ends):
            started = time.perf_counter()
            runner.sample(num_timesteps=num_hosts)
            seconds.append(time.perf_counter() - started)
        return seconds


def one_and_all(group: Any, repeats: int) -> dict[str, list[float]]:
    """Seconds of a rollout of the first runner beside the idle others (``one``), in turns with those of ``all``.

    Args:
        group: RLlib's runners.
        repeats: Timed rounds.

    Raises:
        RuntimeError: runners played different episodes, so that their times do not compare.
    """
    returns: set[float] = set()

    def sample(runners: int) -> None:
        results = group.foreach_env_runner(
            replay, local_env_runner=False, remote_worker_ids=list(range(1, runners + 1))
        )
        returns.update(sum(episode.get_return() for episode in episodes) for episodes, _ in results)

    runners = group.num_remote_env_runners()
    for _ in range(WARMUP):
        sample(runners)
    returns.clear()
    candidates = {"one": functools.partial(sample, 1), "all": functools.partial(sample, runners)}
    seconds = paired_seconds(candidates, repeats, warmup=0)
    if len(returns) > 1:
        raise RuntimeError(f"runners played different episodes (returns {sorted(returns)}): their times do not compare")
    return seconds


def replay(runner: Any) -> tuple[list[Any], Any]:
    """The same episodes at every call and in every runner that has played before; metrics come along, as in training.

    RLlib seeds a runner at its first reset only, which is why that one differs.
    """
    runner.env.unwrapped.reset(seed=0)
    torch.manual_seed(0)  # the policy's draws
    return runner.sample(force_reset=True), runner.get_metrics()


def resident_megabytes(process: int, kind: str = "VmRSS") -> float:
    """Resident memory of a process, by default all of it, shared pages included; 0 if the process is gone."""
    return int(_status(process).get(kind, "0 kB").split()[0]) * 1024 / 1e6


def family(process: int) -> Iterator[int]:
    """A process and everything that it started."""
    yield process
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _status(int(entry.name)).get("PPid") == str(process):
            yield from family(int(entry.name))


def _status(process: int) -> dict[str, str]:
    """What the kernel (Linux) tells about a process."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


if __name__ == "__main__":
    settle()
    tyro.cli(Scaling).run(Console())
