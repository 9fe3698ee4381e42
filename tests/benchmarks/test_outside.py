"""The FLOPs of the outside yardsticks, their optima, and the pipe to DACBench; the packages themselves are optional."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.dacbench_env import (
    BITS,
    DacBenchEnv,
    chances_of,
    expected_evaluations,
    improvement_chance,
    optimal_bits,
    optimal_values,
)
from benchmarks.flop_budget import Budget, Training, batches, static_network
from envs.tasks import make_task

torch.set_num_threads(1)
DACBENCH_PYTHON = Path(__file__).parents[2] / ".venv-dacbench/bin/python"


def test_a_budget_counts_products_and_decompositions():
    matrix = torch.eye(4)
    assert Budget(1e9).pay(lambda: torch.ones(2, 3) @ torch.ones(3, 5)) == 2 * 2 * 3 * 5
    assert Budget(1e9).pay(lambda: torch.linalg.eigh(matrix)) == 9 * 4**3
    assert Budget(1e9).pay(lambda: torch.linalg.svd(torch.ones(6, 4), full_matrices=False)) == 14 * 6 * 16 + 8 * 64
    assert Budget(1e9).pay(lambda: torch.linalg.solve(matrix, torch.ones(4, 2))) == 2 * 64 // 3 + 2 * 16 * 2


def test_what_is_repeated_ends_before_the_budget_does():
    budget, done = Budget(100), []

    def work():
        done.append(torch.ones(2, 3) @ torch.ones(3, 2))  # 24 FLOPs

    while budget.repeat("product", work):
        pass
    assert len(done) == 4
    assert budget.spent == 96
    assert budget.share == pytest.approx(0.96)


def test_batches_are_passes_over_all_samples():
    stream = batches(10, 4, torch.Generator().manual_seed(0))
    first = torch.cat([next(stream) for _ in range(5)])
    for part in first.split(10):
        assert part.sort().values.tolist() == list(range(10))


def test_training_spends_three_forwards_for_a_sample_less_the_inputs_gradient():
    task = make_task("digits_impaired", {})
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    budget = Budget(1e9)
    assert Training(task, budget, 0.1, seed=0).epoch(model)
    assert budget.spent == task.batches_per_epoch * task.batch_size * 2 * (2 * 64 * 10)


def test_the_same_seed_trains_the_same_static_network():
    task = make_task("digits_impaired", {})
    first, second = (static_network(task, (5, 3), 0.1, 5e6, seed=1) for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_chances_on_leading_ones_are_those_of_all_flips():
    # Of the 6 pairs of 4 bits, with one leading 1 the pairs (1, 2) and (1, 3) flip the zero at 1 and spare bit 0.
    assert improvement_chance(2, 1, length=4) == pytest.approx(2 / 6)
    assert improvement_chance(1, 3, length=4) == pytest.approx(1 / 4)
    assert improvement_chance(2, 3, length=4) == 0


def test_the_best_static_and_the_optimal_policy_take_the_known_times():
    one_bit = expected_evaluations(chances_of(np.zeros(BITS, np.int64)))
    assert one_bit == pytest.approx(1 + BITS**2 / 2)
    optimum = expected_evaluations(chances_of(optimal_bits()))
    assert 0.388 * BITS**2 < optimum < 0.4 * BITS**2  # every number of bits allowed: 0.388 n² (Doerr, 2019)
    assert expected_evaluations(chances_of(np.ones(BITS, np.int64))) == np.inf


def test_the_optimal_values_are_next_to_the_sigmoids():
    # Remaining steps, slope and shift of each sigmoid, last actions: the step to come is 1, then 6.
    observations = {"obs": np.array([[10, 100, 5.5, 100, 0.5, -1, -1], [5, 0, 3, -100, 0.5, 0, 0]], np.float32)}
    assert optimal_values(observations).tolist() == [[0, 2], [1, 0]]


@pytest.mark.skipif(not DACBENCH_PYTHON.exists(), reason="make outside has not created .venv-dacbench")
def test_dacbench_is_stepped_in_its_own_process():
    env = DacBenchEnv(DACBENCH_PYTHON, "function_approximation", 3, test=True)
    observations, _ = env.reset(seed=0)
    assert observations["obs"].shape == (3, 7)
    assert len(np.unique(observations["obs"][:, 1])) == 3  # other instances
    paid = 0.0
    for step in range(10):
        observations, rewards, terminated, *_ = env.step(optimal_values(observations))
        assert (terminated == (step == 9)).all()
        paid += rewards.mean()
    assert paid > 9  # the best of three values is at most a quarter away from either sigmoid
    observations, rewards, terminated, *_ = env.step(np.zeros((3, 2), np.int64))
    assert (rewards == 0).all()
    assert not terminated.any()
    assert (observations["obs"][:, 0] == 10).all()
    env.close()
    assert env.process.poll() == 0


def test_a_process_that_ends_is_reported():
    with pytest.raises(RuntimeError, match="ended with status"):
        DacBenchEnv(Path("/bin/false"), "leading_ones", 1)


@pytest.mark.skipif(importlib.util.find_spec("gromo") is None, reason="gromo is not installed: see make outside")
def test_gromo_grows_until_the_flops_are_spent():
    from benchmarks.gromo_network import HIDDEN, Setting, grown_network, hidden_widths

    model, spent = grown_network(make_task("digits_impaired", {}), Setting(0.1, 2, 1), 4e7, seed=0)
    assert all(width > HIDDEN for width in hidden_widths(model))
    assert 0.9 * 4e7 < spent <= 4e7
