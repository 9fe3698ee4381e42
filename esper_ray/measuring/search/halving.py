"""Successive halving: many schedules on few hosts, the better part of them on more."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from envs.morphogenesis import host_variant
from envs.seeding import Purpose, seed_sequence
from envs.tasks import Task
from esper_ray.config import EnvConfig
from esper_ray.errors import UserError
from esper_ray.measuring.episodes import search_seeds
from esper_ray.measuring.search.schedule_episodes import play
from esper_ray.measuring.search.space import VARIED_SHARE, ScheduleSpace
from esper_ray.process import host_processes
from policies.schedule import BY_HAND, GrowthSchedule

FloatArray = npt.NDArray[np.float64]

BRACKETS = 4
KEPT_SHARE = 3
"""One of this many schedules goes on to the next rung, on twice as many hosts."""

LARGEST_RUNG = 8
"""Hosts in a bracket's last rung, but for tasks of many kinds of host: those have two rungs at least."""

FINAL_SHARE = 0.25
"""Of the budget, for the finalists' fresh hosts."""

FINALISTS = 8
ELITES = 8

ATTEMPTS = 20
"""At a schedule that has not been tried, before one is tried again."""

SEEDS_AT_A_TIME = 256

START = (GrowthSchedule(), BY_HAND)
"""Schedules that take part in the first bracket, beside the random ones."""

FINAL = "final"
"""Name of the last rung."""

COMPARED_ON = 60
"""Fresh hosts that the winners of several searches meet, and schedules that were known before; about as many where a
task's kinds of host do not divide it."""


@dataclass(frozen=True)
class SearchSettings:
    """What a search may do.

    Attributes:
        host_epochs: Training epochs of hosts that a search may spend in all.
        seed: Of the schedules drawn and of the hosts; further searches count up from it.
        workers: Processes that train hosts; the result does not depend on it.
        searches: How many there are. What one finds is in part luck: of several the best counts, by its score on
            fresh hosts that all winners meet.
        known: Schedules that meet these hosts, too, wherever they come from.
    """

    host_epochs: int
    seed: int = 0
    workers: int = 1
    searches: int = 1
    known: tuple[GrowthSchedule, ...] = ()

    @property
    def compares(self) -> bool:
        """Whether anything is compared after the searches."""
        return self.searches > 1 or bool(self.known)


