"""How long one waits for a first answer: ``python -m benchmarks.startup``.

Each command runs in a process of its own, in turns, so that a busy moment of the machine hits all of them.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from benchmarks.harness import Report, Table

AIMS = {"help_seconds": 0.5, "debug_first_iteration_seconds": 8.0}


@dataclass(frozen=True)
class Startup:
    """Time the start of commands."""

    repeats: int = 5
    """Runs of each."""
    json: Path | None = None
    """Where to write the report."""

    def run(self, console: Console) -> None:
        """Start, print, write."""
        waits = {"help": ["--help"], "train help": ["train", "--help"], "debug's first iteration": ["train", "--debug"]}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in waits}
        for _ in range(self.repeats):
            for name, arguments in waits.items():
                seconds[name].append(first_answer(arguments, "1/2" if "--debug" in arguments else ""))
        rows = [
            (name, *(f"{statistics.median(column):.2f}" for column in zip(*values, strict=True)))
            for name, values in seconds.items()
        ]
        medians = [statistics.median(wall for wall, _ in seconds[name]) for name in ("help", "debug's first iteration")]
        Report(
            "startup",
            headline=dict(zip(AIMS, (round(median, 2) for median in medians), strict=True)),
            tables=[Table(f"median of {self.repeats}", ("until", "wall seconds", "CPU seconds in all"), rows)],
            notes=[f"Aims: {', '.join(f'{name} ≤ {aim:g}' for name, aim in AIMS.items())}."],
        ).publish(console, self.json)


def first_answer(arguments: list[str], awaited: str) -> tuple[float, float]:
    """Wall seconds until the program prints a line with ``awaited``, and CPU seconds until its end."""
    with tempfile.TemporaryDirectory() as folder:
        began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "esper_ray", *arguments]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = next((time.perf_counter() for line in process.stdout if awaited in line), None)
            process.stdout.read()
        if first is None or process.returncode:
            raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode} and without its answer")
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return first - began, end.ru_utime + end.ru_stime - used.ru_utime - used.ru_stime


if __name__ == "__main__":
    tyro.cli(Startup).run(Console())
