"""Writes docs/results.md, its pictures, and docs/results.json, from kept figures alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from esper_ray.experiments.results.gathering import Gathered, gather
from esper_ray.experiments.results.kept_units import KeptUnits, Made
from esper_ray.experiments.results.plan import Plan
from esper_ray.experiments.results.verdicts import (
    PLAYABLE,
    TARGETS,
    Reaching,
    SearchVerdict,
    above_playable,
    flops_ratio,
    generalist_gaps,
    search_verdict,
    targets,
)
from esper_ray.experiments.study.study_file import Study
from esper_ray.experiments.study.study_report import markdown, pictures, summarise_study
from esper_ray.keeping.writing import make_directories, replace_figure, replace_text
from esper_ray.measuring.controls import BEST_SCHEDULE
from esper_ray.measuring.evaluation_report import LABELS, clock
from esper_ray.measuring.search.host_pool import CANDIDATES
from esper_ray.measuring.search.purse import MULTIPLES
from esper_ray.measuring.statistics import Estimate, Summary

PAGE, NUMBERS, PICTURES = "results.md", "results.json", "images/results"
HEAD_FILE = "head.md"


@dataclass(frozen=True)
class Section:
    """Of a study.

    Attributes:
        gathered: What is known of it.
        report: See :func:`esper_ray.experiments.study.study_report.summarise_study`.
        searches: By world and arm.
    """

    gathered: Gathered
    report: dict[str, Any]
    searches: dict[str, dict[str, SearchVerdict]]

    @classmethod
    def of(cls, gathered: Gathered) -> Section:
        """Of a study's figures."""
        searches: dict[str, dict[str, SearchVerdict]] = {}
        for world, pool in gathered.pools.items():
            played, _ = gathered.results.in_world(world)
            searches[world] = {arm: search_verdict(pool, played[arm]) for arm in gathered.results.study.arms}
        return cls(gathered, summarise_study(gathered.results), searches)


def write_results(plan: Plan, kept: KeptUnits, docs: Path) -> dict[str, Any]:
    """Write the page, its pictures and its numbers.

    Args:
        plan: The studies.
        kept: Their figures.
        docs: Directory of the documentation.

    Returns:
        What results.json holds.

    Raises:
        UserError: a damaged file, or one that cannot be written.
    """
    lines = [(plan.path / HEAD_FILE).read_text(encoding="utf-8").rstrip(), ""]
    make_directories(docs)
    known = {name: found for name in plan.studies if (found := gather(plan, kept, name)) is not None}
    gaps = generalist_gaps(plan, known)
    sections = []
    for name, study in plan.studies.items():
        if name not in known:
            lines += [f"## {study.title}", "", _nothing(plan, kept, name), ""]
            continue
        section = Section.of(known[name])
        sections.append(section)
        at = f"{PICTURES}/{name}"
        lines += [markdown(section.report, f"{at}/", level=2), *_evidence(section), ""]
        if plan.generalist is not None and plan.generalist.study == name:
            lines += _gap_lines(gaps)
        lines += _remarks(plan, name)
        make_directories(docs / at)
        drawn = pictures(section.report) | {
            _search_picture(world, arm): _search_figure(world, arm, verdict)
            for world, verdicts in section.searches.items()
            for arm, verdict in verdicts.items()
        }
        for picture, figure in drawn.items():
            replace_figure(docs / at / f"{picture}.png", figure)
    numbers = {
        "headline": headline(plan, sections, gaps),
        "studies": {section.gathered.name: section.report for section in sections},
        "units": {str(unit): made.model_dump() for section in sections for unit, made in section.gathered.made.items()},
    }
    replace_text(docs / NUMBERS, json.dumps(numbers, indent=2, default=str) + "\n")
    replace_text(docs / PAGE, "\n".join(lines).rstrip() + "\n")
    return numbers


def headline(plan: Plan, sections: Sequence[Section], gaps: Mapping[str, Mapping[str, Summary]]) -> dict[str, Any]:
    """The few numbers that the claims are checked against.

    A world has the name of its evaluation, and before it that of its study where another study on the plan has one of
    that name; of several arms each has an entry of its own.

    Args:
        plan: The studies.
        sections: Of those that there are figures of.
        gaps: See :func:`esper_ray.experiments.results.verdicts.generalist_gaps`.
    """
    found: dict[str, Any] = {
        "training_seeds": {},
        "above_playable": {},
        "apart_from_playable": {},
        "search_multiple": {},
        "search_used_up": {},
        "generalist_gap": {
            world if len(gaps) == 1 else f"{world}: {arm}": list(gap.mean.interval)
            for arm, of_arm in gaps.items()
            for world, gap in of_arm.items()
        },
        "flops_to_95": {},
    }
    for section in sections:
        found["training_seeds"][section.gathered.name] = min(
            len(trainings) for trainings in section.gathered.results.trainings.values()
        )
        for world, arm, name in _entries(plan, section):
            trainings = len(section.gathered.results.trainings[arm])
            above = above_playable(section.report["evaluations"][world], arm, trainings)
            found["above_playable"][name] = None if above is None else above.paired
            found["apart_from_playable"][name] = None if above is None else above.apart
            if BEST_SCHEDULE in section.gathered.results.controls[world]:
                found["flops_to_95"][name] = flops_ratio(section.gathered, world, arm, TARGETS[-1])
            if world in section.searches:
                found["search_multiple"][name] = list(section.searches[world][arm].multiple)
                found["search_used_up"][name] = max(
                    share[-1] for share in section.searches[world][arm].used_up.values()
                )
    return found


