"""Runners that fail: the reason reaches the user, nothing is lost, and no step counts twice."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray
import torch
from ray.tune.registry import register_env

from esper_ray.config import LearnerConfig
from esper_ray.errors import UserError
from esper_ray.impala import EsperImpalaConfig
from esper_ray.ppo import EsperPPOConfig
from tests.esper_ray.masked_toy_env import ENV_ID, MaskedToyVectorEnv
from tests.esper_ray.test_impala import config_of
from tests.esper_ray.test_learner import EPISODE

torch.set_num_threads(1)

HOSTS = 4
ITERATIONS = 3


class FailingEnv(MaskedToyVectorEnv):
    """Fails in mid-episode: always, or once if a file is there, which it takes away."""

    def __init__(self, num_envs, once=None, seconds=0.0, **keywords):
        super().__init__(num_envs, **keywords)
        self.once, self.seconds = once, seconds

    def step(self, actions):
        time.sleep(self.seconds)
        if self.epoch.max() == EPISODE // 2 and (self.once is None or Path(self.once).exists()):
            if self.once is not None:
                Path(self.once).unlink()
            raise ValueError("the reactor is cold\nand wet")
        return super().step(actions)


@pytest.fixture(scope="module", autouse=True)
def ray_session():
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def build(algorithm_config, runners, **env):
    config = config_of(algorithm_config, num_env_runners=runners)
    register_env(ENV_ID, lambda env_config: FailingEnv(**env_config))
    config.environment(env_config={"episode_length": EPISODE, **env})
    config.fault_tolerance(delay_between_env_runner_restarts_s=0.1)
    return config.build_algo()


@pytest.mark.parametrize("algorithm_config", [EsperPPOConfig, EsperImpalaConfig])
def test_an_error_that_comes_back_ends_the_run_with_its_message(algorithm_config):
    algorithm = build(algorithm_config, 1)
    with pytest.raises(UserError, match="env runner 1 failed 3 times in a row") as raised:
        [algorithm.train() for _ in range(ITERATIONS)]
    assert "ValueError: the reactor is cold and wet" in str(raised.value)
    algorithm.stop()


def test_an_error_that_does_not_come_back_costs_the_rollout_only(tmp_path):
    accident = tmp_path / "accident"
    algorithm = build(EsperPPOConfig, 1, once=str(accident))
    for iteration in range(1, ITERATIONS + 1):
        accident.touch()
        result = algorithm.train()
        assert result["num_env_steps_sampled_lifetime"] == iteration * HOSTS * EPISODE
    algorithm.stop()


def test_a_runner_killed_in_mid_rollout_costs_no_iteration_and_no_step_counts_twice(tmp_path):
    algorithm = build(EsperPPOConfig, 2, once=str(tmp_path / "never"), seconds=0.05)
    steps = 2 * HOSTS * EPISODE
    for iteration in range(1, ITERATIONS + 1):
        victim = algorithm.env_runner_group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)[0]
        killer = threading.Timer(0.05 * EPISODE / 2, os.kill, (victim, signal.SIGKILL))
        killer.start()
        result = algorithm.train()
        killer.join()
        assert result["training_iteration"] == iteration
        assert result["num_env_steps_sampled_lifetime"] == iteration * steps
        # RLlib counts the extra step of every episode, which holds its last observation, as trained too.
        trained = result["learners"]["default_policy"]["num_module_steps_trained"]
        assert trained == LearnerConfig().num_epochs * 2 * HOSTS * (EPISODE + 1)
    assert result["fault_tolerance"]["num_remote_worker_restarts"] >= 1
    algorithm.stop()
