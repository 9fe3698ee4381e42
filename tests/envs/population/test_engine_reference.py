"""A population trains as the loop of plain modules against which the engine benchmark times it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.living_seeds import STAGES, fresh_population
from benchmarks.reference import HostLoop
from envs.hosts.cnn import CnnVariant
from envs.vocabulary import AlphaAlgorithm, SeedStage
from tests.devices import DEVICES
from tests.envs.helpers import task_of

# Both compute in float32 but add up in different orders; in float64 they agree to 1e-10. A host whose first kernel
# is 1×1 is left out: batch norm undoes the scale of its weights, so that their gradient is mostly rounding.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}  # a ReLU within rounding of 0 breaks it: some seeds have one

WIDE = CnnVariant((8, 16, 16), (3, 1, 3))
TASKS = {
    "one size": {"variants": (WIDE,)},
    "several sizes": {"variants": (WIDE, CnnVariant((4, 8, 8), (3, 3, 1)))},
    "narrower than a group": {"variants": (WIDE, CnnVariant((2, 4, 2), (3, 1, 3))), "seed": 2},
    "any widths": {"variants": (CnnVariant((10, 6, 9), (3, 1, 3)), CnnVariant((5, 4, 7), (3, 3, 1))), "seed": 2},
    "two convolutions a block": {
        "variants": (replace(WIDE, depth=2), CnnVariant((4, 8, 8), (3, 3, 1), depth=2)),
        "seed": 2,
    },
    "internal levels": {"variants": (WIDE,), "internal_levels": True},
}
MEMBERS, MAX_EPOCHS, BATCHES, WARMUP = 16, 8, 3, 2


def trained_pair(variants, seed=1, device="cpu", **changes):
    """A population whose seeds propose something, often more than they may, and the loop of its copies."""
    task = task_of(*variants, batches=BATCHES, **changes)
    population, lifecycle = fresh_population(task, MEMBERS, MAX_EPOCHS, torch.device(device), share=0.8, seed=seed)
    stage = lifecycle.stage.copy()
    lifecycle.stage[lifecycle.computing] = SeedStage.TRAINING
    for epoch in range(WARMUP):
        population.train_epoch(np.full(MEMBERS, epoch), lifecycle)
    lifecycle.stage[:] = stage
    for bank in population.banks.values():
        bank.rows.flat *= 3.0
        bank.layout.views(bank.rows.flat)["gate_weight"].add_(0.5)
    return population, lifecycle, HostLoop(population, lifecycle)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("changes", TASKS.values(), ids=TASKS)
def test_a_population_trains_and_evaluates_as_a_loop_over_modules(changes, device):
    population, lifecycle, loop = trained_pair(**changes, device=device)
    before = [ours.clone() for _, _, ours in loop.beside(population)]
    order = torch.from_numpy(population._order[:, WARMUP].astype(np.int64)).to(device)
    loop.train_epoch(order, population.task.learning_rate(WARMUP / MAX_EPOCHS))
    population.train_epoch(np.full(MEMBERS, WARMUP), lifecycle)
    for label, theirs, ours in loop.beside(population):
        torch.testing.assert_close(theirs, ours, **TOLERANCE, msg=lambda message, at=label: f"{at}: {message}")
    moved = [not torch.equal(ours, start) for (_, _, ours), start in zip(loop.beside(population), before, strict=True)]
    assert np.mean(moved) > 0.95
    losses, accuracies = population.evaluate(np.arange(MEMBERS), lifecycle.alpha, lifecycle, "validation")
    np.testing.assert_allclose(losses, loop.evaluate("validation")[0], atol=1e-4)
    np.testing.assert_allclose(accuracies, loop.evaluate("validation")[1], atol=1e-3)


@pytest.mark.parametrize("changes", TASKS.values(), ids=TASKS)
def test_the_pairs_have_all_blueprints_and_blend_in_every_way_in_every_stage(changes):
    population, lifecycle, _ = trained_pair(**changes)
    living = lifecycle.computing
    assert set(lifecycle.blueprint[living]) == set(population.modules)
    ways = itertools.product(STAGES, AlphaAlgorithm)
    assert set(zip(lifecycle.stage[living], lifecycle.algorithm[living], strict=True)) == set(ways)
