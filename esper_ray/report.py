"""Evaluation results for people: a table on the terminal and a picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from esper_ray.config import EnvConfig
from esper_ray.controls import BEST_SCHEDULE, LEARNED_GREEDY, STATIC_BIG, STATIC_FINAL
from esper_ray.search import SearchResult
from policies.learned import LEARNED

LABELS = {
    LEARNED: "learned policy",
    "never_grow": "never grow",
    "random_valid": "random valid",
    "heuristic": "heuristic",
    "fixed_schedule": "fixed schedule",
    BEST_SCHEDULE: "best schedule",
    LEARNED_GREEDY: "learned, greedy",
    STATIC_FINAL: "static final",
    STATIC_BIG: "static big",
}

COLOURS = ("#1d3557", "#d1495b", "#2a9d8f", "#e09f3e", "#7b5ea7", "#4c78a8", "#9c6644", "#5f6f52")
"""Of lines that are told apart by colour."""


def evaluation_table(report: dict[str, Any]) -> Table:
    """One row per policy; fits into 80 columns."""
    table = Table(
        title=f"{report['task']}: {report['episodes']} held-out hosts, {report['max_epochs']} epochs, test split",
        caption="score = accuracy/100 − rent; interquartile means, [ ] = 95 % bootstrap interval; "
        "GFLOP: training of one host, all evaluations on validation included; "
        "fossil, pruned, cut: seeds per episode kept for good, pruned, removed unfinished at the end",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("policy", no_wrap=True)
    for name in ("score", "acc %", "params", "GFLOP", "fossil", "pruned", "cut"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, result in report["policies"].items():
        score, fates = result["score"], result["fates"]
        low, high = score["ci95"]
        table.add_row(
            LABELS.get(name, name),
            f"{score['iqm']:.3f} \\[{low:.3f}, {high:.3f}]",
            f"{result['accuracy']['iqm']:.1f}",
            f"{result['parameters']['iqm']:,.0f}",
            f"{result['training_flops']['iqm'] / 1e9:,.2f}",
            *(f"{fates[fate]:.2f}" for fate in ("fossilized", "pruned", "unfinished")),
            style="bold" if name == LEARNED else None,
        )
    return table


def evaluation_figure(report: dict[str, Any]) -> Figure:
    """Score intervals of all policies, the best at the top."""
    policies = sorted(report["policies"].items(), key=lambda item: item[1]["score"]["iqm"])
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(policies)), layout="constrained", dpi=110)
    axes = figure.subplots()
    for place, (name, result) in enumerate(policies):
        score = result["score"]
        low, high = score["ci95"]
        colour = "#1d3557" if name == LEARNED else "#8d99ae"
        axes.plot([low, high], [place, place], color=colour, lw=5, solid_capstyle="round")
        axes.plot(score["iqm"], place, "o", color="white", ms=4, zorder=3)
        axes.annotate(f"{score['iqm']:.3f}", (high, place), (7, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(policies)), [LABELS.get(name, name) for name, _ in policies])
    axes.set_ylim(-0.6, len(policies) - 0.4)
    axes.margins(x=0.12)
    axes.set_xlabel("committed score on the test split: interquartile mean and 95 % interval")
    axes.set_title(f"{report['task']}, {report['episodes']} held-out episodes of {report['max_epochs']} epochs")
    axes.grid(axis="x", alpha=0.25)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(left=False)
    return figure


def search_table(env: EnvConfig, result: SearchResult) -> Table:
    """The finalists, the best first."""
    tried = len({schedule for rung in result.rungs for schedule in rung.schedules})
    table = Table(
        title=f"{env.task}: {tried} schedules tried in {result.host_epochs:,} host epochs",
        caption=f"mean score on the validation split of {len(result.rungs[-1].seeds)} fresh hosts of {env.max_epochs} "
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

    Into a file or a pipe a line for every call.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    began = time.perf_counter()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("the first hosts train", total=None)

        def move(name: str, done: int, planned: int) -> None:
            progress.update(bar, description=name, completed=done, total=planned)
            if not console.is_terminal:
                left = (time.perf_counter() - began) * (planned / done - 1.0)
                console.print(f"{name}: {done / planned:.0%} done, {int(left // 60)}:{int(left % 60):02d} left")

        yield move
