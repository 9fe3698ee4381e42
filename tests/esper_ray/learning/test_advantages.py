from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper_ray.learning.advantages import (
    MINIMUM_SCALE,
    advantage_means,
    advantage_scale,
    advantage_streams,
    bootstrap_values,
    lambda_returns,
    returns_of_rows,
    scaled_advantages,
)

torch.set_num_threads(1)


def alone(value):
    return value


def literal_returns(rewards, values, terminated, gamma, gae_lambda):
    """The λ-return as a weighted sum of n-step returns, straight from its definition."""
    length = len(rewards)
    values = [*values[:length], 0.0 if terminated else values[length]]
    returns = []
    for start in range(length):
        n_step, total = [], 0.0
        for step in range(start, length):
            total += gamma ** (step - start) * rewards[step]
            n_step.append(total + gamma ** (step + 1 - start) * values[step + 1])
        last = len(n_step) - 1
        weights = [(1 - gae_lambda) * gae_lambda**k for k in range(last)] + [gae_lambda**last]
        returns.append(sum(weight * value for weight, value in zip(weights, n_step, strict=True)))
    return returns


def test_terminated_and_cut_episode_by_hand():
    # γ = 0.5, λ = 0.5, r = (1, 2, 4), V = (8, 4, 2), V after the end 16.
    # Terminated: δ = (1 + 2 − 8, 2 + 1 − 4, 4 − 2) = (−5, −1, 2); A = (−5.125, −0.5, 2); G = (2.875, 3.5, 4).
    # Cut: δ_2 = 4 + 8 − 2 = 10; A = (−4.625, 1.5, 10); G = (3.375, 5.5, 12).
    rewards = torch.tensor([[1.0, 2.0, 4.0]] * 2)
    values = torch.tensor([[8.0, 4.0, 2.0, 16.0]] * 2)
    terminated = torch.tensor([[False, False, True], [False, False, False]])
    real = torch.ones(2, 3, dtype=torch.bool)
    returns = lambda_returns(rewards, values, terminated, real, gamma=0.5, gae_lambda=0.5)
    assert returns.tolist() == [[2.875, 3.5, 4.0], [3.375, 5.5, 12.0]]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=5),
    st.integers(2, 12),
    st.sampled_from([(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)]),
    st.integers(0, 2**31),
)
def test_rows_give_the_returns_of_their_episodes(episodes, row_length, discounts, seed):
    rng = np.random.default_rng(seed)
    rows = {name: [] for name in ("rewards", "values", "terminated", "real", "occupied", "expected")}
    for length, terminated in episodes:
        rewards, values = rng.normal(size=length), rng.normal(size=length + 1)
        columns = {
            "rewards": [*rewards, 0.0],
            "values": values,
            "terminated": [False] * (length - 1) + [terminated, False],
            "real": [True] * length + [False],
            "occupied": [True] * (length + 1),
            "expected": [*literal_returns(rewards, values, terminated, *discounts), 0.0],
        }
        for start in range(0, length + 1, row_length):
            for name, column in columns.items():
                part = np.asarray(column[start : start + row_length])
                rows[name].append(np.pad(part, (0, row_length - len(part))))
    # What stands in padding must not matter.
    tensors = {name: torch.from_numpy(np.stack(parts)) for name, parts in rows.items()}
    tensors["values"][~tensors["occupied"]] = 1e6
    expected = tensors.pop("expected")
    returns = returns_of_rows(**tensors, gamma=discounts[0], gae_lambda=discounts[1])
    torch.testing.assert_close(returns, expected, atol=1e-9, rtol=1e-9)


def test_the_op_baseline_builds_returns_from_the_ops_taken_and_the_mean_after_a_cut_by_hand():
    # γ = 0.5, λ = 0.5, r = (1, 2, 4), Q of the ops taken (8, 4, 2), V = (100, 100, 100); after the end V = 16, and Q of
    # the copied op, which nobody took, 50.
    # Terminated: δ = (1 + 2 − 8, 2 + 1 − 4, 4 − 2) = (−5, −1, 2); A = (−5.125, −0.5, 2); G = (2.875, 3.5, 4).
    # Cut: δ_2 = 4 + 0.5·16 − 2 = 10; A = (−4.625, 1.5, 10); G = (3.375, 5.5, 12).
    value, q_value = torch.tensor([[100.0, 100.0, 100.0, 16.0]]), torch.tensor([[8.0, 4.0, 2.0, 50.0]])
    real = torch.tensor([[True, True, True, False]])
    values = bootstrap_values(value, q_value, real, "op")
    rewards, ends = torch.tensor([[1.0, 2.0, 4.0, 0.0]]), torch.tensor([[False, False, True, False]])
    for terminated, expected in ((ends, [2.875, 3.5, 4.0]), (torch.zeros_like(ends), [3.375, 5.5, 12.0])):
        returns = returns_of_rows(rewards, values, terminated, real, torch.ones_like(real), gamma=0.5, gae_lambda=0.5)
        assert returns.tolist() == [[*expected, 0.0]]
        streams = advantage_streams(returns, value, q_value, "op")[real]
        assert streams.tolist() == [[g - q, g - q] for g, q in zip(expected, (8.0, 4.0, 2.0), strict=True)]
    for baseline in ("factored", "state"):
        assert bootstrap_values(value, q_value, real, baseline) is value


