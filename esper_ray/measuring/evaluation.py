"""Compares the learned policy with the controls: same held-out hosts, test split, intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.grown import GrownSeeds
from esper_ray.errors import UserError
from esper_ray.keeping.revision import git_commit
from esper_ray.keeping.writing import replace_text
from esper_ray.measuring.controls import (
    CONTROLS,
    LEARNED_GREEDY,
    STATIC,
    STATIC_BIG,
    STATIC_FINAL,
    make_policy,
    static_big,
)
from esper_ray.measuring.episodes import EpisodeResults, held_out_seeds, run_episodes
from esper_ray.measuring.statistics import mean_by_kind, summarise_runs
from esper_ray.measuring.trained import Trained
from esper_ray.process import host_processes, settle
from policies.learned import LEARNED
from policies.schedule import GrowthSchedule

IntArray = npt.NDArray[np.int64]

POLICIES = (LEARNED, *CONTROLS, *STATIC)
"""Who plays unless somebody else is asked for."""

MEASURES = ("score", "accuracy", "parameters", "training_flops")
"""What is reported of every episode, and summarised."""


def evaluate(
    trained: Trained,
    episodes: int,
    seed: int,
    workers: int,
    on_done: Callable[[str], None] = lambda name: None,
    *,
    names: Sequence[str] = POLICIES,
    schedule: GrowthSchedule | None = None,
    output: Path | None = None,
) -> dict[str, Any]:
    """Play every policy on the same held-out hosts and write a report.

    Args:
        trained: The learned policy and the world to play in.
        episodes: Hosts.
        seed: Of the held-out hosts.
        workers: Processes to share the policies among.
        on_done: Called with each policy's name when it is through.
        names: Who plays; ``STATIC_FINAL`` needs ``LEARNED`` to do so.
        schedule: Of ``BEST_SCHEDULE``, if that plays.
        output: File to write; by default ``evaluation.json`` beside the policy.

    Raises:
        UserError: no usable weights, a policy that is unknown or lacks what it needs.
    """
    for name in names:  # what is wrong is found before any work is done
        if name not in STATIC:
            make_policy(name, trained, schedule)
    if STATIC_FINAL in names and LEARNED not in names:
        raise UserError(f"{STATIC_FINAL} trains what the learned policy grew: add {LEARNED} to --policies")
    seeds = held_out_seeds(seed, episodes)
    variants = trained.env.make_task().variants
    results = _play_all(trained, seeds, names, schedule, workers, on_done)
    kinds = next(iter(results.values())).variant
    report = {
        "task": trained.env.task,
        "task_args": dict(trained.env.task_args),
        "episodes": episodes,
        "seed": seed,
        "host_seeds": seeds,
        "host_variants": kinds.tolist(),
        "variants": [str(variant) for variant in variants],
        "hosts_by_variant": np.bincount(kinds, minlength=len(variants)).tolist(),
        "split": "test",
        "max_epochs": trained.env.max_epochs,
        "checkpoint": {"which": trained.which, "iteration": trained.iteration},
        "temperature": trained.network.play_temperature,
        "schedule": None if schedule is None else schedule.to_json(),
        "git_commit": git_commit(),
        **_measured({name: results[name] for name in names}, kinds, len(variants)),
    }
    replace_text(output or trained.path / "evaluation.json", json.dumps(report, indent=2) + "\n")
    return report


def _play_all(
    trained: Trained,
    seeds: list[int],
    names: Sequence[str],
    schedule: GrowthSchedule | None,
    workers: int,
    on_done: Callable[[str], None],
) -> dict[str, EpisodeResults]:
    """Everybody's episodes, each policy in one of the processes; ``STATIC_FINAL`` after the learned policy."""
    results: dict[str, EpisodeResults] = {}
    with host_processes(workers) as pool:
        jobs: dict[Future[EpisodeResults], str] = {}

        def start(name: str, grown: GrownSeeds | None = None) -> None:
            jobs[pool.submit(_play, name, trained, seeds, schedule, grown)] = name

        for name in names:
            if name != STATIC_FINAL:
                start(name, static_big(trained.env, len(seeds)) if name == STATIC_BIG else None)
        while jobs:
            for job in wait(jobs, return_when=FIRST_COMPLETED).done:
                name = jobs.pop(job)
                results[name] = job.result()
                on_done(name)
                if name == LEARNED and STATIC_FINAL in names:
                    start(STATIC_FINAL, results[name].grown)
    return results


def _play(
    name: str, trained: Trained, seeds: list[int], schedule: GrowthSchedule | None, grown: GrownSeeds | None
) -> EpisodeResults:
    """One policy's episodes, in a process of its own."""
    settle()
    policy = make_policy("never_grow" if name in STATIC else name, trained, schedule)
    return run_episodes(policy, trained.env, seeds, deterministic=name == LEARNED_GREEDY, grown=grown)


def _measured(results: Mapping[str, EpisodeResults], kinds: IntArray, num_kinds: int) -> dict[str, Any]:
    """What the report says of every policy, and of how far the learned one is ahead of the others."""
    measured = {measure: {name: getattr(each, measure) for name, each in results.items()} for measure in MEASURES}
    summaries = {
        measure: summarise_runs({name: values[None] for name, values in by_policy.items()}, kinds)
        for measure, by_policy in measured.items()
    }
    score = summaries["score"]
    return {
        "policies": {
            name: {
                **{measure: summaries[measure][name].to_json() for measure in MEASURES},
                "fates": {fate: float(counts.mean()) for fate, counts in each.fates.items()},
                "score_by_variant": mean_by_kind(each.score[None], kinds, num_kinds),
                "episodes": {
                    **{measure: by_policy[name].tolist() for measure, by_policy in measured.items()},
                    **{fate: counts.tolist() for fate, counts in each.fates.items()},
                },
            }
            for name, each in results.items()
        },
        "differences": {
            arm: {other: (score[arm] - score[other]).to_json() for other in results if other != arm}
            for arm in results
            if arm == LEARNED
        },
    }
