"""Compares the learned policy with the controls: same held-out hosts, test split, intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esper_ray.errors import UserError
from esper_ray.keeping.revision import git_commit
from esper_ray.keeping.writing import replace_text
from esper_ray.measuring.controls import CONTROLS, STATIC, STATIC_FINAL, make_policy
from esper_ray.measuring.playing import MEASURES, Played, Playing, play_all
from esper_ray.measuring.statistics import mean_by_kind, summarise_runs
from esper_ray.measuring.trained import Trained
from policies.learned import LEARNED
from policies.schedule import GrowthSchedule

PER_SHARE = {"score": 1.0, "accuracy": 100.0}
"""Of the measures that the test samples say: by how much they rise where all predictions are right, and not none."""

POLICIES = (LEARNED, *CONTROLS, *STATIC)
"""Who plays unless somebody else is asked for."""


def check_policies(names: Sequence[str], trained: Trained, schedule: GrowthSchedule | None) -> None:
    """Find what is wrong before any work is done.

    Args:
        names: Who is to play; ``STATIC_FINAL`` needs ``LEARNED`` to do so.
        trained: The learned policy and the world to play in.
        schedule: Of ``BEST_SCHEDULE``, if that plays.

    Raises:
        UserError: no usable weights, a policy that is unknown or lacks what it needs.
    """
    for name in names:
        if name not in STATIC:
            make_policy(name, trained.env, trained, schedule)
    if STATIC_FINAL in names and LEARNED not in names:
        raise UserError(f"{STATIC_FINAL} trains what the learned policy grew: add {LEARNED} to --policies")


def evaluate(
    trained: Trained,
    episodes: int,
    seed: int,
    workers: int,
    on_done: Callable[[str], None],
    *,
    names: Sequence[str],
    schedule: GrowthSchedule | None,
    output: Path,
) -> dict[str, Any]:
    """Play every policy on the same held-out hosts and write a report.

    Args:
        trained: The learned policy and the world to play in.
        episodes: Hosts.
        seed: Of the held-out hosts.
        workers: Processes to share the policies among.
        on_done: Called with each policy's name when it is through.
        names: Who plays, as :func:`check_policies` lets them.
        schedule: Of ``BEST_SCHEDULE``, if that plays.
        output: File to write.

    Raises:
        UserError: the report cannot be written.
    """
    together = tuple(name for name in (LEARNED, STATIC_FINAL) if name in names)
    groups = [together, *((name,) for name in names if name not in together)]
    playings = [Playing(trained.env, group, trained, schedule, episodes, seed) for group in groups if group]
    results: dict[str, Played] = {}
    for playing, played in play_all(playings, workers):
        results |= played
        for name in playing.policies:
            on_done(name)
    report = {
        **summarise(
            playings[0], {name: [results[name]] for name in names}, [name for name in names if name == LEARNED]
        ),
        "host_seeds": playings[0].host_seeds,
        "host_variants": results[names[0]].variants,
        "checkpoint": {"which": trained.which, "iteration": trained.iteration},
        "temperature": trained.network.play_temperature,
        "schedule": None if schedule is None else schedule.to_json(),
        "git_commit": git_commit(),
    }
    for name, policy in report["policies"].items():
        policy["episodes"] = results[name].measures | results[name].fates
    replace_text(output, json.dumps(report, indent=2) + "\n")
    return report


def summarise(
    playing: Playing,
    played: Mapping[str, Sequence[Played]],
    arms: Sequence[str],
    origins: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a report says of a world, of every policy there, and of how far the learned ones are ahead of the others.

    Args:
        playing: Any of those in the world.
        played: By policy, its episodes with each of K training seeds; one of K = 1 for a control.
        arms: The learned policies.
        origins: As for :func:`esper_ray.measuring.statistics.summarise_runs`.
    """
    env, variants = playing.env, playing.env.make_task().variants
    kinds = next(iter(played.values()))[0].variants
    measured = {
        measure: {name: np.array([run.measures[measure] for run in runs]) for name, runs in played.items()}
        for measure in MEASURES
    }
    shares = {name: np.array([run.shares for run in runs], np.float32) for name, runs in played.items()}
    summaries = {
        measure: summarise_runs(
            values,
            kinds,
            origins=origins,
            per_sample={name: scale * share for name, share in shares.items()} if scale else None,
        )
        for measure, values in measured.items()
        for scale in [PER_SHARE.get(measure)]
    }
    score = summaries["score"]
    return {
        "task": env.task,
        "task_args": dict(env.task_args),
        "max_epochs": env.longest,
        "episodes": playing.episodes,
        "seed": playing.evaluation_seed,
        "split": "test",
        "variants": [str(variant) for variant in variants],
        "hosts_by_variant": np.bincount(kinds, minlength=len(variants)).tolist(),
        "policies": {
            name: {
                **{measure: summaries[measure][name].to_json() for measure in MEASURES},
                "fates": {fate: float(np.mean([run.fates[fate] for run in runs])) for fate in runs[0].fates},
                "score_by_variant": mean_by_kind(measured["score"][name], kinds, len(variants)),
            }
            for name, runs in played.items()
        },
        "differences": {
            arm: {other: (score[arm] - score[other]).to_json() for other in played if other != arm} for arm in arms
        },
    }