def _entries(plan: Plan, section: Section) -> Iterator[tuple[str, str, str]]:
    """World, arm and name of each entry of the headline."""
    study = section.gathered.results.study
    for world in study.worlds:
        alone = sum(world in other.worlds for other in plan.studies.values()) == 1
        for arm in study.arms:
            parts = [] if alone or section.gathered.name == world else [section.gathered.name]
            yield world, arm, ": ".join([*parts, world, *([arm] if len(study.arms) > 1 else [])])


# ---------------------------------------------------------------------- words
def _remarks(plan: Plan, name: str) -> list[str]:
    """What is to be said of a study's figures that they do not say."""
    path = plan.path / f"{name}.md"
    return [path.read_text(encoding="utf-8").rstrip(), ""] if path.is_file() else []


def _nothing(plan: Plan, kept: KeptUnits, name: str) -> str:
    units = [unit for unit in plan.units() if unit.study == name]
    made = [of for unit in units if (of := kept.made(unit)) is not None]
    done = sum(of.code == plan.hashes[name] for of in made)
    return f"**Missing**: {done} of {len(units)} units are made, too few for a table."


def _evidence(section: Section) -> list[str]:
    gathered = section.gathered
    lines = []
    if BEST_SCHEDULE in gathered.results.study.controls:
        lines += ["", _schedule_line(gathered.results.study)]
    for world in gathered.results.study.worlds:
        if world in section.searches:
            lines += ["", *_search_lines(world, section)]
        if gathered.results.controls[world].keys() & set(PLAYABLE):
            lines += ["", *_target_lines(gathered, world)]
    return [*lines, "", _made_line(gathered)]


def _schedule_line(study: Study) -> str:
    """What the best schedule was looked for with."""
    settings = study.search_settings
    each = f"{settings.host_epochs:,} host epochs, {settings.host_epochs / study.training_epochs:.0%} of a training's"
    line = f"The best schedule is that of a search with {each}"
    if settings.searches > 1:
        line = f"The best schedule is the best of those that {settings.searches} searches found, each with {each}"
    known = len(settings.known)
    line += f", and {known} known before" if known else ""
    return f"{line}; by fresh hosts on the validation split."


def _made_line(gathered: Gathered) -> str:
    made: list[Made] = list(gathered.made.values())
    commits = sorted({of.commit or "no checkout" for of in made})
    dates = sorted(of.date for of in made)
    hours = clock(sum(of.seconds for of in made))
    line = (
        f"Made by `make results` ({len(made)} units, {hours} in all), finished between {dates[0]} and {dates[-1]}, "
        f"at commit {', '.join(commits)}, on {'; '.join(sorted({of.processor for of in made}))}; "
        f"hash of code, study and versions {made[0].code[:16]}."
    )
    if gathered.missing:
        line += f" **Missing**: {', '.join(unit.name for unit in gathered.missing)}."
    return line


def _search_lines(world: str, section: Section) -> list[str]:
    hosts = len(section.gathered.pools[world].test_score)
    lines = [
        f"### {world}: what a search on each host ends with",
        "",
        f"The first {hosts} of these hosts, {CANDIDATES} candidates on each. A search may spend, on a host, this many "
        "times what the policy's run there cost, in the mean over trainings: incubation, pruned seeds, evaluations and "
        "counterfactuals included, the policy's own training and arithmetic not. Its pick, by the validation split, is "
        "trained out of that. Mean scores on the test split; in brackets candidates tried.",
    ]
    for arm, verdict in section.searches[world].items():
        lines += [
            "",
            f"{arm}: {_cell(verdict.policy.mean)}. {_multiple(verdict)}",
            "",
            f"| purse | {' | '.join(verdict.found)} | policy minus the best of them |",
            "|---" * (2 + len(verdict.found)) + "|",
        ]
        for place, multiple in enumerate(MULTIPLES):
            cells = (
                f"{_cell(found[place].mean)} ({verdict.tried[kind][place]:.1f}"
                f"{f', {used_up:.0%} used up' if (used_up := verdict.used_up[kind][place]) >= 0.005 else ''})"
                for kind, found in verdict.found.items()
            )
            lead = _cell(verdict.lead[place].mean, "+.3f")
            lines.append(f"| {multiple} × | {' | '.join(cells)} | {lead} |")
        lines += ["", f"![{world}, search]({PICTURES}/{section.gathered.name}/{_search_picture(world, arm)}.png)"]
    return [
        *lines,
        "",
        "Used up: the share of hosts and orders in which all candidates were tried: more may have been paid for. Which "
        "of the three kinds of search is the best at a purse is said by these test scores, in favour of the search.",
    ]


