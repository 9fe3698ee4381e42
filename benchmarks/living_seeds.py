"""Populations in the middle of an episode, without playing one."""

from __future__ import annotations

import numpy as np
import torch

from envs.lifecycle import Lifecycle
from envs.limits import LifecycleRules
from envs.population.population import Population
from envs.seeding import HostChance
from envs.tasks import Task
from envs.vocabulary import INTERNAL_KINDS, INTERNAL_MAX_LEVEL, AlphaAlgorithm, SeedStage

LIVING_SHARE = {"alone": 0.0, "mixed seeds": 2.5 / 3}
"""Share of all slots that hold a seed with weights, by what it is called in reports."""

STAGES = (SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED)


def fresh_population(
    task: Task, num_hosts: int, max_epochs: int, device: torch.device, share: float = 0.0, seed: int = 0
) -> tuple[Population, Lifecycle]:
    """Untrained hosts with seeds in some of their slots.

    Blueprints, stages and algorithms occur equally often, in random places; alphas (and internal levels) are drawn
    uniformly.

    Args:
        task: Of a population.
        num_hosts: N.
        max_epochs: Of an episode.
        device: Where hosts live.
        share: Of all slots that hold a seed with weights.
        seed: Of all chance.
    """
    rng = np.random.default_rng(seed)
    chance = HostChance(num_hosts)
    population = Population(task, num_hosts, max_epochs, device, chance)
    everybody = np.arange(num_hosts)
    chance.seed(everybody, seed)
    for state in (chance, population):
        state.start(everybody)
    lifecycle = Lifecycle(num_hosts, task.slots, LifecycleRules(), lambda: population.costs)
    shape = lifecycle.stage.shape
    cells = rng.permutation(lifecycle.stage.size)[: round(share * lifecycle.stage.size)]
    hosts, slots = np.unravel_index(cells, shape)
    lifecycle.blueprint[hosts, slots] = rng.permutation(np.resize([int(b) for b in population.modules], len(cells)))
    lifecycle.stage[hosts, slots] = stage = rng.permutation(np.resize(STAGES, len(cells)))
    lifecycle.algorithm[hosts, slots] = rng.permutation(np.resize(list(AlphaAlgorithm), len(cells)))
    lifecycle.alpha[hosts, slots] = np.where(stage == SeedStage.TRAINING, 0.0, rng.uniform(0.1, 1.0, len(cells)))
    for blueprint, kind in INTERNAL_KINDS.items():
        has_levels = lifecycle.blueprint == blueprint
        lifecycle.internal_level[has_levels] = rng.integers(1, INTERNAL_MAX_LEVEL[kind] + 1, has_levels.sum())
    population.sync(lifecycle)
    return population, lifecycle
