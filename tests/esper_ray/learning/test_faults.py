"""Runners that fail: the reason reaches the user, nothing is lost, and no step counts twice."""

import logging
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
from esper_ray.learning.impala import EsperImpalaConfig
from esper_ray.learning.ppo import EsperPPOConfig
from esper_ray.ray_internals import runner_actors
from tests.esper_ray.learning.masked_toy_env import ENV_ID, MaskedToyVectorEnv
from tests.esper_ray.learning.test_impala import config_of
from tests.esper_ray.learning.test_learner import EPISODE

torch.set_num_threads(1)

HOSTS = 4
ITERATIONS = 3


class FailingEnv(MaskedToyVectorEnv):
    """Fails in mid-episode: always, or once if a file is there, which it takes away."""

    def __init__(self, num_envs, once=None, **keywords):
        super().__init__(num_envs, **keywords)
        self.once = once

    def step(self, actions):
        if self.epoch.max() == EPISODE // 2 and (self.once is None or Path(self.once).exists()):
            if self.once is not None:
                Path(self.once).unlink()
            raise ValueError("the reactor is cold\nand wet")
        return super().step(actions)


class MortalEnv(MaskedToyVectorEnv):
    """Its process is killed where a file of ``orders`` says so, which it takes away.

    ``RUNNER-ROLLOUT``: in the middle of that rollout of that runner's process; ``RUNNER-next``: of the next one;
    ``setup``: runner 1, while runner 2 is being made.
    """

    seed_stream = 0

    def __init__(self, num_envs, orders, **keywords):
        super().__init__(num_envs, **keywords)
        self.orders, self.rollout = Path(orders), 1

    def introduce(self, runner):
        self.runner = runner
        if runner == 2 and (self.orders / "setup").exists():
            while not (self.orders / "pid").exists():
                time.sleep(0.1)
            time.sleep(2.0)  # until the driver knows that it lives
            (self.orders / "setup").unlink()
            os.kill(int((self.orders / "pid").read_text()), signal.SIGKILL)
        if runner == 1:
            (self.orders / "new").write_text(str(os.getpid()))
            (self.orders / "new").rename(self.orders / "pid")

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=1000 * seed + self.seed_stream, options=options)

    def step(self, actions):
        if self.epoch.max() == EPISODE // 2:
            for order in (f"{self.runner}-{self.rollout}", f"{self.runner}-next"):
                if (self.orders / order).exists():
                    (self.orders / order).unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
            self.rollout += 1
        return super().step(actions)


@pytest.fixture(scope="module", autouse=True)
def ray_session():
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def build(algorithm_config, runners, env=FailingEnv, **env_config):
    config = config_of(algorithm_config, num_env_runners=runners, fresh_rollouts=env is MortalEnv)
    register_env(ENV_ID, lambda given: env(**given))
    config.environment(env_config={"episode_length": EPISODE, **env_config})
    config.fault_tolerance(delay_between_env_runner_restarts_s=0.1)
    if env is MortalEnv:
        config.callbacks(on_environment_created=introduce)
    return config.build_algo()


def introduce(*, env_runner, **keywords):
    env_runner.env.unwrapped.introduce(env_runner.worker_index)


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


def test_killed_runners_cost_no_iteration_and_no_step_is_missing_or_counts_twice(tmp_path):
    runners, played = 3, []
    algorithm = build(EsperPPOConfig, runners, MortalEnv, orders=str(tmp_path))
    update = algorithm.learner_group.update

    def watched(episodes, **keywords):
        # Before the learner adds a step to each.
        played.append([(len(episode), episode.get_observations(0)["obs"].tobytes()) for episode in episodes])
        return update(episodes=episodes, **keywords)

    algorithm.learner_group.update = watched
    # One dies, then the one that plays for it, too; all at once; none; one that Ray replaces with nobody noticing.
    for iteration, orders in enumerate((["1-1", "2-2"], ["1-next", "2-next", "3-next"], [], []), start=1):
        for order in orders:
            (tmp_path / order).touch()
        if iteration == 4:
            replace_unnoticed(algorithm.env_runner_group, 1)
        result = algorithm.train()
        assert not [order for order in orders if (tmp_path / order).exists()]
        assert result["training_iteration"] == iteration
        assert result["num_env_steps_sampled_lifetime"] == iteration * runners * HOSTS * EPISODE
        assert [length for length, _ in played[-1]] == [EPISODE] * runners * HOSTS
        learnt = result["learners"]["default_policy"]
        # RLlib counts the extra step of every episode, which holds its last observation, as trained too.
        assert learnt["num_module_steps_trained"] == LearnerConfig().num_epochs * runners * HOSTS * (EPISODE + 1)
        assert learnt["replay_error"] < 1e-4  # everyone played with the learner's weights
    begun = [observation for episodes in played for _, observation in episodes]
    assert len(set(begun)) == len(begun)
    assert result["fault_tolerance"]["num_remote_worker_restarts"] >= runners
    algorithm.stop()


def replace_unnoticed(group, index):
    """Kill an idle runner, and return when Ray has made another."""
    actor = runner_actors(group)[index]
    wait_for(actor)  # it may be a new one already, that is still being made
    ray.get(actor.apply.remote(lambda runner: threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()))
    time.sleep(1.0)
    wait_for(actor)


def wait_for(actor):
    deadline = time.monotonic() + 120
    while True:
        try:
            ray.get(actor.ping.remote())
            return
        except ray.exceptions.RayError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_runner_killed_while_the_others_are_made_costs_nothing(tmp_path, caplog):
    # A record of RLlib's holds the error, whose traceback holds the runners: pytest would keep them.
    caplog.set_level(logging.CRITICAL, logger="ray.rllib.utils.actor_manager")
    (tmp_path / "setup").touch()
    algorithm = build(EsperPPOConfig, 2, MortalEnv, orders=str(tmp_path))
    assert not (tmp_path / "setup").exists()
    result = algorithm.train()
    assert result["num_env_steps_sampled_lifetime"] == 2 * HOSTS * EPISODE
    assert result["learners"]["default_policy"]["replay_error"] < 1e-4
    algorithm.stop()