def _multiple(verdict: SearchVerdict) -> str:
    low, high = verdict.multiple
    if high == MULTIPLES[0]:
        return f"A search is above it with every purse from {MULTIPLES[0]} × on."
    if high is None and low >= MULTIPLES[-1]:
        return f"No search reaches it with {MULTIPLES[-1]} ×."
    end = f"beyond {MULTIPLES[-1]} ×" if high is None else f"{high:.1f} ×"
    return f"Purses with which a search cannot be told from it: {low:.1f} × to {end}."


def _search_picture(world: str, arm: str) -> str:
    return f"{world}-{arm}-search"


def _cell(estimate: Estimate, form: str = ".3f") -> str:
    low, high = estimate.interval
    return f"{estimate.value:{form}} [{low:{form}}, {high:{form}}]"


def _gap_lines(gaps: Mapping[str, Mapping[str, Summary]]) -> list[str]:
    """How far specialists are above generalists; a world in a row."""
    worlds = list(dict.fromkeys(world for of_arm in gaps.values() for world in of_arm))
    if not worlds:
        return []
    lines = [
        "### Against one specialist for each world",
        "",
        "The specialist's mean score minus the generalist's, on the same hosts:",
        "",
        f"| world | {' | '.join(gaps)} |",
        "|---" * (1 + len(gaps)) + "|",
    ]
    lines += [f"| {world} | {' | '.join(_cell(of[world].mean, '+.3f') for of in gaps.values())} |" for world in worlds]
    return [*lines, ""]


def _target_lines(gathered: Gathered, world: str) -> list[str]:
    best, by_share = targets(gathered, world)

    def cells(reached: Reaching) -> str:
        if reached.flops is None:
            return "never | – | –"
        return f"{reached.epoch} | {reached.flops / 1e9:.2f} | {reached.seconds:.2f}"

    shares = list(by_share)
    lines = [
        f"### {world}: to a target",
        "",
        f"When the mean validation accuracy over all hosts (and trainings) reaches a share of what the best control, "
        f"{LABELS.get(best, best)}, ends with; what a host had cost by then. Those who know from the start what they "
        "will do (schedules, networks, growing nothing) are not charged for evaluations; in seconds, those of a shared "
        "machine, all are.",
        "",
        f"| policy | {' | '.join(f'{share:.0%}: epoch | GFLOP | seconds' for share in shares)} |",
        "|---" * (1 + 3 * len(shares)) + "|",
    ]
    for policy in by_share[shares[0]]:
        row = " | ".join(cells(by_share[share][policy]) for share in shares)
        lines.append(f"| {LABELS.get(policy, policy)} | {row} |")
    return lines


# ---------------------------------------------------------------------- pictures
def _search_figure(world: str, arm: str, verdict: SearchVerdict) -> Figure:
    """Mean score against the purse: searches as curves, the policy as a point at 1."""
    figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=110)
    axes = figure.subplots()
    for (kind, found), colour in zip(verdict.found.items(), ("#d1495b", "#e09f3e", "#8d99ae"), strict=True):
        ends = [summary.mean.interval for summary in found]
        lows, highs = zip(*ends, strict=True)
        axes.fill_between(MULTIPLES, lows, highs, color=colour, alpha=0.12, lw=0)
        values = [summary.mean.value for summary in found]
        axes.plot(MULTIPLES, values, "o-", color=colour, ms=4, label=f"search: {kind}")
    value, (low, high) = verdict.policy.mean.value, verdict.policy.mean.interval
    axes.errorbar(1, value, yerr=[[value - low], [high - value]], fmt="D", ms=7, capsize=3, color="#1d3557", label=arm)
    axes.axhline(value, color="#1d3557", lw=0.8, ls=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(MULTIPLES, [f"{multiple} ×" for multiple in MULTIPLES])
    axes.set_xlabel("FLOPs in all, in multiples of the policy's run on the same host")
    axes.set_ylabel("mean committed score, test split")
    axes.set_title(f"{world}: what a search on each host ends with", fontsize=11)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
