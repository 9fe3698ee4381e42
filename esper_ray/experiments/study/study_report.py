"""What a study found: study.json, a table in Markdown, and pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from esper_ray.experiments.study.study_directory import StudyDirectory
from esper_ray.experiments.study.study_figures import behaviour_figure, cost_figure, learning_figure, score_figure
from esper_ray.experiments.study.study_results import StudyResults
from esper_ray.keeping.revision import git_commit
from esper_ray.keeping.writing import replace_figure, replace_text
from esper_ray.measuring.evaluation import summarise
from esper_ray.measuring.evaluation_report import LABELS, clock
from esper_ray.measuring.playing import Played, Playing

FloatArray = npt.NDArray[np.float64]

FATES = {"fossilized": "fossilised", "pruned": "pruned", "unfinished": "cut"}


def write_report(directory: StudyDirectory) -> dict[str, Any]:
    """Write study.json, study.md and the pictures of a study that is done.

    Returns:
        What study.json holds.
    """
    report = summarise_study(StudyResults.read(directory)) | {"git_commit": git_commit()}
    replace_text(directory.path / "study.json", json.dumps(report, indent=2, default=str) + "\n")
    for name, figure in pictures(report).items():
        replace_figure(directory.path / f"{name}.png", figure)
    replace_text(directory.path / "study.md", markdown(report))
    return report


def pictures(report: dict[str, Any]) -> dict[str, Figure]:
    """By the name that the page refers to."""
    drawn = {"learning_curves": learning_figure(report)}
    if len(report["evaluations"]) > 1:
        drawn["scores"] = score_figure(report)
    for name, evaluation in report["evaluations"].items():
        drawn[f"{name}-costs"] = cost_figure(evaluation)
        drawn[f"{name}-behaviour"] = behaviour_figure(evaluation)
    return drawn


# ---------------------------------------------------------------------- numbers
def summarise_study(results: StudyResults) -> dict[str, Any]:
    """All results as plain values; intervals as :func:`esper_ray.measuring.statistics.summarise_runs` says."""
    return {
        "title": results.study.title,
        "study": results.study.model_dump(),
        "arms": {arm: _arm(results, arm) for arm in results.study.arms},
        "evaluations": {name: _evaluation(name, results) for name in results.study.worlds},
    }


def _arm(results: StudyResults, arm: str) -> dict[str, Any]:
    trainings = results.trainings[arm]
    epochs = max((training.curve.epochs for training in trainings), key=len)
    return {
        "config": dataclasses.asdict(results.study.configs[arm]),
        "seeds": [training.seed for training in trainings],
        "epochs": epochs.tolist(),
        "scores": [_without_nan(training.curve.at(epochs)) for training in trainings],
        "training_seconds": [training.seconds for training in trainings],
    }


def _without_nan(values: FloatArray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _evaluation(name: str, results: StudyResults) -> dict[str, Any]:
    study = results.study
    world = Playing(study.worlds[name], (), None, None, study.episodes, study.evaluation_seed)
    slots = world.env.make_task().slots
    played, origins = results.in_world(name)
    evaluation = {
        "name": name,
        "arms": list(study.arms),
        "ops": [op.name for op in slots.ops],
        "slots": list(slots.slot_ids),
        "blueprints": [blueprint.name for blueprint in slots.blueprints],
        **summarise(world, played, list(study.arms), origins),
    }
    for policy, result in evaluation["policies"].items():
        result["behaviour"] = _behaviour(played[policy], study.episodes)
    return evaluation


def _behaviour(runs: Sequence[Played], episodes: int) -> dict[str, Any]:
    """Ops as shares of the hosts that were still in their episode, seeds per episode."""
    total = {
        name: np.sum([run.behaviour[name] for run in runs], axis=0) for name in ("ops", "germinated", "fossilized")
    }
    hosts = total["ops"].sum(axis=1, keepdims=True)
    return {
        "ops": (total["ops"] / np.maximum(hosts, 1)).round(6).tolist(),
        "germinated": (total["germinated"] / (len(runs) * episodes)).tolist(),
        "fossilized": (total["fossilized"] / (len(runs) * episodes)).tolist(),
    }


# ---------------------------------------------------------------------- words
def markdown(report: dict[str, Any], pictures_at: str = "", level: int = 1) -> str:
    """The report as a page, or as a section of one.

    Args:
        report: As :func:`summarise_study` makes it.
        pictures_at: What goes before the names of :func:`pictures`: where they are, as seen from the page.
        level: Of the heading.
    """
    lines = [f"# {report['title'] or 'Study'}", ""]
    lines += ["| arm | training seeds | host epochs each | time each | played | differs in |", "|---" * 6 + "|"]
    for arm, result in report["arms"].items():
        seconds = [value for value in result["training_seconds"] if value is not None]
        differs = ", ".join(f"`{name}: {value}`" for name, value in (report["study"]["arms"][arm] or {}).items())
        seeds = ", ".join(map(str, result["seeds"]))
        time = clock(float(np.mean(seconds))) if seconds else ""
        temperature = result["config"]["network"]["play_temperature"]
        played = f"{report['study']['checkpoint']}, temperature {temperature:g}"
        lines.append(f"| {arm} | {seeds} | {result['epochs'][-1]:,.0f} | {time} | {played} | {differs} |")
    if report["study"]["trained_by"]:
        lines += ["", f"Trained by the study {report['study']['trained_by']}."]
    lines += ["", "![learning curves](learning_curves.png)"]
    if len(report["evaluations"]) > 1:
        lines += ["", *_summary_lines(report)]
    for evaluation in report["evaluations"].values():
        lines += ["", *_evaluation_lines(evaluation)]
    lines += [
        "",
        "Interquartile means (mean score: means) with 95 % intervals over training seeds, held-out hosts, drawn within "
        "their kinds, and test samples; score = accuracy/100 − rent, on the test split. GFLOP: training of one host, "
        "all evaluations on validation included. fossilised, pruned, cut: seeds per episode kept for good, "
        "pruned, removed unfinished at the end.",
    ]
    if alone := [arm for arm, result in report["arms"].items() if len(result["seeds"]) == 1]:
        lines[-1] += f" Of {', '.join(alone)} there is one training: its intervals hold for that one alone."
    if "git_commit" in report:
        lines[-1] += f" Code: {report['git_commit'] or 'no checkout'}."
    page = "\n".join(f"{'#' * (level - 1)}{line}" if line.startswith("#") else line for line in lines) + "\n"
    return page.replace("](", f"]({pictures_at}")


def _summary_lines(report: dict[str, Any]) -> list[str]:
    """All worlds in one table of scores, and one of differences for each arm."""
    evaluations = report["evaluations"].values()
    (first, *_) = evaluations

    def table(policies: Sequence[str], cell: Callable[[dict[str, Any], str], str]) -> list[str]:
        header = ["policy", *(evaluation["name"] for evaluation in evaluations)]
        rows = [[LABELS.get(policy, policy), *(cell(each, policy) for each in evaluations)] for policy in policies]
        return [_row(header), "|---" * len(header) + "|", *map(_row, rows)]

    lines = ["## Scores in all worlds", ""]
    lines += table(list(first["policies"]), lambda each, policy: _interval(each["policies"][policy]["score"], ".3f"))
    for arm, differences in first["differences"].items():
        lines += ["", f"Score of {arm} minus that of the policy in the row, on the same hosts:", ""]
        lines += table(list(differences), partial(_difference, arm))
    return [*lines, "", "![scores in all worlds](scores.png)"]


def _evaluation_lines(evaluation: dict[str, Any]) -> list[str]:
    arguments = ", ".join(f"{name}={value}" for name, value in evaluation["task_args"].items())
    task = f"{evaluation['task']}({arguments})" if arguments else evaluation["task"]
    lines = [
        f"## {evaluation['name']}: {evaluation['episodes']} hosts of {task}, {evaluation['max_epochs']} epochs",
        "",
    ]
    arms = evaluation["arms"]
    against = [f"{arm} minus it" for arm in arms]
    scores = ["score", *against, "mean score", *against]
    header = ["policy", *scores, "accuracy, %", "parameters", "training GFLOP", *FATES.values()]
    lines += [_row(header), "|---" * len(header) + "|"]
    for policy, result in evaluation["policies"].items():
        cells = [
            LABELS.get(policy, policy),
            _interval(result["score"], ".3f"),
            *(_difference(arm, evaluation, policy) for arm in arms),
            _interval(result["score"], ".3f", statistic="mean"),
            *(_difference(arm, evaluation, policy, statistic="mean") for arm in arms),
            _interval(result["accuracy"], ".1f"),
            _interval(result["parameters"], ",.0f"),
            _interval(result["training_flops"], ",.2f", 1e-9),
            *(f"{result['fates'][fate]:.2f}" for fate in FATES),
        ]
        lines.append(_row(cells))
    lines += _variant_lines(evaluation)
    for kind in ("costs", "behaviour"):
        lines += ["", f"![{evaluation['name']}, {kind}]({evaluation['name']}-{kind}.png)"]
    return lines


def _variant_lines(evaluation: dict[str, Any]) -> list[str]:
    """Mean scores by kind of host, if the world draws several."""
    kinds = [index for index, hosts in enumerate(evaluation["hosts_by_variant"]) if hosts]
    if len(kinds) < 2:
        return []
    lines = ["", "Mean score by kind of host:", ""]
    names = (f"{evaluation['hosts_by_variant'][kind]} × {evaluation['variants'][kind]}" for kind in kinds)
    lines += [_row(["policy", *names]), "|---" * (1 + len(kinds)) + "|"]
    for policy, result in evaluation["policies"].items():
        scores = result["score_by_variant"]
        lines.append(_row([LABELS.get(policy, policy), *(f"{scores[kind]:.3f}" for kind in kinds)]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _difference(arm: str, evaluation: dict[str, Any], other: str, statistic: Literal["iqm", "mean"] = "iqm") -> str:
    """Score of an arm minus that of another policy; empty for the arm itself."""
    differences = evaluation["differences"][arm]
    return _interval(differences[other], "+.3f", statistic=statistic) if other in differences else ""


def _interval(
    estimate: dict[str, Any], form: str, scale: float = 1.0, statistic: Literal["iqm", "mean"] = "iqm"
) -> str:
    interval = "ci95" if statistic == "iqm" else "mean_ci95"
    value, low, high = (scale * number for number in (estimate[statistic], *estimate[interval]))
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
