"""What the advantages are taken against: V for the op and Q for its arguments, V for all, or Q for all.

Trains the memory task :class:`benchmarks.yardstick_envs.Recall` with each ``critic_baseline`` and several seeds, all
else equal, and gives the returns as shares of the optimum. Run it with::

    python -m benchmarks.critic_baseline --json critic_baseline.json
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import tyro
from rich.console import Console

from benchmarks.harness import Report, Table
from benchmarks.yardstick_envs import Recall
from benchmarks.yardstick_runs import Setup, local_ray, train_and_play
from esper_ray.config import CriticBaseline, LearnerConfig
from policies.network import NetworkConfig

EPISODES = 256
MEMORY = Setup(
    make_env=Recall,
    heads=Recall.HEADS,
    steps=46_080,
    envs=64,
    rollout_length=Recall.LENGTH,
    network=NetworkConfig(feature_dim=64, hidden_dim=64, head_dim=64),
    learner=LearnerConfig(lr=2e-3, entropy_coeff=0.04, kl_stop=None),
)
BASELINES: tuple[CriticBaseline, ...] = get_args(CriticBaseline)


def shares_of_optimum(baseline: CriticBaseline, seeds: int) -> list[float]:
    """Final return over the optimum, one per seed; the policy draws, as it did in training."""
    setup = replace(MEMORY, learner=replace(MEMORY.learner, critic_baseline=baseline))
    returns = [train_and_play(setup, seed, EPISODES, deterministic=False)[0] for seed in range(seeds)]
    return [value / Recall.OPTIMUM for value in returns]


def ablation(seeds: int) -> tuple[dict[str, float], Table]:
    """Mean share of the optimum by baseline, and the table with every seed's."""
    shares = {baseline: shares_of_optimum(baseline, seeds) for baseline in BASELINES}
    means: dict[str, float] = {baseline: float(np.mean(values)) for baseline, values in shares.items()}
    rows: list[tuple[str, ...]] = [
        (baseline, f"{100 * means[baseline]:.1f}", f"{100 * np.std(values):.1f}", _percent(values))
        for baseline, values in shares.items()
    ]
    title = f"Memory task, {MEMORY.steps:,} steps, {EPISODES} episodes: % of the optimum by critic_baseline"
    return means, Table(title, ("baseline", "mean", "deviation over seeds", "seeds"), rows)


def _percent(values: list[float]) -> str:
    return ", ".join(f"{100 * value:.1f}" for value in values)


@dataclass(frozen=True)
class CriticBaselineAblation:
    """The memory task with each critic baseline."""

    seeds: int = 5
    """Runs per baseline."""
    json: Path | None = None
    """File for the report."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        with local_ray():
            means, table = ablation(self.seeds)
        Report("critic_baseline", headline={"memory_task": means}, tables=[table]).publish(console, self.json)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(CriticBaselineAblation).run(Console())
