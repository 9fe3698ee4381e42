"""A study's pictures, drawn from what study.json holds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from esper_ray.measuring.evaluation_report import COLOURS, LABELS

BoolArray = npt.NDArray[np.bool_]

OP_COLOURS = ("#e3e6ea", "#f4b860", "#b8a1e3", "#d1495b", "#74b77a", "#8ecae6", "#2a9d8f", "#9c6644")
"""By number of the op; WAIT, the most frequent one, stays in the background."""

CONTROL_COLOUR = "#8d99ae"
FATE_COLOURS = {"fossilized": "#74b77a", "pruned": "#d1495b", "unfinished": "#f4b860", "rolled_back": "#8d99ae"}
FATE_LABELS = {"fossilized": "fossilised", "unfinished": "cut at the end", "rolled_back": "rolled back"}
COSTS = {
    "parameters": (1.0, "parameters of the committed network"),
    "training_flops": (1e-9, "training of one host, GFLOP"),
}
"""Measures that the score is drawn against, with the scale and the name of their axis."""


def learning_figure(report: dict[str, Any]) -> Figure:
    """Score over training, one line per arm with the range of its training seeds."""
    figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=110)
    axes = figure.subplots()
    for colour, (arm, result) in zip(_colours(report["arms"]), report["arms"].items(), strict=True):
        epochs, scores = np.array(result["epochs"]), np.array(result["scores"], float)
        complete = ~np.isnan(scores).any(axis=0)
        epochs, scores = epochs[complete], scores[:, complete]
        axes.fill_between(epochs, scores.min(axis=0), scores.max(axis=0), color=colour, alpha=0.18, lw=0)
        axes.plot(epochs, scores.mean(axis=0), color=colour, lw=2, label=f"{arm} ({_counted(len(scores), 'seed')})")
    axes.set_xlabel("host epochs trained")
    axes.set_ylabel("committed validation score")
    axes.set_title("score over training: mean and range over training seeds", fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.legend(frameon=False, loc="lower right")
    _plain(axes, grid="both")
    return figure


def score_figure(report: dict[str, Any]) -> Figure:
    """Score of every policy with its 95 % interval, a panel per world."""
    evaluations = report["evaluations"].values()
    (first, *_) = evaluations
    policies = list(first["policies"])
    figure = Figure(figsize=(2.5 + 2.0 * len(evaluations), 1.3 + 0.3 * len(policies)), layout="constrained", dpi=110)
    panels = np.atleast_1d(figure.subplots(1, len(evaluations), sharey=True))
    for axes, evaluation in zip(panels, evaluations, strict=True):
        styles = _styles(evaluation)
        for place, policy in enumerate(policies):
            score, along = _point(evaluation["policies"][policy]["score"])
            axes.errorbar(score, place, xerr=along, fmt="none", capsize=2, lw=1.2, color=styles[policy]["color"])
            axes.plot(score, place, ls="none", ms=5, **(styles[policy] | {"marker": "o"}))
        axes.set_title(evaluation["name"], fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.margins(x=0.12)
        _plain(axes, grid="both")
    panels[0].set_yticks(range(len(policies)), [LABELS.get(policy, policy) for policy in policies])
    panels[0].invert_yaxis()
    figure.supxlabel("committed score, test split: interquartile means and 95 % intervals", fontsize=10)
    return figure


def cost_figure(evaluation: dict[str, Any]) -> Figure:
    """Score against each cost, a point with 95 % intervals per policy."""
    figure = Figure(figsize=(1.5 + 5.5 * len(COSTS), 4.8), layout="constrained", dpi=110)
    panels = np.atleast_1d(figure.subplots(1, len(COSTS), sharey=True))
    for axes, (cost, (scale, label)) in zip(panels, COSTS.items(), strict=True):
        for policy, style in _styles(evaluation).items():
            result = evaluation["policies"][policy]
            x, across = _point(result[cost], scale)
            y, along = _point(result["score"])
            axes.errorbar(x, y, xerr=across, yerr=along, fmt="none", capsize=2, lw=1.2, color=style["color"])
            axes.plot(x, y, ls="none", ms=8, **style)
        costs = [result[cost]["iqm"] for result in evaluation["policies"].values()]
        if max(costs) > 20 * min(costs):
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.set_xlabel(label)
        axes.margins(0.08)
        _plain(axes, grid="both")
    panels[0].set_ylabel("committed score, test split")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(f"{_place(evaluation)}: interquartile means and 95 % intervals", fontsize=11)
    return figure


def behaviour_figure(evaluation: dict[str, Any]) -> Figure:
    """Per arm the op mix over the epochs and what was kept in each slot; the fate of seeds of every policy."""
    arms, policies = evaluation["arms"], evaluation["policies"]
    heights = [2.6] * len(arms) + [0.9 + 0.3 * len(policies)]
    figure = Figure(figsize=(11.5, 1.6 + sum(heights)), layout="constrained", dpi=110)
    grid = figure.add_gridspec(len(arms) + 1, 2, height_ratios=heights)
    kept = np.array([policies[arm]["behaviour"]["fossilized"] for arm in arms])
    most = 1.1 * max(float(kept.sum(axis=2).max()), 0.1)
    for row, arm in enumerate(arms):
        _draw_ops(figure.add_subplot(grid[row, 0]), evaluation, arm)
        right = figure.add_subplot(grid[row, 1])
        _draw_kept(right, evaluation, arm, used=np.asarray(kept.any(axis=(0, 1))))
        right.set_xlim(0, most)
    _draw_fates(figure.add_subplot(grid[-1, :]), policies)
    figure.suptitle(f"{_place(evaluation)}: what the policies do", fontsize=11)
    return figure


def _draw_ops(axes: Axes, evaluation: dict[str, Any], arm: str) -> None:
    ops = evaluation["ops"]
    shares = np.array(evaluation["policies"][arm]["behaviour"]["ops"])
    used = np.flatnonzero(shares.any(axis=0))
    labels = [ops[index].lower().replace("_", " ") for index in used]
    # An epoch spans t - 1 … t on the axis, as in a replay.
    edges, steps = np.arange(len(shares) + 1), np.concatenate([shares, shares[-1:]])
    colours = [OP_COLOURS[index] for index in used]
    axes.stackplot(edges, steps[:, used].T, labels=labels, colors=colours, step="post")
    axes.set_xlim(0, len(shares))
    axes.set_ylim(0, 1)
    axes.set_xlabel("training epoch of the host")
    axes.set_ylabel("share of hosts")
    axes.set_title(f"{arm}: ops over the epochs", fontsize=10)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, reverse=True, fontsize=8.5)
    _plain(axes)


def _draw_kept(axes: Axes, evaluation: dict[str, Any], arm: str, used: BoolArray) -> None:
    counts = np.array(evaluation["policies"][arm]["behaviour"]["fossilized"])
    slots, start = evaluation["slots"], np.zeros(len(counts))
    axes.barh(slots, start)  # the axis names every slot, also where nothing was kept
    for index in np.flatnonzero(used):
        label = evaluation["blueprints"][index].lower().replace("_", " ")
        axes.barh(slots, counts[:, index], left=start, color=colormaps["tab20"](index), label=label, height=0.7)
        start += counts[:, index]
    axes.invert_yaxis()  # slots in the order in which data pass them
    axes.set_xlabel("seeds kept per episode")
    axes.set_title(f"{arm}: blueprints kept, by slot", fontsize=10)
    if used.any():
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8.5)
    else:
        axes.text(0.5, 0.5, "nothing was kept", transform=axes.transAxes, ha="center", va="center")
    _plain(axes, grid="x")


def _draw_fates(axes: Axes, policies: dict[str, Any]) -> None:
    names = [LABELS.get(policy, policy) for policy in policies]
    start = np.zeros(len(names))
    for fate, colour in FATE_COLOURS.items():
        counts = np.array([result["fates"][fate] for result in policies.values()])
        axes.barh(names, counts, left=start, color=colour, label=FATE_LABELS.get(fate, fate), height=0.7)
        start += counts
    axes.invert_yaxis()
    axes.set_xlabel("seeds per episode")
    axes.set_title("fate of the seeds", fontsize=10)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8.5)
    _plain(axes, grid="x")


def _styles(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Colour, marker and label of every policy; what follows from an arm's trainings is hollow in its colour."""
    arms = dict(zip(evaluation["arms"], _colours(evaluation["arms"]), strict=True))
    markers = itertools.cycle("sD^vPX<>p*")
    styles: dict[str, dict[str, Any]] = {}
    for policy in evaluation["policies"]:
        arm, _, following = policy.partition(", ")
        colour = arms.get(arm, CONTROL_COLOUR)
        styles[policy] = {"color": colour, "marker": next(markers), "label": LABELS.get(policy, policy)}
        if policy in arms:
            styles[policy] |= {"marker": "o", "label": policy}
        elif following:
            styles[policy]["markerfacecolor"] = "white"
    return styles


def _point(estimate: dict[str, Any], scale: float = 1.0) -> tuple[float, list[list[float]]]:
    """A value and its error bar, as matplotlib wants them; a value may lie outside a percentile interval."""
    value, low, high = (scale * number for number in (estimate["iqm"], *estimate["ci95"]))
    return value, [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def _colours(arms: Sequence[str] | dict[str, Any]) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(len(arms))]


def _place(evaluation: dict[str, Any]) -> str:
    return f"{evaluation['name']}, {evaluation['episodes']} held-out hosts, {evaluation['max_epochs']} epochs"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _plain(axes: Axes, grid: Literal["x", "both"] | None = None) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if grid is not None:
        axes.grid(axis=grid, alpha=0.25)
        axes.set_axisbelow(True)
