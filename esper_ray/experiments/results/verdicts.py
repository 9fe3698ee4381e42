"""What the results say, in numbers: who is above whom, what a search would have to spend, when a target is reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from esper_ray.experiments.results.gathering import Gathered
from esper_ray.experiments.results.plan import Plan
from esper_ray.experiments.study.study_results import SHORT_LABELS
from esper_ray.measuring.controls import BEST_SCHEDULE, BLIND, INDEPENDENT, STATIC_FINAL, TRAINING_SCHEDULE
from esper_ray.measuring.playing import Played
from esper_ray.measuring.search.host_pool import HostPool
from esper_ray.measuring.search.purse import MULTIPLES, SEARCHES, search_hosts
from esper_ray.measuring.statistics import Summary, summarise_runs

FloatArray = npt.NDArray[np.float64]

TARGETS = (0.90, 0.95)
"""Shares of the best playable control's final accuracy."""


PLAYABLE = tuple(control for control in INDEPENDENT if control != TRAINING_SCHEDULE)
"""Controls that somebody could use in any world in place of the policy."""


@dataclass(frozen=True)
class AbovePlayable:
    """Whether an arm is above every control that can be played, by mean scores.

    Attributes:
        paired: By the intervals of the differences: everybody plays the same hosts and is tested on the same samples.
        apart: By those of the scores themselves, which also hold what hosts and samples do to all alike.
    """

    paired: bool
    apart: bool


def above_playable(evaluation: dict[str, Any], arm: str, trainings: int) -> AbovePlayable | None:
    """Hold an arm against every control that can be played.

    Args:
        evaluation: Of a study's report.
        arm: In it.
        trainings: Of the arm.

    Returns:
        None where it cannot be said: a control did not play, or there are less than two trainings.
    """
    policies, differences = evaluation["policies"], evaluation["differences"][arm]
    if trainings < 2 or not set(PLAYABLE) <= policies.keys():
        return None
    controls = [name for name in policies if name in INDEPENDENT]
    lowest = policies[arm]["score"]["mean_ci95"][0]
    return AbovePlayable(
        paired=all(differences[name]["mean_ci95"][0] > 0.0 for name in controls),
        apart=all(lowest > policies[name]["score"]["mean_ci95"][1] for name in controls),
    )


@dataclass(frozen=True)
class SearchVerdict:
    """What a search on each host ends with, by purse, against a policy.

    Attributes:
        found: By kind of search, M purses each; scores over the hosts.
        lead: ``[M]``, policy minus the best of the searches, on the same hosts.
        policy: Its score on these hosts.
        tried: By kind of search ``[M]`` candidates, mean over the hosts.
        used_up: Likewise the share of hosts and orders in which there were no more candidates to try.
    """

    found: dict[str, list[Summary]]
    lead: list[Summary]
    policy: Summary
    tried: dict[str, list[float]]
    used_up: dict[str, list[float]]

    @property
    def multiple(self) -> tuple[float, float | None]:
        """How many times the policy's compute a search needs to reach its mean score: the ends of a 95 % interval.

        The interval holds the purses at which the two cannot be told apart, from the first at which the policy is no
        longer above the search to the last at which it is not yet below. What is reached at the smallest purse that was
        tried, or before it, counts as that; what the largest does not reach counts as that or more, without an upper
        end.
        """
        ends = [lead.mean.interval for lead in self.lead]
        if not np.isfinite(ends).all():
            raise ValueError(f"leads must be numbers, got {ends}")
        low = crossing([lower for lower, _ in ends])
        high = last_crossing([upper for _, upper in ends])
        return (MULTIPLES[-1] if low is None else low), high


def crossing(lead: Sequence[float]) -> float | None:
    """The smallest purse at which a lead is gone, between purses by their logarithm; None where it never is."""
    gone = [place for place, value in enumerate(lead) if value <= 0.0]
    return _between(lead, gone[0]) if gone else None


def last_crossing(lead: Sequence[float]) -> float | None:
    """The smallest purse from which on a lead stays gone; None where the largest still has it."""
    there = [place for place, value in enumerate(lead) if value > 0.0]
    if there and there[-1] == len(lead) - 1:
        return None
    return _between(lead, there[-1] + 1 if there else 0)


def _between(lead: Sequence[float], place: int) -> float:
    """Where between a purse and the one before it a lead vanishes."""
    if place == 0:
        return float(MULTIPLES[0])
    before, after = lead[place - 1], lead[place]
    share = before / (before - after)
    return float(MULTIPLES[place - 1] * (MULTIPLES[place] / MULTIPLES[place - 1]) ** share)


