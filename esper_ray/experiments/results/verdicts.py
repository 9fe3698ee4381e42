"""What the results say, in numbers: who is above whom, what a search would have to spend, when a target is reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from esper_ray.experiments.results.gathering import Gathered
from esper_ray.experiments.results.plan import Plan
from esper_ray.measuring.controls import BEST_SCHEDULE, INDEPENDENT
from esper_ray.measuring.playing import Played
from esper_ray.measuring.search.host_pool import HostPool
from esper_ray.measuring.search.purse import MULTIPLES, Found, search_hosts
from esper_ray.measuring.statistics import Summary, summarise_runs

FloatArray = npt.NDArray[np.float64]

TARGETS = (0.90, 0.95)
"""Shares of the best playable control's final accuracy."""


def above_playable(evaluation: dict[str, Any], arm: str) -> bool:
    """Whether an arm's mean score is above that of every control that can be played, with separated intervals.

    Args:
        evaluation: Of a study's report.
        arm: In it.
    """
    policies = evaluation["policies"]
    lowest = policies[arm]["score"]["mean_ci95"][0]
    return all(lowest > policies[name]["score"]["mean_ci95"][1] for name in policies if name in INDEPENDENT)


@dataclass(frozen=True)
class SearchVerdict:
    """What a search on each host ends with, by purse, against a policy.

    Attributes:
        found: With halving and without, M purses each; scores over the hosts.
        lead: ``[M]``, policy minus the better of the two searches, on the same hosts.
        policy: Its score on these hosts.
        tried: ``[M]`` candidates of the search with halving, mean over the hosts.
    """

    found: dict[str, list[Summary]]
    lead: list[Summary]
    policy: Summary
    tried: list[float]

    @property
    def multiple(self) -> tuple[float, float | None]:
        """How many times the policy's compute a search needs to reach its mean score: the ends of a 95 % interval.

        It holds the purses at which the two cannot be told apart. One that is never left within the purses tried has
        no upper end, and a lower one of the largest purse at most.
        """
        ends = [lead.mean.interval for lead in self.lead]
        low = reached([lower for lower, _ in ends])
        return (MULTIPLES[-1] if low is None else low), reached([upper for _, upper in ends])


def reached(lead: Sequence[float]) -> float | None:
    """The smallest purse at which a lead is gone, between purses by their logarithm; None where it never is."""
    if lead[0] <= 0.0:
        return float(MULTIPLES[0])
    for place in range(1, len(lead)):
        before, after = lead[place - 1], lead[place]
        if after <= 0.0:
            share = before / (before - after)
            return float(MULTIPLES[place - 1] * (MULTIPLES[place] / MULTIPLES[place - 1]) ** share)
    return None


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
    searches = {"halving": search_hosts(pool, purse, True), "whole": search_hosts(pool, purse, False)}
    results = {"policy": np.array([run.measures["score"][:hosts] for run in played])}
    shares = {"policy": np.array([run.shares[:hosts] for run in played])}
    predictions = played[0].predictions
    for way, found in searches.items():
        for place in range(len(MULTIPLES)):
            results[f"{way} {place}"] = found.score[place][None]
            shares[f"{way} {place}"] = found.hits[place][None] / predictions
    summaries = summarise_runs(results, played[0].variants[:hosts], per_sample=shares)
    found_by = {way: [summaries[f"{way} {place}"] for place in range(len(MULTIPLES))] for way in searches}
    lead = [
        summaries["policy"] - max(of_purse, key=lambda summary: summary.mean.value)
        for of_purse in zip(*found_by.values(), strict=True)
    ]
    return SearchVerdict(found_by, lead, summaries["policy"], _mean_tried(searches["halving"]))


def _mean_tried(found: Found) -> list[float]:
    return [float(tried.mean()) for tried in found.tried]


@dataclass(frozen=True)
class Reaching:
    """When a policy's hosts reach a target in the mean.

    Attributes:
        epoch: The first one after which they have; None: never.
        flops: Spent per host until then, in training and evaluations.
        seconds: Likewise.
    """

    epoch: int | None
    flops: float | None = None
    seconds: float | None = None


def reaching(played: Sequence[Played], target: float) -> Reaching:
    """When the mean validation accuracy over hosts and trainings reaches a target.

    Args:
        played: Of each training; of a control one.
        target: Percent.
    """
    accuracy = np.mean([run.accuracy.mean(axis=0) for run in played], axis=0)
    there = np.flatnonzero(accuracy >= target)
    if not len(there):
        return Reaching(None)
    epoch = int(there[0])
    flops = float(np.mean([run.training_flops[:, epoch].mean() for run in played]))
    return Reaching(epoch + 1, flops, float(np.mean([run.seconds[epoch] / len(run.variants) for run in played])))


def targets(gathered: Gathered, world: str) -> tuple[str, dict[float, dict[str, Reaching]]]:
    """When everybody reaches the targets in a world.

    Returns:
        The control whose final accuracy the targets are shares of, and by share and policy when it is reached.
    """
    played, _ = gathered.results.in_world(world)
    final = {name: float(played[name][0].accuracy[:, -1].mean()) for name in played if name in INDEPENDENT}
    best = max(final, key=lambda name: final[name])
    return best, {
        share: {name: reaching(runs, share * final[best]) for name, runs in played.items()} for share in TARGETS
    }


def flops_ratio(gathered: Gathered, world: str, arm: str, share: float) -> float | None:
    """FLOPs that an arm's hosts need to a target, over those of the best schedule's; None if one never gets there."""
    _, by_share = targets(gathered, world)
    own, schedule = (by_share[share].get(name, Reaching(None)) for name in (arm, BEST_SCHEDULE))
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
