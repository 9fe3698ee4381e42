"""What the advantages are taken against: V for the op and Q for its arguments, V for all, or Q for all.

Trains the memory task :class:`benchmarks.yardstick_envs.Recall` with each ``critic_baseline`` and several seeds, all
else equal, and gives the returns as shares of the optimum. With ``--world-seeds`` it does the same with a shortened
``make train``, and gives committed validation scores. Run it with::

    python -m benchmarks.critic_baseline --json critic_baseline.json
    python -m benchmarks.critic_baseline --seeds 0 --world-seeds 2 --markdown critic_baseline.md
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import ray
import torch
import tyro
from rich.console import Console
from rich.progress import track

from benchmarks.harness import Report, Table
from benchmarks.quickstart import quickstart, start_ray
from benchmarks.yardstick_envs import Recall
from benchmarks.yardstick_runs import Setup, local_ray, train_and_play
from esper_ray.config import CriticBaseline, LearnerConfig
from esper_ray.presets import QUICKSTART
from policies.network_config import NetworkConfig

EPISODES = 256
MEMORY = Setup(
    make_env=Recall,
    heads=Recall.HEADS,
    steps=46_080,
    envs=64,
    rollout_length=Recall.LENGTH,
    network=NetworkConfig(feature_dim=64, hidden_dim=64, head_dim=64),
    learner=LearnerConfig(lr=2e-3, lr_final=0.0, entropy_coeff=0.04, kl_stop=None),
)
BASELINES: tuple[CriticBaseline, ...] = get_args(CriticBaseline)
LAST = 3
"""Iterations at the end of a run in the world whose mean score counts."""


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
class World:
    """A shortened ``make train``."""

    iterations: int = 12
    """Rollouts and updates of each run."""
    runners: int = QUICKSTART.run.num_env_runners
    """Processes that train hosts; 0 does it in this one."""
    hosts: int = QUICKSTART.run.hosts_per_runner
    """Hosts of each."""
    epochs: int = QUICKSTART.env.longest
    """Steps of an episode."""

    def scores(self, baseline: CriticBaseline, seed: int) -> list[float]:
        """Mean committed validation score of each iteration's episodes."""
        algorithm = quickstart(
            num_env_runners=self.runners,
            hosts_per_runner=self.hosts,
            epochs=self.epochs,
            learner=replace(QUICKSTART.learner, critic_baseline=baseline),
            iterations=self.iterations,
            seed=seed,
        ).build_algo()
        scores = [algorithm.train()["env_runners"]["world"]["score"] for _ in range(self.iterations)]
        algorithm.stop()
        return [float(score) for score in scores]


def world_ablation(world: World, seeds: int, console: Console) -> tuple[dict[str, float], Table]:
    """Mean score of the last iterations by baseline, and the table with the way there and every seed's."""
    runs = [(baseline, seed) for seed in range(seeds) for baseline in BASELINES]
    scores = {run: world.scores(*run) for run in track(runs, description="world", console=console, transient=True)}
    means: dict[str, float] = {}
    rows: list[tuple[str, ...]] = []
    for baseline in BASELINES:
        curves = np.array([scores[baseline, seed] for seed in range(seeds)])
        final = curves[:, -LAST:].mean(axis=1)
        means[baseline] = float(final.mean())
        numbers = (curves[:, 0].mean(), curves[:, world.iterations // 2].mean(), means[baseline], final.std())
        rows.append((baseline, *(f"{number:.3f}" for number in numbers), ", ".join(f"{value:.3f}" for value in final)))
    hosts = max(world.runners, 1) * world.hosts
    title = (
        f"{QUICKSTART.env.task}, {world.iterations} iterations of {hosts} hosts × {world.epochs} epochs: committed "
        "validation score by critic_baseline"
    )
    header = ("baseline", "first", "halfway", f"last {LAST}", "deviation over seeds", "seeds")
    return means, Table(title, header, rows)


@dataclass(frozen=True)
class CriticBaselineAblation:
    """The memory task, and on demand the world, with each critic baseline."""

    world: World
    seeds: int = 5
    """Runs per baseline of the memory task; 0 leaves it out."""
    world_seeds: int = 0
    """Runs per baseline in the world; each takes about three minutes on two cores."""
    json: Path | None = None
    """File for the report."""
    markdown: Path | None = None
    """File for the tables."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        report = Report("critic_baseline")
        if self.seeds:
            with local_ray():
                report.headline["memory_task"], table = ablation(self.seeds)
            report.tables.append(table)
        if self.world_seeds:
            start_ray(max(self.world.runners, 1))
            try:
                report.headline[QUICKSTART.env.task], table = world_ablation(self.world, self.world_seeds, console)
            finally:
                ray.shutdown()
            report.tables.append(table)
        report.publish(console, self.json)
        if self.markdown is not None:
            self.markdown.write_text("\n\n".join(table.markdown() for table in report.tables) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(CriticBaselineAblation).run(Console())
