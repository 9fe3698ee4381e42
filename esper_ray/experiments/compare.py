"""Runs side by side: the settings that differ, learning curves, evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from pydantic import BaseModel, TypeAdapter
from rich import box
from rich.table import Table

from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.learning.dashboard import hyperparameters
from esper_ray.measuring.curves import Curve, read_curves
from esper_ray.measuring.evaluation_report import COLOURS, LABELS
from esper_ray.reading import checked, read_json

CURVES = {
    "World/score": "committed validation score",
    "World/accuracy": "accuracy of the committed network, %",
    "World/parameters": "parameters of the committed network",
    "World/seeds/fossilized": "seeds kept per episode",
    "Critic/explained_variance": "explained variance of the critic",
    "Speed/epochs_per_second": "host epochs per second",
}
"""Tags that are drawn, and their titles."""


class _Score(BaseModel):
    iqm: float
    ci95: tuple[float, float]


class _Policy(BaseModel):
    score: _Score


class _Played(BaseModel):
    iteration: int


class Evaluation(BaseModel):
    """What of an evaluation.json is compared."""

    task: str
    max_epochs: int
    episodes: int
    seed: int
    checkpoint: _Played
    temperature: float
    policies: dict[str, _Policy]


@dataclass(frozen=True)
class ComparedRun:
    """One run.

    Attributes:
        name: As short as tells it from the others.
        settings: Flat, as in TensorBoard's HParams.
        iterations: Done.
        curves: By tag, those of ``CURVES``.
        evaluation: evaluation.json; None if the run was never evaluated.
    """

    name: str
    settings: dict[str, Any]
    iterations: int
    curves: dict[str, Curve]
    evaluation: Evaluation | None


def compare(paths: Sequence[Path]) -> list[ComparedRun]:
    """Read the runs.

    Args:
        paths: Run directories; one that is given twice counts once.

    Raises:
        UserError: one of them is none, or is damaged.
    """
    runs = {run.path: run for run in map(RunDirectory.open, paths)}
    compared = []
    for path, run in runs.items():
        compared.append(
            ComparedRun(
                _short_name(path, list(runs)),
                hyperparameters(run.config()),
                run.iterations_done(),
                read_curves(run.path, list(CURVES)),
                _read_evaluation(run.path / "evaluation.json"),
            )
        )
    return compared


def _read_evaluation(path: Path) -> Evaluation | None:
    if not path.is_file():
        return None
    return checked(read_json(path), TypeAdapter(Evaluation), f"{path} is damaged, evaluate the run again or remove it")


def _short_name(path: Path, paths: Sequence[Path]) -> str:
    """The end of a path, of as many parts as it takes to tell it from the others."""
    others = [other.parts for other in paths if other != path]
    parts = path.parts
    count = next(n for n in range(1, len(parts) + 1) if not any(other[-n:] == parts[-n:] for other in others))
    return str(Path(*parts[-count:]))


# ---------------------------------------------------------------------- tables
@dataclass(frozen=True)
class _Grid:
    """A table before it is rich's or Markdown's: a row per thing compared, a column per run."""

    title: str
    rows: dict[str, list[str]]


def _grids(runs: Sequence[ComparedRun]) -> list[_Grid]:
    differing = {
        name: [str(run.settings[name]) for run in runs]
        for name in runs[0].settings
        if len({run.settings[name] for run in runs}) > 1
    }
    training = {"iterations": [f"{run.iterations}" for run in runs]}
    training |= {"host epochs": [_last(run.curves["World/score"].epochs, ",.0f") for run in runs]}
    for tag, title in CURVES.items():
        training[title] = [_last(run.curves[tag].values, ",.4g") for run in runs]
    grids = [
        _Grid("settings that differ", differing or {"none": [""] * len(runs)}),
        _Grid("at the end of training", training),
    ]
    policies = dict.fromkeys(name for run in runs if run.evaluation for name in run.evaluation.policies)
    evaluated: dict[str, list[str]] = {}
    if policies:
        evaluated["held-out hosts"] = [_place(run) for run in runs]
        evaluated |= {LABELS.get(name, name): [_score(run, name) for run in runs] for name in policies}
    else:
        evaluated["not evaluated yet: esper-ray evaluate RUN"] = [""] * len(runs)
    return [*grids, _Grid("evaluation: score on the test split", evaluated)]


def _last(values: Any, form: str) -> str:
    return f"{values[-1]:{form}}" if len(values) else "–"


def _place(run: ComparedRun) -> str:
    if run.evaluation is None:
        return "–"
    told = run.evaluation
    played = f"iteration {told.checkpoint.iteration} at temperature {told.temperature:g}"
    return f"{told.episodes} of {told.task}, {told.max_epochs} epochs, seed {told.seed}, {played}"


def _score(run: ComparedRun, policy: str) -> str:
    if run.evaluation is None or policy not in run.evaluation.policies:
        return "–"
    score = run.evaluation.policies[policy].score
    low, high = score.ci95
    return f"{score.iqm:.3f} [{low:.3f}, {high:.3f}]"


def comparison_tables(runs: Sequence[ComparedRun]) -> list[Table]:
    """For the terminal."""
    tables = []
    for grid in _grids(runs):
        table = Table(title=grid.title, box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("")
        for run in runs:
            table.add_column(run.name, justify="right", overflow="fold")
        for name, cells in grid.rows.items():
            table.add_row(name, *cells)
        tables.append(table)
    return tables


def comparison_markdown(runs: Sequence[ComparedRun]) -> str:
    """The same tables as a page."""
    lines = ["# Comparison of runs", ""]
    for grid in _grids(runs):
        lines += [f"## {grid.title}", "", "| | " + " | ".join(run.name for run in runs) + " |"]
        lines.append("|---|" + "---|" * len(runs))
        lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in grid.rows.items()]
        lines.append("")
    return "\n".join([*lines, "![learning curves](comparison.png)", ""])


# ---------------------------------------------------------------------- picture
def comparison_figure(runs: Sequence[ComparedRun]) -> Figure:
    """One panel per tag of ``CURVES``, one line per run."""
    figure = Figure(figsize=(13, 7), layout="constrained", dpi=110)
    panels = figure.subplots(2, 3, sharex=True)
    for axes, (tag, title) in zip(panels.flat, CURVES.items(), strict=True):
        for index, run in enumerate(runs):
            curve = run.curves[tag]
            marker = "." if len(curve.epochs) < 3 else ""  # so that one point is seen
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(curve.epochs, curve.values, color=colour, marker=marker, lw=1.6, label=run.name)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for axes in panels[-1]:
        axes.set_xlabel("host epochs trained")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(runs), 4), frameon=False)
    return figure
