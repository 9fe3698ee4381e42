"""Training and playing on the yardsticks' envs: settings in, a network and its returns out."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from gymnasium.vector import VectorEnv
from ray.tune.registry import register_env

from envs.vocabulary import HeadSpec
from esper_ray.config import LearnerConfig
from esper_ray.learning.ppo import EsperPPOConfig
from policies.encoders import FlatEncoder
from policies.network import RecurrentPolicyNetwork
from policies.network_config import NetworkConfig

EVALUATION_SEED = 1_000_000
"""Added to the seed of a training run, so that evaluation starts elsewhere."""

VectorEnvMaker = Callable[[int], VectorEnv[Any, Any, Any]]
Act = Callable[[Any], npt.NDArray[np.int64]]
"""Observations of N envs → their actions."""


@dataclass(frozen=True)
class Setup:
    """How one task is trained.

    Attributes:
        make_env: The number of envs → the task.
        heads: Parts of its action.
        steps: Env steps in all, rounded up to whole rollouts.
        envs: Side by side, in this process.
        rollout_length: Steps of each per iteration.
        sequence_length: Most steps in a row of a minibatch; by default a rollout and one more.
        network: Widths.
        learner: Settings.
    """

    make_env: VectorEnvMaker
    heads: tuple[HeadSpec, ...]
    steps: int
    envs: int
    rollout_length: int
    sequence_length: int | None = None
    network: NetworkConfig = field(default_factory=NetworkConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)


@contextmanager
def local_ray() -> Iterator[None]:
    """Ray for one process, without its messages."""
    warnings.filterwarnings("ignore")
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def train(setup: Setup, seed: int) -> tuple[RecurrentPolicyNetwork, float]:
    """Train anew.

    Returns:
        The network, and env steps per second, playing and learning together.
    """
    env_id = "benchmarks/yardstick"
    register_env(env_id, lambda config: setup.make_env(config["num_envs"]))
    config = EsperPPOConfig.of(
        env_id=env_id,
        env_config={},
        heads=setup.heads,
        encoder=FlatEncoder.from_space,
        rollout_length=setup.rollout_length,
        sequence_length=setup.sequence_length,
        envs_per_runner=setup.envs,
        network=setup.network,
        learner=setup.learner,
        total_steps=setup.steps,
        seed=seed,
    )
    algorithm = config.build_algo()
    started, steps = time.perf_counter(), 0
    while steps < setup.steps:
        steps = algorithm.train()["num_env_steps_sampled_lifetime"]
    rate = steps / (time.perf_counter() - started)
    network = algorithm.get_module().network
    algorithm.stop()
    return network, rate


def acting(network: RecurrentPolicyNetwork, num_envs: int, seed: int, deterministic: bool) -> Act:
    """The network as a function from observations to actions that remembers the episodes; it starts them anew."""
    hidden = network.initial_hidden(num_envs)
    generator = torch.Generator().manual_seed(seed)

    def act(observations: Any) -> npt.NDArray[np.int64]:
        nonlocal hidden
        tensors = {name: torch.from_numpy(leaf) for name, leaf in observations.items()}
        result = network.act(tensors, hidden, generator, deterministic)
        hidden = result.hidden
        return result.actions.numpy()

    return act


def mean_return(env: VectorEnv[Any, Any, Any], act: Act, seed: int) -> float:
    """Mean return of one episode per env, from starts that the training with this seed has not seen."""
    observations, _ = env.reset(seed=EVALUATION_SEED + seed)
    returns: npt.NDArray[np.float64] = np.zeros(env.num_envs)
    running = np.ones(env.num_envs, bool)
    while running.any():
        observations, rewards, terminated, truncated, _ = env.step(act(observations))
        returns += rewards * running
        running &= ~(terminated | truncated)
    return float(returns.mean())


def train_and_play(setup: Setup, seed: int, episodes: int, deterministic: bool) -> tuple[float, float]:
    """Train anew, then play.

    Args:
        setup: Task and settings.
        seed: Of the training run.
        episodes: To play.
        deterministic: Take the most probable entries instead of drawing.

    Returns:
        Mean return, and env steps per second of training.
    """
    network, rate = train(setup, seed)
    return mean_return(setup.make_env(episodes), acting(network, episodes, seed, deterministic), seed), rate
