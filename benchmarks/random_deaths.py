"""Do runners that are killed at random cost a run anything but time?

Run it with::

    python -m benchmarks.random_deaths

A head and two worker nodes run on this machine's loopback, as in ``make test-cluster``, which kills a few.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from benchmarks.nodes import ROOT, Nodes, processes_below
from esper_ray.measuring.curves import read_curves

STEPS = 8 * 2 * 2
"""Of an iteration of :meth:`Nodes.train` with two runners: epochs, hosts of a runner, runners."""


def runners_of(node: subprocess.Popen[str]) -> list[int]:
    """Processes of a node that train hosts."""
    found = []
    for pid in processes_below(node.pid):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::HostRunner"):
                found.append(pid)
    return found


def train_with_deaths(nodes: Nodes, run: Path, iterations: int, deaths: int, seed: int = 0) -> None:
    """Train with two runners, one of which is killed now and then, also while the run is being set up.

    Args:
        nodes: A cluster with workers.
        run: Directory of the run.
        iterations: Of the run.
        deaths: Of runners, before the last iteration.
        seed: Of who dies when.

    Raises:
        RuntimeError: it failed, or ended before the last death.
    """
    generator, killed, log = random.Random(seed), 0, run.with_suffix(".log")
    plan = sorted(generator.choices(range(iterations - 1), k=deaths))  # each after so many iterations at the earliest
    command = nodes.train("--num-env-runners", 2, "--iterations", iterations, "--run-dir", run)
    with log.open("w") as file:
        process = subprocess.Popen(command, env=nodes.environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    while process.poll() is None:
        time.sleep(generator.uniform(0.0, 0.5))
        alive = [runner for node in nodes.workers for runner in runners_of(node)]
        if killed < deaths and alive and plan[killed] <= log.read_text().count(f"/{iterations} score"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(generator.choice(alive), signal.SIGKILL)
                killed += 1
    if process.returncode or killed < deaths:
        said = log.read_text()
        raise RuntimeError(f"after {killed} of {deaths} deaths the run ended with {process.returncode}: {said}")


@dataclass(frozen=True)
class RandomDeaths:
    """A run whose runners are killed at random, and the steps that it counted."""

    deaths: int = 10
    """Of runners."""
    iterations: int = 6
    """Of the run."""
    seed: int = 0
    """Of who dies when."""

    def run(self, console: Console) -> None:
        """Kill, then compare what was counted with what a quiet run counts."""
        nodes = Nodes("--num-cpus=0")
        try:
            nodes.workers = [nodes.add(cpus=2), nodes.add(cpus=2)]
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder) / "run"
                train_with_deaths(nodes, run, self.iterations, self.deaths, self.seed)
                counted = read_curves(run, ["World/score"])["World/score"].epochs.tolist()
        finally:
            nodes.close()
        expected = [float(STEPS * done) for done in range(1, self.iterations + 1)]
        console.print(f"{self.deaths} deaths, steps counted {counted}, of a run without them {expected}")
        if counted != expected:
            raise SystemExit(1)


if __name__ == "__main__":
    tyro.cli(RandomDeaths).run(Console())
