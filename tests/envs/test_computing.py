"""Hosts compute alike whatever the process around them has set, and leave it as it was."""

import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch

import envs  # noqa: F401 - registers the environment
from envs.computing import host_computation
from tests.envs.helpers import WAIT, everyone, tiny_env

LEAST = 5e-324

SETTINGS = """
import sys
import torch
torch.set_flush_denormal(True)
from envs.computing import host_computation  # compiled where denormal numbers are 0
torch.set_flush_denormal(False)
torch.set_num_threads(3)
least = sys.float_info.min
with host_computation(2):
    inside = torch.get_num_threads(), least / 2 == 0.0
print(*inside, torch.get_num_threads(), least / 2 == 0.0)
"""

DECAYED = """
import torch
from esper_ray.process import settle
from envs.computing import host_computation
settle({threads})
torch.ones(4096, 4096).exp()  # torch's threads are there
momentum = torch.full((64, 4096), 1e-37)
with host_computation({threads}):
    for _ in range(40):
        momentum.mul_(0.9)
print(int(((momentum != 0) & (momentum < 1.17e-38)).sum()))
"""

FORKED = """
import gymnasium
import torch
import envs
torch.set_num_threads(2)
torch.randn(512, 512) @ torch.randn(512, 512)  # torch's threads are there now
env = gymnasium.make_vec(
    "esper/Morphogenesis-v0",
    num_envs=2,
    vectorization_mode="async",
    task="digits_impaired",
    max_epochs=2,
    num_threads=2,
)
env.reset(seed=0)
for _ in range(3):
    env.step(env.action_space.sample() * 0)
env.close()
print("done")
"""


def run(code):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)


def test_threads_and_denormals_are_set_for_hosts_alone():
    assert run(SETTINGS).stdout.split() == ["2", "True", "3", "False"]


@pytest.mark.parametrize("threads", [1, 2])
def test_in_our_own_processes_no_thread_computes_with_denormals(threads):
    assert run(DECAYED.format(threads=threads)).stdout.split() == ["0"]


def test_they_are_put_back_after_an_error():
    threads = torch.get_num_threads()
    with pytest.raises(KeyError), host_computation(threads + 1):
        raise KeyError
    assert torch.get_num_threads() == threads
    assert LEAST * np.float64(1.0) > 0.0


def test_a_host_trains_on_as_many_threads_as_its_env_says(monkeypatch):
    seen = set()
    env = tiny_env(1, num_threads=2)
    train = env.population.train_epoch
    monkeypatch.setattr(
        env.population, "train_epoch", lambda *given: seen.add(torch.get_num_threads()) or train(*given)
    )
    env.reset(seed=0)
    env.step(everyone(env, WAIT))
    assert seen == {2}
    assert torch.get_num_threads() == 1
    with pytest.raises(ValueError, match="num_threads must be at least 1, got 0"):
        tiny_env(1, num_threads=0)


def test_an_env_that_gymnasium_forks_off_steps_although_torch_had_threads():
    result = run(FORKED)
    assert result.stdout.split() == ["done"]
    assert "torch's threads do not survive that: one thread instead of 2" in result.stderr


def test_a_reset_that_is_refused_leaves_an_ended_episode_ended():
    env = gymnasium.make("esper/Morphogenesis-v0", task="digits", max_epochs=1, disable_env_checker=True)
    env.reset(seed=0)
    env.step(WAIT)
    with pytest.raises(ValueError, match="reset knows the options"):
        env.reset(options={"other": 1})
    with pytest.raises(gymnasium.error.ResetNeeded, match="the episode is over"):
        env.step(WAIT)


def test_an_action_that_is_no_index_is_refused_and_not_rounded():
    env = gymnasium.make("esper/Morphogenesis-v0", task="digits", max_epochs=2, disable_env_checker=True)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"must be whole numbers, got float64: \[0.9, 0.0"):
        env.step(np.array([0.9, *[0.0] * 7]))