@dataclass(frozen=True)
class Rung:
    """Schedules that met the same hosts.

    Attributes:
        name: For the trace.
        schedules: C of them.
        seeds: H host seeds.
        scores: ``[C, H]`` committed validation scores.
    """

    name: str
    schedules: tuple[GrowthSchedule, ...]
    seeds: tuple[int, ...]
    scores: FloatArray

    def ranked(self) -> list[GrowthSchedule]:
        """From the highest mean score to the lowest; among equals the earlier."""
        return [self.schedules[i] for i in np.argsort(-self.scores.mean(axis=1), kind="stable")]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        rungs: Everything that was tried, in order; the last one is the finalists'.
        host_epochs: Spent.
    """

    rungs: tuple[Rung, ...]
    host_epochs: int

    @property
    def finalists(self) -> list[tuple[GrowthSchedule, FloatArray]]:
        """The last rung, best first, with the scores ``[H]`` of each."""
        last = self.rungs[-1]
        return [(schedule, last.scores[last.schedules.index(schedule)]) for schedule in last.ranked()]

    @property
    def best(self) -> GrowthSchedule:
        """The finalist with the highest mean."""
        return self.rungs[-1].ranked()[0]


@dataclass(frozen=True)
class Brackets:
    """How a budget of episodes is spent.

    Attributes:
        hosts: Of each rung of a bracket.
        candidates: Schedules of each rung of a bracket.
        finalists: Schedules of the last rung of all.
        final_hosts: Its hosts.
    """

    hosts: tuple[int, ...]
    candidates: tuple[int, ...]
    finalists: int
    final_hosts: int

    @classmethod
    def of(cls, episodes: int, variants: int) -> Brackets:
        """Spend at most ``episodes``, hosts in multiples of the ``variants`` that a task draws from.

        Raises:
            UserError: too few episodes to compare anything.
        """
        rungs = max(2, (LARGEST_RUNG // variants).bit_length())
        hosts = tuple(variants * 2**rung for rung in range(rungs))
        shrinking = [KEPT_SHARE**rung for rung in range(rungs)]
        in_bracket = episodes * (1.0 - FINAL_SHARE) / BRACKETS
        per_candidate = sum(count / share for count, share in zip(hosts, shrinking, strict=True))
        first = int(in_bracket / per_candidate)
        candidates = tuple(first // share for share in shrinking if first // share >= 1)
        finalists = max(2, min(FINALISTS, first))
        spent = BRACKETS * sum(count * num for count, num in zip(candidates, hosts, strict=False))
        final_hosts = (episodes - spent) // finalists // variants * variants
        if first < 2 or final_hosts < 1:
            raise UserError(
                f"{episodes} episodes are too few to search with ({variants} kinds of host): give more host epochs "
                "(--host-epochs, or search_epochs in a study)"
            )
        return cls(hosts[: len(candidates)], candidates, finalists, final_hosts)

    @property
    def episodes(self) -> int:
        """Of the whole search."""
        bracket = sum(count * hosts for count, hosts in zip(self.candidates, self.hosts, strict=True))
        return BRACKETS * bracket + self.finalists * self.final_hosts


def search_schedule(
    env: EnvConfig,
    settings: SearchSettings,
    on_progress: Callable[[str, int, int], None] = lambda rung, done, planned: None,
    on_rung: Callable[[Sequence[Rung]], None] = lambda rungs: None,
    known: Sequence[Rung] = (),
) -> SearchResult:
    """Search for the best fixed schedule of a task.

    Args:
        env: The world.
        settings: Budget, seed, processes.
        on_progress: Called after every population with the rung's name, the host epochs spent and those planned.
        on_rung: Called after every rung with all of them so far.
        known: Rungs that this search, with the same world and settings, measured before it was interrupted.

    Raises:
        UserError: too small a budget.
    """
    task = env.make_task()
    plan = Brackets.of(settings.host_epochs // env.longest, len(task.variants))
    compared_on = max(1, COMPARED_ON // len(task.variants)) * len(task.variants) if settings.compares else 0
    episodes = plan.episodes * settings.searches + (settings.searches + len(settings.known)) * compared_on
    planned = episodes * env.longest
    rungs: list[Rung] = []
    spent = 0

    def measure(name: str, schedules: Sequence[GrowthSchedule], seeds: tuple[int, ...]) -> Rung:
        nonlocal spent
        before = known[len(rungs)] if len(rungs) < len(known) else None
        if before is not None and (before.schedules, before.seeds) == (tuple(schedules), seeds):
            scores = [before.scores.ravel()]
            spent += before.scores.size * env.longest
        else:
            scores = []
            for part in play(pool, env, [(schedule, seed) for schedule in schedules for seed in seeds]):
                scores.append(part)
                spent += len(part) * env.longest
                on_progress(name, spent, planned)
        rungs.append(Rung(name, tuple(schedules), seeds, np.concatenate(scores).reshape(len(schedules), len(seeds))))
        on_rung(rungs)
        return rungs[-1]

    def search(seed: int, prefix: str) -> GrowthSchedule:
        rng = np.random.default_rng(seed_sequence(Purpose.SEARCH, seed))
        space = ScheduleSpace.of(task, env.longest)
        hosts = _balanced_seeds(task, seed)
        own: list[Rung] = []
        for bracket in range(BRACKETS):
            start = START if bracket == 0 else ()
            field = _candidates(space, plan.candidates[0], start, _elites(own), own, rng)
            for rung, (count, num_hosts) in enumerate(zip(plan.candidates, plan.hosts, strict=True)):
                name = f"{prefix}bracket {bracket + 1}, rung {rung + 1}"
                own.append(measure(name, field[:count], tuple(itertools.islice(hosts, num_hosts))))
                field = own[-1].ranked()
        last = tuple(itertools.islice(hosts, plan.final_hosts))
        return measure(f"{prefix}{FINAL}", _elites(own)[: plan.finalists], last).ranked()[0]

    with host_processes(settings.workers) as pool:
        seeds = range(settings.seed, settings.seed + settings.searches)
        winners = [
            search(seed, f"search {place + 1}, " if settings.compares else "") for place, seed in enumerate(seeds)
        ]
        if settings.compares:
            fresh = itertools.islice(_balanced_seeds(task, seeds.stop), compared_on)
            measure(FINAL, list(dict.fromkeys([*winners, *settings.known])), tuple(fresh))
    return SearchResult(tuple(rungs), spent)


def _balanced_seeds(task: Task, seed: int) -> Iterator[int]:
    """Host seeds without end, in which the task's variants take turns."""
    variants = range(len(task.variants))
    waiting: list[list[int]] = [[] for _ in variants]
    for stream in itertools.count():
        for host in search_seeds(seed, SEEDS_AT_A_TIME, stream):
            waiting[host_variant(task, host)].append(host)
        while all(waiting):
            yield from (waiting[variant].pop(0) for variant in variants)


def _elites(rungs: Sequence[Rung]) -> list[GrowthSchedule]:
    """Every schedule so far, the best first: by its mean over all its hosts, less what that may owe to chance."""
    scores: dict[GrowthSchedule, list[float]] = {}
    for rung in rungs:
        for schedule, row in zip(rung.schedules, rung.scores, strict=True):
            scores.setdefault(schedule, []).extend(row)
    noise = _noise(rungs)
    bound = {schedule: float(np.mean(row)) - noise / np.sqrt(len(row)) for schedule, row in scores.items()}
    return sorted(bound, key=lambda schedule: bound[schedule], reverse=True)


def _noise(rungs: Sequence[Rung]) -> float:
    """Standard deviation of a score that neither its schedule nor its host explains."""
    left = [
        rung.scores - rung.scores.mean(axis=0) - rung.scores.mean(axis=1, keepdims=True) + rung.scores.mean()
        for rung in rungs
        if min(rung.scores.shape) > 1
    ]
    return float(np.sqrt(np.mean(np.concatenate([values.ravel() for values in left]) ** 2))) if left else 0.0


def _candidates(
    space: ScheduleSpace,
    count: int,
    start: Sequence[GrowthSchedule],
    elites: Sequence[GrowthSchedule],
    rungs: Sequence[Rung],
    rng: np.random.Generator,
) -> list[GrowthSchedule]:
    """A bracket's schedules: the given ones, then random and varied ones that nobody has tried, if there are any."""
    chosen = list(dict.fromkeys(start))[:count]
    tried = {schedule for rung in rungs for schedule in rung.schedules} | set(chosen)
    for _ in range(count - len(chosen)):
        vary = bool(elites) and rng.random() < VARIED_SHARE
        for _ in range(ATTEMPTS):
            schedule = space.varied(elites[:ELITES], rng) if vary else space.drawn(rng)
            if schedule not in tried:
                break
        tried.add(schedule)
        chosen.append(schedule)
    return chosen
