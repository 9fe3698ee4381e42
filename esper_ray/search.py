"""The best fixed schedule: the control that knows as much about a task as training can find without looking at a host.

Brackets of successive halving (Jamieson and Talwalkar 2016; Li et al. 2018): many schedules on few hosts, the better
part of them on more. The first bracket draws at random; later ones also vary the best schedules so far, as in
evolutionary search. All schedules of a rung meet the same hosts, so that a lucky host favours none; the finalists
meet fresh ones. Scores are committed scores on the validation split.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.blueprints import blueprints_for
from envs.morphogenesis import host_variant
from envs.tasks import Task
from envs.vocabulary import AlphaTarget, Blueprint, GerminationStyle, Tempo
from esper_ray.config import EnvConfig
from esper_ray.episodes import run_episodes, search_seeds
from esper_ray.errors import UserError
from esper_ray.process import settle
from esper_ray.revision import git_commit
from esper_ray.run_directory import RunDirectory, replace_text
from policies.schedule import BY_HAND, GrowthPlan, GrowthSchedule
from policies.scripted import FixedSchedule

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
VARIED_SHARE = 0.75
"""Of a later bracket's schedules: variations of the best so far. The rest is drawn at random."""

ATTEMPTS = 20
"""At a schedule that has not been tried, before one is tried again."""

SHORTEST_GROWTH = 12
"""Epochs from a germination to its fossilisation, at the least."""

SEEDS_AT_A_TIME = 256

FINAL = "final"
"""Name of the last rung."""

MAX_POPULATION = 128
"""Hosts trained at once: more are hardly faster."""


