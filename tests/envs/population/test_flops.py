"""What training costs, against what torch counts in plain modules."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.living_seeds import fresh_population
from benchmarks.reference import HostLoop, delta_module
from envs.blueprints import blueprints_for
from envs.hosts.cnn import CnnVariant
from envs.hosts.mlp import MlpVariant
from envs.hosts.transformer import TransformerVariant
from envs.population.flops import FORWARDS_PER_TRAINING_STEP
from envs.vocabulary import INTERNAL_MAX_LEVEL, AlphaAlgorithm, Blueprint, LifecycleOp, SeedInternalKind
from tests.envs.helpers import CNN_BLUEPRINTS, WAIT, everyone, random_valid_actions, task_of, tiny_env
from tests.envs.hosts.test_topology_oracles import plain_network
from tests.envs.topologies import CONTEXT, env_of

WIDE, NARROW = CnnVariant((8, 16, 16), (3, 1, 3)), CnnVariant((2, 4, 8), (1, 3, 1))
ONE_SIZE = {
    "transformer": TransformerVariant(8, 2, layers=(1, 1), hidden=(8, 4), attends=(True, True)),
    "mlp": MlpVariant(width=4, hidden=(3, 2)),
}


def flops_of(task, variant):
    """Of one sample's forward through a host without seeds."""
    return sum(task.host.segment_flops(task.variants[variant], (8, 8, 1)))


