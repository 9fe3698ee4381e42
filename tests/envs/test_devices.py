"""Hosts live where they are told to: no operation of an episode needs a tensor of another device.

A GPU may still round differently, or lack an operation; what is shown here is that nothing is left behind on the CPU.
"""

import numpy as np
import pytest
import torch

from envs.morphogenesis import MorphogenesisVectorEnv
from tests.devices import GPU
from tests.envs.accelerator import NAME, Accelerator
from tests.envs.helpers import random_valid_actions, torch_alone


def play(task, device):
    """Rewards of some hosts under random valid actions, over the end of an episode."""
    env = MorphogenesisVectorEnv(3, task=task, max_epochs=7, min_training_epochs=1, device=device)
    obs, _ = env.reset(seed=0)
    generator, rewards = np.random.default_rng(0), []
    for step in range(9):
        actions = random_valid_actions(env, obs, generator)
        if step == 6:
            env.watch.snapshots.restore(np.arange(2), env.lifecycle)
            actions = np.zeros_like(actions)  # the masks were those of the hosts before
        obs, reward, *_ = env.step(actions)
        rewards.append(reward)
    return env, np.array(rewards)


@pytest.mark.parametrize("task", ["digits_mixed", "digits_scale", "text"])
def test_an_episode_on_another_device_mixes_no_tensors_and_is_the_same(task):
    with torch_alone():
        _, here = play(task, "cpu")
    with Accelerator():
        env, there = play(task, NAME)
    assert env.population.flat.device.type == NAME
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("task", ["digits_mixed", "digits_scale", "text"])
def test_an_episode_on_a_gpu_is_that_on_the_cpu_up_to_rounding(task, device):
    _, here = play(task, "cpu")
    env, there = play(task, device)
    assert env.population.flat.device.type == device
    # Training magnifies what rounding began. Other hosts or actions differ by 0.02 and more in the first epoch, and by
    # 0.057 to 0.2 at worst.
    np.testing.assert_allclose(here[0], there[0], atol=0.01)
    np.testing.assert_allclose(here, there, atol=0.05)


def test_the_stand_in_refuses_to_mix():
    with Accelerator():
        remote, local = torch.ones(3, device=NAME), torch.ones(3)
        assert (remote + 1).cpu().tolist() == [2, 2, 2]
        for mix in (lambda: remote + local, lambda: torch.cat([remote, local]), lambda: local.mul_(remote)):
            with pytest.raises(RuntimeError, match="both devices"):
                mix()