@dataclass(frozen=True)
class SearchSettings:
    """What a search may do.

    Attributes:
        host_epochs: Training epochs of hosts that it may spend in all.
        seed: Of the schedules drawn and of the hosts.
        workers: Processes that train hosts; the result does not depend on it.
        start: Schedules that take part in the first bracket, beside the random ones.
    """

    host_epochs: int
    seed: int = 0
    workers: int = 1
    start: tuple[GrowthSchedule, ...] = (GrowthSchedule(), BY_HAND)


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
    plan = Brackets.of(settings.host_epochs // env.max_epochs, len(task.variants))
    planned = plan.episodes * env.max_epochs
    rng = np.random.default_rng(settings.seed)
    space = ScheduleSpace.of(task, env.max_epochs)
    hosts = _balanced_seeds(task, settings.seed)
    rungs: list[Rung] = []
    spent = 0

    def measure(name: str, schedules: Sequence[GrowthSchedule], num_hosts: int) -> Rung:
        nonlocal spent
        seeds = tuple(next(hosts) for _ in range(num_hosts))
        before = known[len(rungs)] if len(rungs) < len(known) else None
        if before is not None and (before.schedules, before.seeds) == (tuple(schedules), seeds):
            scores = [before.scores.ravel()]
            spent += before.scores.size * env.max_epochs
        else:
            scores = []
            for part in play(pool, env, [(schedule, seed) for schedule in schedules for seed in seeds]):
                scores.append(part)
                spent += len(part) * env.max_epochs
                on_progress(name, spent, planned)
        rungs.append(Rung(name, tuple(schedules), seeds, np.concatenate(scores).reshape(len(schedules), num_hosts)))
        on_rung(rungs)
        return rungs[-1]

    with ProcessPoolExecutor(settings.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for bracket in range(BRACKETS):
            start = settings.start if bracket == 0 else ()
            field = _candidates(space, plan.candidates[0], start, _elites(rungs), rungs, rng)
            for rung, (count, num_hosts) in enumerate(zip(plan.candidates, plan.hosts, strict=True)):
                field = measure(f"bracket {bracket + 1}, rung {rung + 1}", field[:count], num_hosts).ranked()
        measure(FINAL, _elites(rungs)[: plan.finalists], plan.final_hosts)
    return SearchResult(tuple(rungs), spent)


def play(
    pool: Executor, env: EnvConfig, episodes: Sequence[tuple[GrowthSchedule, int]]
) -> Iterator[npt.NDArray[np.float64]]:
    """Committed validation scores of (schedule, host seed) pairs, in order, one array per population."""
    parts = -(-len(episodes) // MAX_POPULATION)
    chunks = [[episodes[i] for i in index] for index in np.array_split(np.arange(len(episodes)), parts)]
    yield from pool.map(partial(_play, env), chunks)


def _play(env: EnvConfig, episodes: Sequence[tuple[GrowthSchedule, int]]) -> FloatArray:
    settle()
    schedules, seeds = zip(*episodes, strict=True)
    policy = FixedSchedule(env.make_task().slots, env.max_epochs, schedules)
    return run_episodes(policy, env, list(seeds), split="validation").score


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


@dataclass(frozen=True)
class ScheduleSpace:
    """Everything that a schedule of a task can be.

    Attributes:
        slots: Indices of the enabled slots.
        blueprints: Kinds that the hosts offer.
        last_epoch: In which a germination can still lead to a committed seed.
        longest_training: Epochs in TRAINING.
    """

    slots: tuple[int, ...]
    blueprints: tuple[Blueprint, ...]
    last_epoch: int
    longest_training: int

    @classmethod
    def of(cls, task: Task, max_epochs: int) -> ScheduleSpace:
        """For a task's hosts."""
        slots = tuple(slot for slot, enabled in enumerate(task.slots.enabled_mask) if enabled)
        blueprints = tuple(blueprints_for(task.host.topology, task.slots.blueprints))
        return cls(slots, blueprints, max(0, max_epochs - SHORTEST_GROWTH), max_epochs // 3)

    def drawn(self, rng: np.random.Generator) -> GrowthSchedule:
        """Seeds of random kinds in random slots, at random times of which early ones are likelier."""
        count = int(rng.integers(1, len(self.slots) + 1))
        slots = rng.choice(self.slots, count, replace=False)
        return GrowthSchedule(tuple(self._plan(int(slot), rng) for slot in slots))

    def varied(self, elites: Sequence[GrowthSchedule], rng: np.random.Generator) -> GrowthSchedule:
        """One of the better schedules with one change or a few: of a plan, its absence, or another one's plan."""
        chosen = elites[int(rng.integers(len(elites), size=2).min())]  # better ones are likelier
        plans = {plan.slot: plan for plan in chosen.plans}
        for _ in range(int(rng.geometric(0.6))):
            free = [slot for slot in self.slots if slot not in plans]
            kind = rng.choice(["change", "add", "drop", "cross"], p=[0.6, 0.15, 0.1, 0.15])
            if kind == "cross":
                other = elites[int(rng.integers(len(elites)))]
                plans |= {plan.slot: plan for plan in other.plans if rng.random() < 0.5}
            elif plans and kind == "drop":
                del plans[int(rng.choice(list(plans)))]
            elif plans and kind == "change":
                plan = plans.pop(int(rng.choice(list(plans))))
                changed = self._changed(plan, free, rng)
                plans[changed.slot] = changed
            elif free:
                slot = int(rng.choice(free))
                plans[slot] = self._plan(slot, rng)
        return GrowthSchedule(tuple(plans.values()))

    def _plan(self, slot: int, rng: np.random.Generator) -> GrowthPlan:
        return GrowthPlan(
            slot,
            self.blueprints[int(rng.integers(len(self.blueprints)))],
            epoch=int((self.last_epoch + 1) * rng.random() ** 2),
            style=GerminationStyle(int(rng.integers(len(GerminationStyle)))),
            tempo=Tempo(int(rng.integers(len(Tempo)))),
            alpha_target=AlphaTarget(int(rng.integers(len(AlphaTarget)))),
            training_epochs=int(rng.integers(self.longest_training + 1)) if rng.random() < 0.5 else 0,
        )

    def _changed(self, plan: GrowthPlan, free: Sequence[int], rng: np.random.Generator) -> GrowthPlan:
        """The plan with one field drawn anew; times mostly move a little."""
        name = rng.choice([field.name for field in fields(GrowthPlan)])
        if name == "slot":
            return replace(plan, slot=int(rng.choice([plan.slot, *free])))
        limit = {"epoch": self.last_epoch, "training_epochs": self.longest_training}.get(name)
        if limit is not None and rng.random() < 0.7:
            moved = getattr(plan, name) + int(rng.choice([-1, 1]) * rng.geometric(0.25))
            return replace(plan, **{name: min(max(moved, 0), limit)})
        return replace(plan, **{name: getattr(self._plan(plan.slot, rng), name)})


# ---------------------------------------------------------------------- files
def trained_host_epochs(run: RunDirectory) -> int:
    """Host epochs that a run's training has had so far."""
    config = run.config()
    iterations = run.checkpoint("latest")[0].iteration
    return iterations * max(1, config.run.num_env_runners) * config.run.hosts_per_runner * config.env.max_epochs


def trace_path(path: Path) -> Path:
    """Where the trace of a schedule's search lies."""
    return path.with_name(f"{path.stem}-trace.json")


def write_trace(path: Path, env: EnvConfig, settings: SearchSettings, rungs: Sequence[Rung]) -> None:
    """Everything that was tried so far."""
    trace = {
        "search": _identity(env, settings),
        "git_commit": git_commit(),
        "rungs": [
            {
                "name": rung.name,
                "host_seeds": list(rung.seeds),
                "schedules": [schedule.to_json() for schedule in rung.schedules],
                "scores": rung.scores.tolist(),
            }
            for rung in rungs
        ],
    }
    replace_text(trace_path(path), json.dumps(trace) + "\n")


def read_trace(path: Path, env: EnvConfig, settings: SearchSettings) -> list[Rung]:
    """What an interrupted search of the same world with the same settings has measured; nothing if there is none."""
    try:
        trace = json.loads(trace_path(path).read_text())
        if trace["search"] != _identity(env, settings):
            return []
        return [
            Rung(
                rung["name"],
                tuple(GrowthSchedule.from_json(entries) for entries in rung["schedules"]),
                tuple(rung["host_seeds"]),
                np.array(rung["scores"]),
            )
            for rung in trace["rungs"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _identity(env: EnvConfig, settings: SearchSettings) -> dict[str, Any]:
    """What a search's course depends on, as JSON reads it back."""
    start = [schedule.to_json() for schedule in settings.start]
    identity = {"env": asdict(env), "host_epochs": settings.host_epochs, "seed": settings.seed, "start": start}
    return json.loads(json.dumps(identity, default=str))


def write_schedule(path: Path, env: EnvConfig, settings: SearchSettings, result: SearchResult) -> None:
    """The best schedule, and what is known of it."""
    schedule, scores = result.finalists[0]
    found = {
        "task": env.task,
        "task_args": dict(env.task_args),
        "max_epochs": env.max_epochs,
        "schedule": schedule.to_json(),
        "described": schedule.described(env.make_task().slots.slot_ids),
        "validation_score": float(scores.mean()),
        "validation_hosts": len(scores),
        "host_epochs": result.host_epochs,
        "episodes": result.host_epochs // env.max_epochs,
        "schedules_tried": len({tried for rung in result.rungs for tried in rung.schedules}),
        "seed": settings.seed,
        "git_commit": git_commit(),
    }
    replace_text(path, json.dumps(found, indent=2) + "\n")


def read_schedule(path: Path) -> GrowthSchedule:
    """A schedule that :func:`write_schedule` wrote, or that somebody wrote by hand.

    Raises:
        UserError: no such file, or none of this kind.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, Mapping) or not isinstance(content.get("schedule"), list):
            raise ValueError('it has no list "schedule"')
        return GrowthSchedule.from_json(content["schedule"])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} holds no schedule: {error}; `esper-ray search` writes one") from error
