"""Known tasks that the same learner has to solve, at the budgets of others.

* CartPole without velocities: 50,000 steps, return of 500 at most; needs memory. RLlib's own PPO with its LSTM plays
  the same budget for comparison.
* Invalid actions: 70 actions of which 55 are invalid, 2,048 steps, return of 100 at most; needs masks.
* Recall: masks, memory, and an argument that depends on the op, with each ``critic_baseline``.

Run it with::

    python -m benchmarks.yardsticks --json yardsticks.json
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.registry import register_env
from rich.console import Console

from benchmarks.critic_baseline import ablation
from benchmarks.harness import Report, Table
from benchmarks.yardstick_envs import CartPole, InvalidActions, PositionsOnly
from benchmarks.yardstick_runs import Setup, local_ray, train_and_play
from esper_ray.config import LearnerConfig
from policies.network_config import NetworkConfig

EPISODES = 64
"""Evaluation episodes per run, with the most probable actions."""

CART_POLE = Setup(
    make_env=CartPole,
    heads=CartPole.HEADS,
    steps=50_000,
    envs=16,
    rollout_length=64,
    # While one env starts anew, RLlib lets the others play on: some episodes' parts are longer than a rollout.
    sequence_length=72,
    network=NetworkConfig(feature_dim=64, hidden_dim=64, head_dim=64),
    learner=LearnerConfig(lr=1e-3, lr_final=0.0, gamma=0.98, num_epochs=8, kl_stop=None),
)

INVALID_ACTIONS = Setup(
    make_env=InvalidActions,
    heads=InvalidActions.HEADS,
    steps=2_048,
    envs=16,
    rollout_length=64,
    # The state is in view, so there is nothing to remember; the peer's network has no memory either.
    network=NetworkConfig(feature_dim=256, head_dim=256, memory=False),
    # A step's reward depends on this step alone. In two rollouts the critic learns next to nothing of the states, so
    # the mean is the baseline and the critic stays untrained.
    learner=LearnerConfig(
        lr=1e-3,
        gamma=0.0,
        num_epochs=30,
        minibatches=4,
        clip=0.1,
        centre_advantages=True,
        value_loss_coeff=0.0,
        entropy_coeff=0.0,
        kl_stop=None,
    ),
)


def _standardised(env: Any, spaces: Any = None, device: Any = None) -> MeanStdFilter:
    return MeanStdFilter()


def stock_ppo(seed: int) -> tuple[float, float]:
    """RLlib's own PPO with its LSTM on CartPole without velocities: the same steps, envs, rollouts and widths.

    Inputs are standardised by RLlib's filter, and the critic's coefficients are low enough for the policy to learn at
    all; what is not named stays as RLlib has it.

    Returns:
        Mean return of the last ten iterations' episodes, and env steps per second.
    """
    env_id = "benchmarks/positions_only"
    register_env(env_id, lambda config: PositionsOnly(config["num_envs"]))
    setup = CART_POLE
    batch = setup.envs * setup.rollout_length
    config = (
        PPOConfig()
        .environment(env_id)
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=setup.envs,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=setup.rollout_length,
            env_to_module_connector=_standardised,
        )
        .rl_module(
            model_config=DefaultModelConfig(
                use_lstm=True,
                lstm_cell_size=setup.network.hidden_dim,
                fcnet_hiddens=[setup.network.feature_dim],
            )
        )
        .training(
            lr=[[0, setup.learner.lr], [setup.steps, 0.0]],
            gamma=setup.learner.gamma,
            lambda_=setup.learner.gae_lambda,
            num_epochs=setup.learner.num_epochs,
            minibatch_size=batch // setup.learner.minibatches,
            vf_clip_param=float("inf"),
            vf_loss_coeff=0.05,
            train_batch_size_per_learner=batch,
        )
        .debugging(seed=seed, log_level="ERROR")
    )
    algorithm = config.build_algo()
    started, steps, returns = time.perf_counter(), 0, []
    while steps < setup.steps:
        result = algorithm.train()
        steps = result["num_env_steps_sampled_lifetime"]
        # Absent in an iteration in which no episode ended.
        returns.append(result["env_runners"].get("episode_return_mean", np.nan))
    rate = steps / (time.perf_counter() - started)
    algorithm.stop()
    return float(np.nanmean(returns[-10:])), rate


Runs = list[tuple[float, float]]
"""Mean return and env steps per second of each seed."""


def _row(task: str, learner: str, runs: Runs, wanted: str) -> tuple[str, ...]:
    returns, rates = zip(*runs, strict=True)
    each = ", ".join(f"{value:.0f}" for value in returns)
    return (task, learner, f"{np.mean(returns):.0f}", each, f"{np.median(rates):,.0f}", wanted)


@dataclass(frozen=True)
class Yardsticks:
    """Known tasks with the same learner."""

    seeds: int = 5
    """Runs per task."""
    memory_seeds: int = 3
    """Runs per critic baseline on the memory task."""
    stock_seeds: int = 1
    """Runs of RLlib's own PPO, at least 1."""
    json: Path | None = None
    """File for the report."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        with local_ray():
            cart_pole = [train_and_play(CART_POLE, seed, EPISODES, deterministic=True) for seed in range(self.seeds)]
            stock = [stock_ppo(seed) for seed in range(self.stock_seeds)]
            invalid = [
                train_and_play(INVALID_ACTIONS, seed, EPISODES, deterministic=True) for seed in range(self.seeds)
            ]
            memory, memory_table = ablation(self.memory_seeds)
        rows = [
            _row("CartPole without velocities", "esper-ray", cart_pole, "≥ 450 in 4 of 5, ≥ 1,000/s"),
            _row("CartPole without velocities", "RLlib PPO with LSTM", stock, "–"),
            _row("invalid actions, 55 of 70", "esper-ray", invalid, "≥ 90"),
        ]
        header = ("task", "learner", "mean return", "seeds", "steps/s", "wanted")
        headline = {
            "cartpole_returns": [value for value, _ in cart_pole],
            "cartpole_steps_per_s": float(np.median([rate for _, rate in cart_pole])),
            "invalid_action_returns": [value for value, _ in invalid],
            "memory_task": memory,
        }
        notes = [
            f"Returns are means of {EPISODES} episodes after training, with the most probable actions, from starts "
            "that training has not seen; on the memory task actions are drawn, and RLlib's own PPO shows the mean of "
            "its last ten iterations. Steps per second count playing and learning, in one process with one thread.",
            "The policy of the invalid-action task has no LSTM, like the peer's: the state is in view.",
        ]
        Report("yardsticks", headline, [Table("Known tasks", header, rows), memory_table], notes).publish(
            console, self.json
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(Yardsticks).run(Console())
