"""The algorithm that ``make train`` runs, without what it writes, for benchmarks through RLlib."""

from __future__ import annotations

import functools
import logging
import warnings
from typing import Any

import ray
from ray.tune.registry import register_env

from envs import ENV_ID
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.tasks import make_task
from esper_ray.config import LearnerConfig
from esper_ray.learning.metrics import EpisodeMetrics
from esper_ray.learning.ppo import EsperPPOConfig
from esper_ray.presets import QUICKSTART
from policies.encoders import BlueprintEncoder


def quickstart(
    *,
    num_env_runners: int = QUICKSTART.run.num_env_runners,
    hosts_per_runner: int = QUICKSTART.run.hosts_per_runner,
    epochs: int = QUICKSTART.env.longest,
    task: str = QUICKSTART.env.task,
    learner: LearnerConfig = QUICKSTART.learner,
    iterations: int = QUICKSTART.run.iterations,
    seed: int = QUICKSTART.run.seed,
    device: str = "cpu",
    gpus_per_learner: float = 0.0,
) -> EsperPPOConfig:
    """The quickstart preset as RLlib's config: same network, same metrics, no TensorBoard and no checkpoints.

    Args:
        num_env_runners: Processes that play; 0 plays in this one.
        hosts_per_runner: Hosts of each.
        epochs: Steps of an episode.
        task: Name of a task that brings its data along.
        learner: Settings of the update.
        iterations: Over which what falls with time falls.
        seed: Of weights, actions, hosts and data order.
        device: Where hosts live.
        gpus_per_learner: Above 0 the learner computes on a GPU.
    """
    for name in ("ray", "ray.rllib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    register_env(ENV_ID, _make_env)
    slots = make_task(task).slots
    config = EsperPPOConfig.of(
        env_id=ENV_ID,
        env_config={"task": task, "max_epochs": epochs, "gamma": learner.gamma, "device": device},
        heads=slots.heads,
        encoder=functools.partial(BlueprintEncoder.from_space, embedding_dim=QUICKSTART.network.embedding_dim),
        rollout_length=epochs,
        fresh_rollouts=True,
        envs_per_runner=hosts_per_runner,
        num_env_runners=num_env_runners,
        network=QUICKSTART.network,
        learner=learner,
        total_steps=iterations * max(num_env_runners, 1) * hosts_per_runner * epochs,
        seed=seed,
    )
    config.callbacks([functools.partial(EpisodeMetrics, slots)])
    config.learners(num_gpus_per_learner=gpus_per_learner)
    return config


def start_ray(num_cpus: int) -> None:
    """Start Ray on this machine, silently, as ``esper-ray train`` does."""
    ray.init(num_cpus=num_cpus, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)


def _make_env(env_config: dict[str, Any]) -> MorphogenesisVectorEnv:
    return MorphogenesisVectorEnv(**env_config)
