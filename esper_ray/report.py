"""Evaluation results for people: a table on the terminal and a picture."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

LABELS = {
    "learned": "learned policy",
    "never_grow": "never grow",
    "random_valid": "random valid actions",
    "heuristic": "plateau heuristic",
    "fixed_schedule": "fixed schedule",
}


def evaluation_table(report: dict[str, Any]) -> Table:
    """One row per policy."""
    table = Table(
        title=f"{report['task']}: {report['episodes']} held-out episodes of {report['max_epochs']} epochs, test split",
        caption="score = accuracy/100 − rent; iqm = interquartile mean; [ ] = its 95 % bootstrap interval; "
        "seeds per episode",
    )
    for name in ("policy", "score (iqm)", "95 % interval", "score (mean)", "accuracy %", "parameters"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for name in ("fossilised", "pruned", "unfinished"):
        table.add_column(name, justify="right")
    for name, result in report["policies"].items():
        score, fates = result["score"], result["fates"]
        low, high = score["ci95"]
        table.add_row(
            LABELS.get(name, name),
            f"{score['iqm']:.3f}",
            f"[{low:.3f}, {high:.3f}]".replace("[", r"\["),
            f"{score['mean']:.3f}",
            f"{result['accuracy']['iqm']:.1f}",
            f"{result['parameters']['iqm']:,.0f}",
            *(f"{fates[fate]:.2f}" for fate in ("fossilized", "pruned", "unfinished")),
            style="bold" if name == "learned" else None,
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
        colour = "#1d3557" if name == "learned" else "#8d99ae"
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
