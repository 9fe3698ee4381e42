"""Evaluation results for people: a table on the terminal and a picture."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from esper_ray.measuring.controls import BEST_SCHEDULE, LEARNED_GREEDY, STATIC_BIG, STATIC_FINAL, TRAINING_SCHEDULE
from policies.learned import LEARNED

LABELS = {
    LEARNED: "learned policy",
    "never_grow": "never grow",
    "random_valid": "random valid",
    "heuristic": "heuristic",
    "fixed_schedule": "fixed schedule",
    "periodic": "periodic",
    "gradient": "largest gradient",
    BEST_SCHEDULE: "best schedule",
    TRAINING_SCHEDULE: "best schedule of the training world",
    LEARNED_GREEDY: "learned, greedy",
    STATIC_FINAL: "static final",
    STATIC_BIG: "static big",
}

MOST_KINDS = 6
"""Of hosts that have columns of their own in a table of 80 columns."""

LEGEND_WIDTH = 79
"""Of a table under which kinds of host are described, a line for each."""

COLOURS = ("#1d3557", "#d1495b", "#2a9d8f", "#e09f3e", "#7b5ea7", "#4c78a8", "#9c6644", "#5f6f52")
"""Of lines that are told apart by colour."""


def evaluation_table(report: dict[str, Any]) -> Table:
    """One row per policy; fits into 80 columns."""
    world = report.get("name", report["task"])  # a study's evaluations have names
    played = ""
    if "temperature" in report:  # one policy's; those of a study may differ
        iteration, temperature = report["checkpoint"]["iteration"], report["temperature"]
        played = f"; learned policy: iteration {iteration}, temperature {temperature:g}"
    table = Table(
        title=f"{world}: {report['episodes']} held-out hosts, {report['max_epochs']} epochs, test split",
        caption="score = accuracy/100 − rent; interquartile means, [ ] = 95 % interval over hosts and test samples; "
        "GFLOP: training of one host, all evaluations on validation included; "
        f"fossil, pruned, cut: seeds per episode kept for good, pruned, removed unfinished at the end{played}",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("policy")
    for name in ("score", "acc %", "params", "GFLOP", "fossil", "pruned", "cut"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, result in report["policies"].items():
        score, fates = result["score"], result["fates"]
        low, high = score["ci95"]
        table.add_row(
            LABELS.get(name, name),
            f"{score['iqm']:.3f} [{low:.3f}, {high:.3f}]",
            f"{result['accuracy']['iqm']:.1f}",
            f"{result['parameters']['iqm']:,.0f}",
            f"{result['training_flops']['iqm'] / 1e9:,.2f}",
            *(f"{fates[fate]:.2f}" for fate in ("fossilized", "pruned", "unfinished")),
            style="bold" if name == LEARNED else None,
        )
    return table


def comparison_table(report: dict[str, Any], arm: str = LEARNED) -> Table:
    """How far a learned policy is ahead of everybody else, and everybody's means; fits into 80 columns.

    Args:
        report: With ``differences`` of the arm.
        arm: Name of the learned policy.
    """
    kinds = [kind for kind, hosts in enumerate(report["hosts_by_variant"]) if hosts]
    kinds = kinds if 1 < len(kinds) <= MOST_KINDS else []  # of one kind the mean says it all
    legend = [f"{kind}: {report['hosts_by_variant'][kind]} × {report['variants'][kind]}" for kind in kinds]
    table = Table(
        caption="\n".join(["differences of interquartile means, host by host; mean scores", *legend]),
        min_width=LEGEND_WIDTH if legend else None,
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("policy")
    for name in (f"{LABELS.get(arm, arm)} minus it", "mean", *(f"of {kind}" for kind in kinds)):
        table.add_column(name, justify="right", no_wrap=True)
    for name, result in report["policies"].items():
        difference = ""
        if name != arm:
            lead = report["differences"][arm][name]
            low, high = lead["ci95"]
            difference = f"{lead['iqm']:+.3f} [{low:+.3f}, {high:+.3f}]"
        scores = (f"{result['score_by_variant'][kind]:.3f}" for kind in kinds)
        mean = f"{result['score']['mean']:.3f}"
        table.add_row(LABELS.get(name, name), difference, mean, *scores, style="bold" if name == arm else None)
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


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
