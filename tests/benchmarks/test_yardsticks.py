"""The yardsticks' envs are what they say, and the learner takes them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks.critic_baseline import BASELINES, MEMORY, CriticBaselineAblation, World
from benchmarks.yardstick_envs import CartPole, InvalidActions, Recall
from benchmarks.yardstick_runs import local_ray, mean_return, train_and_play
from benchmarks.yardsticks import CART_POLE, INVALID_ACTIONS
from envs.action_masks import split_mask


def test_invalid_actions_never_mask_the_right_one():
    env = InvalidActions(64)
    observations, _ = env.reset(seed=0)
    for _ in range(5):
        mask, state = observations["action_mask"], observations["obs"].argmax(axis=1)
        assert (mask.sum(axis=1) == 15).all()
        assert mask[np.arange(64), state].all()
        observations, reward, *_ = env.step(state[:, None])
        assert (reward == 1).all()
        observations, reward, *_ = env.step((observations["obs"].argmax(axis=1)[:, None] + 1) % 70)
        assert (reward == 0).all()


def recall(choose_op):
    """Plays Recall from memory, with this choice of op from the bit."""
    memory = {}

    def act(observations):
        vector, size = observations["obs"], Recall.SYMBOLS
        step = round(vector[0, -1] * Recall.LENGTH)
        if step < 2:
            memory[step] = vector[:, step * size : (step + 1) * size].argmax(axis=1)
        elif step == 2:
            memory["op"] = choose_op(vector[:, 2 * size : -1].argmax(axis=1))
        rows = np.arange(len(vector))
        actions = np.zeros((len(vector), 2), np.int64)
        if step >= Recall.SHOWN:
            actions[:, 0] = memory["op"]
            actions[:, 1] = np.where(actions[:, 0] == 1, memory[0], memory[1])
            rows = split_mask(observations["action_mask"], Recall.HEADS)["symbol"][
                np.arange(len(vector)), actions[:, 0]
            ]
            assert (rows.sum(axis=1) == Recall.SYMBOLS // 2).all()
            assert rows[np.arange(len(vector)), actions[:, 1]].all()
        return actions

    return act


def test_recall_pays_for_the_op_and_its_argument():
    assert mean_return(Recall(64), recall(lambda bit: bit + 1), seed=0) == Recall.OPTIMUM
    assert mean_return(Recall(64), recall(lambda bit: 2 - bit), seed=0) == 0
    always_first = mean_return(Recall(512), recall(lambda bit: np.ones_like(bit)), seed=0)
    assert always_first == pytest.approx(Recall.OPTIMUM / 2, rel=0.15)


def test_cart_pole_shows_no_velocity():
    env = CartPole(3)
    observations, _ = env.reset(seed=0)
    assert observations["obs"].shape == (3, 2)
    assert observations in env.observation_space
    state = env.env.unwrapped.state
    np.testing.assert_allclose(observations["obs"], state[[0, 2]].T, rtol=1e-6)
    observations, reward, *_ = env.step(np.ones((3, 1), np.int64))
    assert reward.tolist() == [1, 1, 1]


def test_every_yardstick_trains():
    torch.set_num_threads(1)
    with local_ray():
        for setup in (CART_POLE, INVALID_ACTIONS, MEMORY):
            small = replace(setup, steps=1, envs=16, rollout_length=8)
            value, rate = train_and_play(small, seed=0, episodes=2, deterministic=True)
            assert value >= 0
            assert rate > 0


def test_the_ablation_in_the_world_compares_all_baselines_from_the_same_start(tmp_path):
    path = tmp_path / "table.md"
    world = World(iterations=2, runners=0, hosts=4, epochs=4)
    CriticBaselineAblation(world, seeds=0, world_seeds=2, markdown=path).run(Console(quiet=True))
    title, _, *rows = path.read_text().splitlines()
    assert "digits_impaired, 2 iterations of 4 hosts × 4 epochs" in title
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells[2:]] == [*BASELINES]
    assert len({row[1] for row in cells[2:]}) == 1  # before the first update there is no baseline
    assert all(len(row[-1].split(", ")) == 2 for row in cells[2:])
