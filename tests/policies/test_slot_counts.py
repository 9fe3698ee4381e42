"""Hosts with 1, 3, 5 and 10 slots, with and without internal levels: every policy plays them, nothing is refused."""

import numpy as np
import pytest

from envs.hosts.cnn import CnnVariant
from policies.heuristic import PlateauHeuristic
from policies.learned import LearnedPolicy, build_network
from policies.network_config import NetworkConfig
from policies.player import Player
from policies.scripted import FixedSchedule, NeverGrow, RandomValid
from tests.envs.helpers import tiny_env

SMALL = NetworkConfig(feature_dim=16, hidden_dim=12, head_dim=8)
POLICIES = {
    "never_grow": lambda slots: NeverGrow(slots),
    "random_valid": lambda slots: RandomValid(slots),
    "heuristic": lambda slots: PlateauHeuristic(slots, 12),
    "fixed_schedule": lambda slots: FixedSchedule(slots, 12),
    "learned": lambda slots: LearnedPolicy(slots, build_network(slots, SMALL)),
}


@pytest.mark.parametrize("internal_levels", [False, True])
@pytest.mark.parametrize("slots", [1, 3, 5, 10])
def test_every_policy_plays_hosts_with_any_number_of_slots(slots, internal_levels):
    variant = CnnVariant((4,) * slots, (1,) * slots)
    changes = {"internal_levels": internal_levels, "batches": 1}
    settings = {"max_epochs": 12, "min_training_epochs": 1, "embargo_epochs": 1, "counterfactual_interval": 3}
    used = set()
    for make in POLICIES.values():
        env = tiny_env(2, (variant,), changes, **settings)
        obs, _ = env.reset(seed=1)
        player = Player(make(env.task.slots), 2, seed=1)
        for _ in range(12):
            actions = player.act(obs)
            obs, *_, info = env.step(actions)
            assert "refused" not in info
            assert obs in env.observation_space
            used |= set(actions[:, 0].tolist())
    assert used <= set(range(8 if internal_levels else 6))
    assert {0, 1, 5} <= used


def test_ten_active_slots_are_measured_in_one_small_call():
    """Leave-one-out for each; no pairs beyond four active slots."""
    env = tiny_env(2, (CnnVariant((4,) * 10, (1,) * 10),), {"batches": 1}, max_epochs=40, min_training_epochs=1)
    env.reset(seed=0)
    for epoch in range(30):
        actions = np.zeros((2, 8), np.int64)
        if epoch < 10:
            actions[:] = [1, epoch, 4, 0, 0, 2, 0, 0]
        else:
            actions[:, :2] = [5, epoch % 10]
        *_, info = env.step(actions)
        assert "refused" not in info
    assert (env.lifecycle.alpha > 0).all()
    assert not np.isnan(env.measurements.contribution).any()
    assert np.isnan(env.measurements.interaction_sum).all()
