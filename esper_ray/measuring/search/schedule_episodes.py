"""Episodes of schedules, measured on the validation split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import partial

import numpy as np
import numpy.typing as npt

from esper_ray.config import EnvConfig
from esper_ray.measuring.episodes import run_episodes
from esper_ray.process import settle
from policies.schedule import GrowthSchedule
from policies.scripted import FixedSchedule

FloatArray = npt.NDArray[np.float64]

MAX_POPULATION = 128
"""Hosts trained at once: more are hardly faster."""


def play(pool: Executor, env: EnvConfig, episodes: Sequence[tuple[GrowthSchedule, int]]) -> Iterator[FloatArray]:
    """Committed validation scores of (schedule, host seed) pairs, in order, one array per population."""
    parts = -(-len(episodes) // MAX_POPULATION)
    chunks = [[episodes[i] for i in index] for index in np.array_split(np.arange(len(episodes)), parts)]
    yield from pool.map(partial(_play, env), chunks)


def _play(env: EnvConfig, episodes: Sequence[tuple[GrowthSchedule, int]]) -> FloatArray:
    settle()
    schedules, seeds = zip(*episodes, strict=True)
    policy = FixedSchedule(env.make_task().slots, env.longest, schedules)
    return run_episodes(policy, env, list(seeds), split="validation").score