def counted(module, x):
    """FLOPs of one call, attention being counted as the matrix products that it consists of."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module(x)
    return counter.get_total_flops()


@pytest.mark.parametrize("blueprint", CNN_BLUEPRINTS, ids=lambda blueprint: blueprint.name)
@pytest.mark.parametrize(("width", "side"), [(2, 4), (8, 4), (16, 2), (32, 1)])
def test_a_convolutional_seed_costs_what_torch_counts(blueprint, width, side):
    ours = blueprints_for("cnn")[blueprint].flops(width, side * side)
    assert ours == counted(delta_module(blueprint, width, level=1), torch.zeros(1, width, side, side))


def test_an_internal_level_costs_what_the_first_one_costs():
    ladder = blueprints_for("cnn")[Blueprint.CONV_LADDER]
    for level in range(1, INTERNAL_MAX_LEVEL[SeedInternalKind.CONV_LADDER] + 1):
        plain = delta_module(Blueprint.CONV_LADDER, 8, level)
        assert ladder.flops(8, 16, level) == counted(plain, torch.zeros(1, 8, 4, 4)) == level * ladder.flops(8, 16, 1)


@pytest.mark.parametrize(("topology", "length"), [("mlp", 1), ("transformer", CONTEXT)])
def test_a_seed_of_the_other_topologies_costs_what_torch_counts(topology, length):
    width = 8
    plain = {
        Blueprint.NORM: nn.LayerNorm(width),
        Blueprint.LORA: nn.Sequential(nn.Linear(width, 8), nn.Linear(8, width)),
        Blueprint.LORA_LARGE: nn.Sequential(nn.Linear(width, 32), nn.Linear(32, width)),
        Blueprint.MLP_SMALL: nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width)),
        Blueprint.MLP: nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width)),
    }
    attention = nn.MultiheadAttention(width, 4, batch_first=True).train()
    for blueprint, module in blueprints_for(topology).items():
        x = torch.zeros(1, length, width)
        reference = plain.get(blueprint, lambda u: attention(u, u, u, need_weights=False))
        assert module.flops(width, length) == counted(reference, x), blueprint.name


@pytest.mark.parametrize("topology", ONE_SIZE)
def test_a_members_first_host_costs_what_torch_counts(topology):
    env = env_of(topology, 1, (ONE_SIZE[topology],))
    host, sample = env.task.host, env.task.splits["train"].x[:1]
    flops = host.segment_flops(host.widest, tuple(sample.shape[1:]))
    assert len(flops) == host.num_slots + 1
    assert sum(flops) == counted(plain_network(topology, host), sample)


@pytest.mark.parametrize(("internal_levels", "depth"), [(False, 1), (True, 1), (False, 2)])
def test_members_of_several_sizes_with_seeds_cost_what_torch_counts_in_each_as_a_module(internal_levels, depth):
    variants = [replace(variant, depth=depth) for variant in (WIDE, NARROW)]
    task = task_of(*variants, internal_levels=internal_levels)
    population, lifecycle = fresh_population(task, 12, 4, torch.device("cpu"), share=0.7)
    ours = population.forward_flops(lifecycle)
    sample = task.splits["train"].x[:1].permute(0, 3, 1, 2)
    gated = lifecycle.computing & (lifecycle.algorithm == AlphaAlgorithm.GATE)
    assert set(population.variant) == {0, 1}
    assert gated.any()
    for member, host in enumerate(HostLoop(population, lifecycle).hosts):
        widths = np.array(task.variants[population.variant[member]].widths)
        gates = 2 * widths[gated[member]].sum()  # a matrix by a vector, which torch does not count
        assert ours[member] == counted(host.eval(), sample) + gates


@pytest.mark.parametrize("topology", ONE_SIZE)
def test_a_gate_costs_a_product_per_token_or_sample(topology):
    env = env_of(topology, 2)
    env.reset(seed=0)
    life = env.lifecycle
    life.stage[:, 0], life.blueprint[:, 0] = 6, Blueprint.MLP
    life.algorithm[1, 0] = AlphaAlgorithm.GATE
    without, gated = env.population.forward_flops(life)
    width, length = env.task.host.slot_width(env.task.host.widest, 0), CONTEXT if topology == "transformer" else 1
    assert gated - without == 2 * width * length


def test_a_host_left_alone_costs_its_training_and_one_validation_per_epoch_and_one_before():
    env = tiny_env(3, variants=(WIDE, NARROW), max_epochs=4)
    env.reset(seed=1)
    for _ in range(4):
        *_, info = env.step(everyone(env, WAIT))
    task = env.task
    forward = np.array([flops_of(task, variant) for variant in env.population.variant])
    samples = 4 * FORWARDS_PER_TRAINING_STEP * task.batches_per_epoch * task.batch_size
    validation = 5 * len(task.splits["validation"].y)
    assert np.array_equal(info["training_flops"], (samples + validation) * forward)
    assert np.array_equal(env.population.never_grown_flops(np.full(3, 4)), info["training_flops"])


@pytest.mark.parametrize("topology", ["transformer", "mlp"])
def test_what_never_growing_costs_is_known_beforehand_epoch_by_epoch(topology):
    env = env_of(topology, 2)
    env.reset(seed=0)
    for epoch in range(3):
        alone = env.population.never_grown_flops(env.epoch)
        assert env.epoch.tolist() == [epoch, epoch]
        assert np.array_equal(env.population.training_flops, alone)
        env.step(everyone(env, WAIT))


def test_every_seed_that_trains_and_every_evaluation_but_that_on_test_is_booked_to_its_host():
    env = tiny_env(4, variants=(WIDE, NARROW), max_epochs=24, report_test=True, counterfactual_interval=2)
    population, life, rng = env.population, env.lifecycle, np.random.default_rng(0)
    expected, splits = [0, 0, 0, 0], set()
    evaluate, train = population.evaluate, population.train_epoch

    def seed_flops(member, slot):
        module = population.modules[Blueprint(int(life.blueprint[member, slot]))]
        width, side = env.task.variants[population.variant[member]].widths[slot], (4, 2, 1)[slot]
        gate = 2 * width * (life.algorithm[member, slot] == AlphaAlgorithm.GATE)
        return module.flops(width, side * side) + gate

    def book_evaluation(members, alpha, lifecycle, split):
        """Each segment once for every way in which the slots before it are on, each seed likewise."""
        splits.add((split, len(members)))
        samples = len(env.task.splits[split].y) * (split == "validation")
        for member in set(members):
            host = env.task.host.segment_flops(env.task.variants[population.variant[member]], (8, 8, 1))
            rows = [tuple(row) for row in alpha[members == member]]
            for slot, flops in enumerate(host):
                expected[member] += samples * flops * len({row[:slot] for row in rows})
            for slot in range(3):
                on = {row[: slot + 1] for row in rows if row[slot] > 0.0}
                expected[member] += samples * len(on) * (seed_flops(member, slot) if on else 0)
        return evaluate(members, alpha, lifecycle, split)

    def book_training(epoch, lifecycle):
        for member in range(4):
            samples = env.task.batches_per_epoch * env.task.batch_size
            seeds = sum(seed_flops(member, slot) for slot in np.flatnonzero(lifecycle.computing[member]))
            expected[member] += 3 * samples * (flops_of(env.task, population.variant[member]) + seeds)
        return train(epoch, lifecycle)

    population.evaluate, population.train_epoch = book_evaluation, book_training
    obs, _ = env.reset(seed=3)
    for _ in range(24):
        obs, _, terminated, _, info = env.step(random_valid_actions(env, obs, rng, {LifecycleOp.PRUNE: 0.1}))
    assert terminated.all()
    assert info["training_flops"].tolist() == expected
    assert info["test_hits"].shape == (4, len(env.task.splits["test"].y)), "the test split was evaluated as well"
    assert {size for split, size in splits if split == "validation"} - {4}, "counterfactuals of some hosts"


def test_a_new_episode_starts_with_empty_books():
    env = tiny_env(2, max_epochs=2)
    env.reset(seed=0)
    for _ in range(3):
        env.step(everyone(env, WAIT))
    forward = flops_of(env.task, 0)
    assert env.population.training_flops.tolist() == [len(env.task.splits["validation"].y) * forward] * 2
