"""What came out of a tuning: a table, a page, numbers, and the best settings as a study."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import yaml
from rich import box
from rich.table import Table

from esper_ray.experiments.tuning.tuning_directory import Result, Trial, TuningDirectory, last_results, ranked
from esper_ray.keeping.revision import git_commit
from esper_ray.keeping.writing import replace_text

STUDY_SEEDS = 3


@dataclass(frozen=True)
class Outcome:
    """How a trial did.

    Attributes:
        trial: Which.
        state: ``finished``, ``stopped``, ``failed`` or ``unfinished``.
        scores: Of its iterations.
        failure: Why it failed.
    """

    trial: Trial
    state: str
    scores: tuple[float, ...]
    failure: str | None

    @property
    def score(self) -> float:
        """Of the last iteration; NaN before the first."""
        return self.scores[-1] if self.scores else math.nan


def outcomes(directory: TuningDirectory, results: list[Result], failures: Mapping[str, str]) -> list[Outcome]:
    """How every trial did, the best first."""
    last = last_results(results)
    return [
        Outcome(
            trial,
            _state(trial, last.get(trial.name), trial.name in failures),
            tuple(result.score for result in results if result.trial == trial.name),
            failures.get(trial.name),
        )
        for trial in ranked(directory.trials, last)
    ]


def _state(trial: Trial, last: Result | None, failed: bool) -> str:
    if trial.is_over(last):
        return "stopped" if last is not None and last.stopped else "finished"
    return "failed" if failed else "unfinished"


def write_report(directory: TuningDirectory, failures: Mapping[str, str]) -> list[Outcome]:
    """Write ``tune.json``, ``tune.md`` and, once a trial has a score, ``best.yaml``.

    Returns:
        How every trial did, the best first.
    """
    found = outcomes(directory, directory.open(), failures)
    report = {
        "tuning": directory.tuning.model_dump(mode="json", exclude_unset=True),
        "git_commit": git_commit(),
        "trials": [
            {
                "name": outcome.trial.name,
                "settings": outcome.trial.drawn,
                "state": outcome.state,
                "iterations": len(outcome.scores),
                "score": _number(outcome.score),
                "scores": [_number(score) for score in outcome.scores],
                **({"failure": outcome.failure} if outcome.failure else {}),
            }
            for outcome in found
        ],
    }
    replace_text(directory.path / "tune.json", json.dumps(report, indent=2) + "\n")
    replace_text(directory.path / "tune.md", markdown(directory, found))
    if found[0].scores:
        replace_text(directory.path / "best.yaml", best_study(directory, found[0].trial))
    return found


def _number(score: float) -> float | None:
    return score if math.isfinite(score) else None


def best_study(directory: TuningDirectory, best: Trial) -> str:
    """YAML of a study that compares the best trial's settings with those that the tuning started from."""
    tuning = directory.tuning
    study = {
        "title": f"{tuning.title or 'Tuning'}: the best trial's settings against those before",
        "preset": tuning.preset,
        "settings": tuning.settings,
        "arms": {"before": {}, "tuned": best.drawn},
        "seeds": STUDY_SEEDS,
    }
    comment = f"# From trial {best.name}; its own run is one training with seed {tuning.seed}.\n"
    return comment + yaml.safe_dump(study, sort_keys=False, allow_unicode=True)


# ---------------------------------------------------------------------- words
def _rows(found: list[Outcome]) -> list[list[str]]:
    return [
        [
            outcome.trial.name,
            f"{outcome.score:.3f}" if outcome.scores else "–",
            f"{len(outcome.scores)}",
            outcome.state,
            *map(str, outcome.trial.drawn.values()),
        ]
        for outcome in found
    ]


def _heading(directory: TuningDirectory) -> list[str]:
    return ["trial", "score", "iterations", "state", *directory.tuning.space]


def _spent(directory: TuningDirectory, found: list[Outcome]) -> str:
    trained, whole = (sum(len(outcome.scores) for outcome in found), len(found) * directory.tuning.base.run.iterations)
    return f"{trained:,} iterations trained; all trials to their ends would have been {whole:,}"


def tuning_table(directory: TuningDirectory, found: list[Outcome]) -> Table:
    """For the terminal."""
    table = Table(
        title=directory.tuning.title or None,
        caption=f"score = committed validation score, moving average over iterations. {_spent(directory, found)}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in _heading(directory):
        table.add_column(name, justify="left" if name == "state" else "right", overflow="fold")
    for row in _rows(found):
        table.add_row(*row)
    return table


def markdown(directory: TuningDirectory, found: list[Outcome]) -> str:
    """The same as a page."""
    tuning, heading = directory.tuning, _heading(directory)
    lines = [f"# {tuning.title or 'Tuning'}", ""]
    lines += [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading)]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in _rows(found)]
    failures = [f"* Trial {outcome.trial.name} failed: {outcome.failure}" for outcome in found if outcome.failure]
    lines += ["", *failures] if failures else []
    lines += [
        "",
        "Score: committed validation score, moving average over the trial's iterations; the test split took no part. "
        f"Stopped by ASHA with {tuning.grace_iterations} iterations of grace and reduction factor "
        f"{tuning.reduction_factor}. {_spent(directory, found)}. Code: {git_commit() or 'no checkout'}.",
        "",
        f"Every trial is one training with seed {tuning.seed}, and the best of many is partly lucky: "
        "`esper-ray study best.yaml` trains its settings anew with other seeds, and compares them with those before on "
        "held-out hosts and the test split.",
        "",
    ]
    return "\n".join(lines)
