"""A search on the terminal: how far it is, and what it found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from esper_ray.config import EnvConfig
from esper_ray.measuring.search.halving import SearchResult
from esper_ray.terminal import under_way


def search_table(env: EnvConfig, result: SearchResult) -> Table:
    """The finalists, the best first."""
    tried = len({schedule for rung in result.rungs for schedule in rung.schedules})
    table = Table(
        title=f"{env.task}: {tried} schedules tried in {result.host_epochs:,} host epochs",
        caption=f"mean score on the validation split of {len(result.rungs[-1].seeds)} fresh hosts of {env.longest} "
        "epochs and its standard error; @: epoch of germination",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("schedule")
    for schedule, scores in result.finalists:
        error = scores.std(ddof=1) / len(scores) ** 0.5 if len(scores) > 1 else float("nan")
        table.add_row(f"{scores.mean():.3f} ± {error:.3f}", schedule.described(env.make_task().slots.slot_ids))
    return table


@contextmanager
def search_progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with the time left, moved by calls with what is under way, the host epochs done and those planned.

    Into a file or a pipe a line for every call, and more where calls are rare.
    """
    if not console.is_terminal:
        yield from _search_lines(console)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("the first hosts train", total=None)
        yield lambda name, done, planned: progress.update(bar, description=name, completed=done, total=planned)


def _search_lines(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    began = time.perf_counter()
    with under_way(console, "the first hosts train") as now:

        def move(name: str, done: int, planned: int) -> None:
            left = (time.perf_counter() - began) * (planned / done - 1.0)
            console.print(f"{name}: {done / planned:.0%} done, {int(left // 60)}:{int(left % 60):02d} left")
            now(f"{name}: hosts train")

        yield move