@pytest.mark.parametrize(
    ("baseline", "expected"), [("factored", [3.0, 1.0]), ("state", [3.0, 3.0]), ("op", [1.0, 1.0])]
)
def test_streams_of_each_baseline(baseline, expected):
    streams = advantage_streams(torch.tensor(5.0), torch.tensor(2.0), torch.tensor(4.0), baseline)
    assert streams.tolist() == expected


def test_scale_is_the_deviation_over_counted_steps_with_a_floor():
    advantages = torch.tensor([1.0, 3.0, 5.0, 100.0])
    counted = torch.tensor([True, True, True, False])
    assert advantage_scale(advantages, counted, alone).item() == pytest.approx(np.std([1, 3, 5]))
    assert advantage_scale(torch.ones(4), counted, alone).item() == pytest.approx(MINIMUM_SCALE)
    assert advantage_scale(advantages, torch.zeros(4, dtype=torch.bool), alone) == 1


def test_scale_over_two_learners_is_that_of_both_batches():
    halves = torch.randn(2, 50).double()
    sums = [torch.tensor([50.0, half.sum(), half.square().sum()], dtype=torch.float64) for half in halves]
    mean = (sums[0] + sums[1]) / 2
    scale = advantage_scale(halves[0], torch.ones(50, dtype=torch.bool), lambda _: mean)
    assert scale.item() == pytest.approx(halves.flatten().std(correction=0).item())


@pytest.mark.parametrize("fragment", [25, 50])
@pytest.mark.parametrize("terminated", [True, False])
def test_cut_episodes_give_the_returns_of_whole_ones_from_the_cut_backwards(fragment, terminated):
    # A cut replaces what comes after it by the value there; with the values of the whole episode's own returns that is
    # no loss, whatever λ.
    rng = np.random.default_rng(fragment)
    rewards = torch.from_numpy(rng.normal(size=(1, 150)))
    values = torch.zeros(1, 151, dtype=torch.float64)
    if not terminated:
        values[0, -1] = 3.0
    ends = torch.zeros(1, 150, dtype=torch.bool)
    ends[0, -1] = terminated
    real = torch.ones(1, 150, dtype=torch.bool)
    values[:, :-1] = lambda_returns(rewards, values, ends, real, gamma=0.99, gae_lambda=1.0)
    whole = lambda_returns(rewards, values, ends, real, gamma=0.99, gae_lambda=0.95)
    count = 150 // fragment
    starts = torch.arange(count)[:, None] * fragment
    parts = lambda_returns(
        rewards.reshape(count, fragment),
        values[0, starts + torch.arange(fragment + 1)],
        ends.reshape(count, fragment),
        real.reshape(count, fragment),
        gamma=0.99,
        gae_lambda=0.95,
    )
    torch.testing.assert_close(parts.reshape(1, 150), whole)


@pytest.mark.parametrize("centre", [True, False])
def test_a_world_whose_rewards_are_ten_times_as_large_has_the_same_advantages(centre):
    generator = torch.Generator().manual_seed(0)
    streams = torch.randn(2, 30, 2, generator=generator, dtype=torch.float64)
    first = torch.arange(30).expand(2, -1) < 12
    real = torch.rand(2, 30, generator=generator) < 0.8
    output = SimpleNamespace(distribution=SimpleNamespace(forced=torch.rand(2, 30, generator=generator) < 0.3))
    worlds = [real & first, real & ~first]
    scaled = scaled_advantages(streams, output, worlds, centre, alone)
    larger = torch.where(first.unsqueeze(-1), 10.0 * streams, streams)
    torch.testing.assert_close(scaled_advantages(larger, output, worlds, centre, alone), scaled)
    assert not scaled[~real].any()
    for of in worlds:
        assert scaled[of & ~output.distribution.forced][:, 0].std(correction=0).item() == pytest.approx(1.0)


def test_means_leave_out_what_is_not_counted_and_are_0_where_nothing_is():
    # Counted: op advantages 1, 3, 8 of mean 4; argument advantages 2, −2, 3 of mean 1.
    streams = torch.tensor([[1.0, 2.0], [3.0, -2.0], [8.0, 3.0], [100.0, 100.0]])
    counted = torch.tensor([True, True, True, False])
    assert advantage_means(streams, counted, alone).tolist() == [4.0, 1.0]
    assert advantage_means(streams, torch.zeros(4, dtype=torch.bool), alone).tolist() == [0.0, 0.0]


def test_means_over_two_learners_weigh_every_step_alike():
    # One learner has the op advantages 1, 3, 8, the other 20 alone: 32 / 4 = 8, not the mean of 4 and 20.
    streams = torch.tensor([[1.0, 2.0], [3.0, -2.0], [8.0, 3.0]])
    other = torch.tensor([1.0, 20.0, 5.0], dtype=torch.float64)
    means = advantage_means(streams, torch.ones(3, dtype=torch.bool), lambda sums: (sums + other) / 2)
    assert means.tolist() == [8.0, 2.0]
