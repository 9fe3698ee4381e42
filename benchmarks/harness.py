"""What all benchmarks share: paired timings, a report as tables and JSON, and the machine it was taken on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from esper_ray.process import processor


@dataclass(frozen=True)
class Table:
    """Rows of a report; cells are printed as they are."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """The table as Markdown, title first."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return "\n".join([f"**{self.title}**", "", *("| " + " | ".join(cells) + " |" for cells in lines)])


@dataclass
class Report:
    """What one benchmark found.

    Attributes:
        name: Of the benchmark, as in ``python -m benchmarks.NAME``.
        headline: The few numbers that others quote, under the names that the docs use.
        tables: Everything measured.
        notes: Sentences for the reader: what was left out, and why.
    """

    name: str
    headline: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def publish(self, console: Console, path: Path | None) -> None:
        """Print the report, and write it as JSON if a path is given."""
        for table in self.tables:
            console.print(table.markdown() + "\n", markup=False, soft_wrap=True)
        for note in self.notes:
            console.print(note + "\n", markup=False, soft_wrap=True)
        console.print_json(json.dumps(self.headline))
        if path is not None:
            command = " ".join(["python -m", f"benchmarks.{self.name}", *sys.argv[1:]])
            content = {"command": command, "machine": machine(), **asdict(self)}
            path.write_text(json.dumps(content, indent=2) + "\n")

    def write_into(self, page: Path) -> None:
        """Put the tables and notes between the page's two comments with this benchmark's name.

        Raises:
            ValueError: the page lacks them.
        """
        begin, end = f"<!-- benchmarks.{self.name} -->", f"<!-- /benchmarks.{self.name} -->"
        before, found, rest = page.read_text().partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{page} lacks the comments {begin} and {end}, between which the tables belong")
        about = machine()
        where = f"{about['cores']} cores of {about['processor']}, torch {about['torch']}, {about['gpu'] or 'no GPU'}."
        parts = [begin, where, *(table.markdown() for table in self.tables), *self.notes, end]
        page.write_text(before + "\n\n".join(parts) + after)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def require_gpu() -> None:
    """End the process with a line if torch has no GPU to use.

    Raises:
        SystemExit: it has none.
    """
    if not torch.cuda.is_available():
        raise SystemExit(f"no GPU: torch {torch.__version__} sees none, and this part is measured on one only")


class Watch:
    """Wall seconds of every call, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work, watched."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = work(*args, **kwargs)
            self.seconds.setdefault(name, []).append(time.perf_counter() - started)
            return result

        return timed


def awaited(work: Callable[[], object], device: str) -> Callable[[], None]:
    """The same work, back when a device (its type) is done with it."""

    def done() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    return done


def paired_seconds(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each candidate, taken in turns, so that a busy moment of the machine hits all of them.

    A candidate that works on a GPU must wait for it before it returns (:func:`awaited`).

    Args:
        candidates: Name → what to time.
        repeats: Timed rounds.
        warmup: Rounds before them that do not count.
        clock: Seconds that pass; by default those on the wall.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + repeats):
        for name, work in candidates.items():
            started = clock()
            work()
            if turn >= warmup:
                seconds[name].append(clock() - started)
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the rounds' ratios: pairs were measured side by side."""
    return statistics.median(n / d for n, d in zip(numerator, denominator, strict=True))
