"""A search's files: the schedule that it found, and the trace of everything that it tried."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from esper_ray.config import EnvConfig
from esper_ray.errors import UserError
from esper_ray.keeping.revision import git_commit
from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.keeping.writing import replace_text
from esper_ray.measuring.search.halving import START, Rung, SearchResult, SearchSettings
from esper_ray.reading import read_json
from policies.schedule import GrowthSchedule


def trained_host_epochs(run: RunDirectory) -> int:
    """Host epochs that a run's training has had so far."""
    return run.config().host_epochs(run.iterations_done())


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
    """What an interrupted search has measured; nothing if there was none.

    Raises:
        UserError: the trace is of another world or other settings, or it is damaged.
    """
    file, asked = trace_path(path), _identity(env, settings)
    if not file.is_file():
        return []
    trace = read_json(file)
    try:
        made = trace["search"]
        if differing := [name for name in asked if made.get(name) != asked[name]]:
            raise UserError(
                f"{file} is of a search with another {', '.join(differing)}: give another --output, or remove it"
            )
        return [_rung(entry) for entry in trace["rungs"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no trace of a search: remove it") from error


def _rung(entry: Mapping[str, Any]) -> Rung:
    schedules = tuple(GrowthSchedule.from_json(entries) for entries in entry["schedules"])
    seeds = tuple(entry["host_seeds"])
    return Rung(entry["name"], schedules, seeds, np.array(entry["scores"], float).reshape(len(schedules), len(seeds)))


def _identity(env: EnvConfig, settings: SearchSettings) -> dict[str, Any]:
    """What a search's course depends on, as JSON reads it back."""
    start = [schedule.to_json() for schedule in START]
    world = asdict(env)
    del world["tasks"]  # it is searched in one
    identity = {"env": world, "host_epochs": settings.host_epochs, "seed": settings.seed, "start": start}
    identity |= {"searches": settings.searches, "known": [schedule.to_json() for schedule in settings.known]}
    return json.loads(json.dumps(identity, default=str))


def write_schedule(path: Path, env: EnvConfig, settings: SearchSettings, result: SearchResult) -> None:
    """The best schedule, and what is known of it."""
    schedule, scores = result.finalists[0]
    found = {
        "task": env.task,
        "task_args": dict(env.task_args),
        "max_epochs": env.longest,
        "schedule": schedule.to_json(),
        "described": schedule.described(env.make_task().slots.slot_ids),
        "validation_score": float(scores.mean()),
        "validation_hosts": len(scores),
        "host_epochs": result.host_epochs,
        "episodes": result.host_epochs // env.longest,
        "schedules_tried": len({tried for rung in result.rungs for tried in rung.schedules}),
        "seed": settings.seed,
        "searches": settings.searches,
        "git_commit": git_commit(),
    }
    replace_text(path, json.dumps(found, indent=2) + "\n")


def read_schedule(path: Path) -> GrowthSchedule:
    """A schedule that :func:`write_schedule` wrote, or that somebody wrote by hand.

    Raises:
        UserError: no such file, or none of this kind.
    """
    content = read_json(path)
    try:
        if not isinstance(content, Mapping) or not isinstance(content.get("schedule"), list):
            raise ValueError('it has no list "schedule"')
        return GrowthSchedule.from_json(content["schedule"])
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} holds no schedule: {error}; `esper-ray search` writes one") from error
