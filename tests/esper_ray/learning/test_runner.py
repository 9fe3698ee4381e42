import os
import random
import subprocess
import sys

import numpy as np
import torch
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from esper_ray.learning.runner import HostRunner
from tests.esper_ray.learning.test_learner import config_of

IMPORTED_BY_A_RUNNER = """
import sys
import esper_ray.learning.tensorboard
from tests.esper_ray.learning.test_runner import episodes_of, HostRunner
from envs.tasks import make_task
make_task("digits").splits["train"]
episodes_of(HostRunner)
needless = ("sklearn", "matplotlib", "torch.utils.tensorboard", "torch._inductor")
print(*(name for name in needless if name in sys.modules))
"""


def episodes_of(runner_class, seed=3, worker=1):
    """Rewards and actions of a fresh runner's first episodes, and what the process's generators give after them."""
    runner = runner_class(config=config_of(stop=0.1, seed=seed), worker_index=worker)
    episodes = runner.sample()
    played = [np.concatenate([np.ravel(e.get_rewards()), np.ravel(e.get_actions())]).tolist() for e in episodes]
    return played, (random.random(), float(np.random.random()), float(torch.rand(())))  # noqa: NPY002


def test_seeds_are_those_that_rllib_would_set():
    assert episodes_of(HostRunner) == episodes_of(SingleAgentEnvRunner)


def test_another_seed_or_runner_plays_other_episodes():
    played, generators = episodes_of(HostRunner)
    for other_played, other_generators in (episodes_of(HostRunner, seed=8), episodes_of(HostRunner, worker=2)):
        assert played != other_played
        assert set(generators).isdisjoint(other_generators)


def test_the_runner_knows_its_seed_as_rllibs_does():
    config = config_of(seed=3)
    runner = HostRunner(config=config, worker_index=2)
    assert runner.config.seed == config.seed


def test_a_runner_imports_nothing_that_only_takes_memory():
    script = subprocess.run(
        [sys.executable, "-c", IMPORTED_BY_A_RUNNER], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert script.stdout.split() == []
