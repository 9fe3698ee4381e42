"""Whole episodes of a policy outside RLlib: for evaluation and for pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from envs.lifecycle import Fate
from envs.morphogenesis import MorphogenesisVectorEnv
from esper_ray.config import EnvConfig
from policies.bundle import PolicyBundle
from policies.player import Player

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_HELD_OUT = 0x6E1D
"""Spawn key of the held-out stream: no training seed, spread without it, ever leads to these hosts."""


def held_out_seeds(seed: int, episodes: int) -> list[int]:
    """Seeds of hosts that no training run sees, one per episode."""
    return np.random.SeedSequence(seed, spawn_key=(_HELD_OUT,)).generate_state(episodes).tolist()


@dataclass(frozen=True)
class EpisodeResults:
    """Committed networks of E episodes, each array ``[E]``.

    Attributes:
        score: On the test split.
        accuracy: Percent, on the test split.
        parameters: Host and seeds.
        fates: Seeds per fate.
    """

    score: FloatArray
    accuracy: FloatArray
    parameters: FloatArray
    fates: dict[str, FloatArray]


def run_episodes(
    policy: PolicyBundle,
    env: EnvConfig,
    seeds: list[int],
    on_epoch: Callable[[MorphogenesisVectorEnv], None] | None = None,
) -> EpisodeResults:
    """Play one episode per seed, all at once as one population.

    Args:
        policy: Decides; its own randomness is seeded from the first host seed.
        env: The world.
        seeds: One per host.
        on_epoch: Called with the environment at the start and after every epoch.
    """
    world = MorphogenesisVectorEnv(len(seeds), report_test=True, **env.keywords())
    observations, _ = world.reset(seed=seeds)
    player = Player(policy, len(seeds), seeds[0])
    names = {"score": "test_score", "accuracy": "test_accuracy", "parameters": "committed_parameters"}
    names |= {fate.name.lower(): f"seeds_{fate.name.lower()}" for fate in Fate}
    results = {name: np.full(len(seeds), np.nan) for name in names}
    running = np.ones(len(seeds), bool)
    if on_epoch:
        on_epoch(world)
    while running.any():
        observations, _, terminated, _, info = world.step(player.act(observations))
        first_end = terminated & running  # a host that the governor stopped starts anew, which counts for nothing
        for name, key in names.items():
            if first_end.any():
                results[name][first_end] = info[key][first_end]
        running &= ~terminated
        if on_epoch:
            on_epoch(world)
    fates = {fate.name.lower(): results[fate.name.lower()] for fate in Fate}
    return EpisodeResults(results["score"], results["accuracy"], results["parameters"], fates)