def search_verdict(pool: HostPool, played: Sequence[Played]) -> SearchVerdict:
    """Hold searches against a policy's runs on the same hosts.

    Args:
        pool: Of the first E of the hosts.
        played: The policy's episodes, of each of its K trainings. A purse is a multiple of what they cost on a host, in
            the mean over the trainings.
    """
    hosts = len(pool.test_score)
    cost = np.mean([run.measures["training_flops"][:hosts] for run in played], axis=0)
    purse = np.array(MULTIPLES)[:, None] * cost
    searches = {kind: search_hosts(pool, purse, first_rung) for kind, first_rung in SEARCHES.items()}
    results = {"policy": np.array([run.measures["score"][:hosts] for run in played])}
    shares = {"policy": np.array([run.shares[:hosts] for run in played])}
    predictions = played[0].predictions
    for kind, found in searches.items():
        for place in range(len(MULTIPLES)):
            results[f"{kind} {place}"] = found.score[place][None]
            shares[f"{kind} {place}"] = found.hits[place][None] / predictions
    summaries = summarise_runs(results, played[0].variants[:hosts], per_sample=shares)
    by_kind = {kind: [summaries[f"{kind} {place}"] for place in range(len(MULTIPLES))] for kind in searches}
    lead = [
        summaries["policy"] - max(of_purse, key=lambda summary: summary.mean.value)
        for of_purse in zip(*by_kind.values(), strict=True)
    ]
    return SearchVerdict(
        by_kind,
        lead,
        summaries["policy"],
        {kind: found.tried.mean(axis=1).tolist() for kind, found in searches.items()},
        {kind: found.used_up.mean(axis=1).tolist() for kind, found in searches.items()},
    )


@dataclass(frozen=True)
class Reaching:
    """When a policy's hosts reach a target in the mean.

    Attributes:
        epoch: The first one after which they have; None: never.
        flops: Spent per host until then, in training and, by those who look, in evaluations.
        seconds: Likewise, but with everybody's evaluations.
    """

    epoch: int | None
    flops: float | None = None
    seconds: float | None = None


def reaching(played: Sequence[Played], target: float, looks: bool = True) -> Reaching:
    """When the mean validation accuracy over hosts and trainings reaches a target.

    Args:
        played: Of each training; of a control one.
        target: Percent.
        looks: Whether the policy needs evaluations; who does not is not charged for them.
    """
    accuracy = np.mean([run.accuracy.mean(axis=0) for run in played], axis=0)
    there = np.flatnonzero(accuracy >= target)
    if not len(there):
        return Reaching(None)
    epoch = int(there[0])
    flops = np.mean([run.training_flops[:, epoch].mean() for run in played])
    if not looks:
        flops -= np.mean([run.evaluation_flops[:, epoch].mean() for run in played])
    return Reaching(epoch + 1, float(flops), float(np.mean([run.seconds[epoch] / len(run.variants) for run in played])))


def targets(gathered: Gathered, world: str) -> tuple[str, dict[float, dict[str, Reaching]]]:
    """When everybody reaches the targets in a world in which some control plays.

    Returns:
        The control whose final accuracy the targets are shares of, and by share and policy when it is reached.
    """
    played, _ = gathered.results.in_world(world)
    final = {name: float(played[name][0].accuracy[:, -1].mean()) for name in played if name in PLAYABLE}
    best = max(final, key=lambda name: final[name])

    def reached(share: float) -> dict[str, Reaching]:
        target = share * final[best]
        return {name: reaching(runs, target, looks=_looks(name)) for name, runs in played.items()}

    return best, {share: reached(share) for share in TARGETS}


def _looks(name: str) -> bool:
    """Whether a policy, by its name in a report, decides by what evaluations say."""
    return name not in BLIND and not name.endswith(f", {SHORT_LABELS[STATIC_FINAL]}")


def flops_ratio(gathered: Gathered, world: str, arm: str, share: float) -> float | None:
    """FLOPs that an arm's hosts need to a target, over those of the best schedule; None if one never gets there."""
    _, by_share = targets(gathered, world)
    own, schedule = (by_share[share][name] for name in (arm, BEST_SCHEDULE))
    return None if own.flops is None or schedule.flops is None else own.flops / schedule.flops


def ahead(one: Sequence[Played], other: Sequence[Played]) -> Summary:
    """By how much one policy's scores are above another's, on the hosts that both have played: those of the fewer.

    Args:
        one: Of each of its trainings.
        other: Likewise.
    """
    hosts = min(len(one[0].variants), len(other[0].variants))
    both = {"one": one, "other": other}
    summaries = summarise_runs(
        {name: np.array([run.measures["score"][:hosts] for run in runs]) for name, runs in both.items()},
        one[0].variants[:hosts],
        per_sample={name: np.array([run.shares[:hosts] for run in runs]) for name, runs in both.items()},
    )
    return summaries["one"] - summaries["other"]


def generalist_gaps(plan: Plan, gathered: Mapping[str, Gathered]) -> dict[str, dict[str, Summary]]:
    """By arm of the generalists' study and world, how far the specialist's score is above theirs.

    Args:
        plan: Says who is who.
        gathered: By study, what is known; worlds whose specialist is not known are left out.
    """
    generalist = plan.generalist
    if generalist is None or generalist.study not in gathered:
        return {}
    found: dict[str, dict[str, Summary]] = {arm: {} for arm in plan.studies[generalist.study].arms}
    for world, name in generalist.specialists.items():
        if name not in gathered:
            continue
        study = plan.studies[name]
        env = plan.studies[generalist.study].worlds[world]
        theirs = next(own for own, of_own in study.worlds.items() if of_own == env)
        (arm,) = study.arms
        specialist = gathered[name].results.in_world(theirs)[0][arm]
        played, _ = gathered[generalist.study].results.in_world(world)
        for one in found:
            found[one][world] = ahead(specialist, played[one])
    return found
