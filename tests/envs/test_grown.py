"""Hosts that start with the seeds that another episode ended with."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.reference import HostLoop
from envs.grown import GrownSeeds
from envs.hosts.cnn import CnnVariant
from envs.vocabulary import NO_BLUEPRINT, AlphaAlgorithm, Blueprint, SeedStage
from tests.envs.helpers import CNN_BLUEPRINTS, WAIT, everyone, random_valid_actions, tiny_env
from tests.envs.topologies import BLUEPRINTS, env_of

VARIANTS = (CnnVariant((8, 16, 16), (3, 1, 3)), CnnVariant((4, 8, 8), (3, 3, 1)))
SEEDS, EPOCHS = (11, 12, 13, 14, 15), 4
NOTHING_LIMITS = {"parameter_budget": 10**9}


def grown_of(*hosts, slots=3):
    """One ``{slot: (blueprint, algorithm, alpha)}`` per host."""
    shape = (len(hosts), slots)
    grown = GrownSeeds(np.full(shape, NO_BLUEPRINT), np.zeros(shape, int), np.zeros(shape), np.zeros(shape, int))
    for host, seeds in enumerate(hosts):
        for slot, (blueprint, algorithm, alpha) in seeds.items():
            grown.blueprint[host, slot], grown.algorithm[host, slot] = blueprint, algorithm
            grown.alpha[host, slot] = alpha
    return grown


SETS = (
    {0: (Blueprint.CONV_LIGHT, AlphaAlgorithm.ADD, 1.0)},
    {},
    {0: (Blueprint.DEPTHWISE, AlphaAlgorithm.GATE, 0.7), 2: (Blueprint.BOTTLENECK, AlphaAlgorithm.MULTIPLY, 1.0)},
    dict.fromkeys(range(3), (Blueprint.DEPTHWISE, AlphaAlgorithm.ADD, 0.5)),
    {1: (Blueprint.CONV_HEAVY, AlphaAlgorithm.ADD, 1.0), 2: (Blueprint.NORM, AlphaAlgorithm.ADD, 1.0)},
)


def test_a_host_with_seeds_in_place_trains_as_the_plain_network_that_has_them():
    env = tiny_env(len(SETS), VARIANTS, max_epochs=EPOCHS)
    _, start = env.reset(seed=SEEDS, options={"grown": grown_of(*SETS)})
    loop = HostLoop(env.population, env.lifecycle)
    assert [len(host.seeds) for host in loop.hosts] == [len(seeds) for seeds in SETS]
    for epoch in range(EPOCHS - 1):
        *_, info = env.step(everyone(env, WAIT))
        order = torch.from_numpy(env.population._order[:, epoch].astype(np.int64))
        loop.train_epoch(order, env.task.learning_rate(epoch / EPOCHS))
    moved = False
    for label, theirs, ours in loop.beside(env.population):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4, msg=lambda text, at=label: f"{at}: {text}")
        moved |= "out_weight" in label and bool(theirs.any())
    assert moved, "a seed starts as an identity and learns"
    np.testing.assert_allclose(info["val_accuracy"], loop.evaluate("validation")[1], atol=1e-3)
    assert (info["val_accuracy"] != start["val_accuracy"]).any()


@pytest.mark.parametrize("topology", BLUEPRINTS)
def test_hosts_with_other_seeds_beside_them_train_as_alone(topology):
    sets = [{i % 2: (blueprint, i % 3, 1.0)} for i, blueprint in enumerate(BLUEPRINTS[topology])]
    sets[0] = {}
    together = env_of(topology, len(sets), max_epochs=4)
    together.reset(seed=list(range(len(sets))), options={"grown": grown_of(*sets, slots=2)})
    for _ in range(4):
        *_, info = together.step(everyone(together, WAIT))
    for host, seeds in enumerate(sets):
        alone = env_of(topology, 1, max_epochs=4)
        alone.reset(seed=[host], options={"grown": grown_of(seeds, slots=2)})
        for _ in range(4):
            *_, single = alone.step(everyone(alone, WAIT))
        assert single["committed_score"][0] == pytest.approx(info["committed_score"][host], abs=1e-6)
        assert single["committed_parameters"][0] == info["committed_parameters"][host]
        torch.testing.assert_close(alone.population.flat[0], together.population.flat[host], atol=1e-5, rtol=1e-4)


def test_seeds_in_place_leave_the_host_as_it_would_be_and_pay_rent_from_the_start():
    changes = {"parameter_rent": 0.05, "path_rent": 0.02}
    bare, env = (tiny_env(len(SETS), VARIANTS, **changes) for _ in range(2))
    _, plain = bare.reset(seed=SEEDS)
    _, info = env.reset(seed=SEEDS, options={"grown": grown_of(*SETS)})
    assert torch.equal(bare.population.flat, env.population.flat)
    assert np.array_equal(bare.population._order, env.population._order)
    np.testing.assert_allclose(info["val_accuracy"], plain["val_accuracy"], atol=1e-4, err_msg="an identity at birth")
    share = info["extra_parameters"] / env.lifecycle.costs.host
    rent = 0.05 * np.log2(1 + share) + 0.02 * np.array([len(seeds) for seeds in SETS])
    np.testing.assert_allclose(info["score"], info["val_accuracy"] / 100 - rent)
    assert (share[[0, 2, 3, 4]] > 0).all()
    assert env.lifecycle.fates[:, 0].tolist() == [len(seeds) for seeds in SETS]


def test_what_an_episode_committed_grows_from_scratch_with_the_same_parameters():
    env = tiny_env(6, VARIANTS, max_epochs=30, **NOTHING_LIMITS)
    obs, _ = env.reset(seed=4)
    rng, done = np.random.default_rng(0), False
    while not done:
        obs, _, terminated, _, info = env.step(random_valid_actions(env, obs, rng))
        done = terminated.any()
    final, committed = env.lifecycle.committed(), info["committed_parameters"].copy()
    assert ((final.blueprint != NO_BLUEPRINT).sum(axis=1) == info["seeds_fossilized"])[terminated].all()
    assert (final.blueprint[terminated] != NO_BLUEPRINT).any()
    again = tiny_env(6, VARIANTS, max_epochs=2, **NOTHING_LIMITS)
    again.reset(seed=4, options={"grown": final})
    for _ in range(2):
        *_, info = again.step(everyone(again, WAIT))
    assert np.array_equal(info["committed_parameters"][terminated], committed[terminated])


def test_the_next_episode_of_a_host_starts_bare():
    env = tiny_env(2, max_epochs=1)
    env.reset(seed=0, options={"grown": GrownSeeds.everywhere(Blueprint.DEPTHWISE, 2, env.task.slots)})
    assert (env.lifecycle.stage == SeedStage.FOSSILIZED).all()
    env.step(everyone(env, WAIT))
    env.step(everyone(env, WAIT))
    assert (env.lifecycle.stage == SeedStage.DORMANT).all()
    assert not env.population.banks


cells = st.one_of(
    st.none(), st.tuples(st.sampled_from(CNN_BLUEPRINTS), st.sampled_from(AlphaAlgorithm), st.floats(0.1, 1.0))
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(cells, min_size=3, max_size=3), min_size=3, max_size=3))
def test_what_was_planted_is_what_is_there(hosts):
    grown = grown_of(*({slot: cell for slot, cell in enumerate(row) if cell} for row in hosts))
    env = tiny_env(3)
    env.reset(seed=0, options={"grown": grown})
    there = env.lifecycle.committed()
    for name, planted in vars(grown).items():
        assert np.array_equal(getattr(there, name), planted)
    env.step(everyone(env, WAIT))
    assert np.array_equal(env.lifecycle.committed().alpha, grown.alpha), "no time changes them"


@pytest.mark.parametrize(
    ("grown", "message"),
    [
        (grown_of({}, slots=3), "2 hosts with 3 slots needed"),
        (grown_of({}, {0: (Blueprint.LORA, 0, 1.0)}), "offer no blueprint 8"),
        (grown_of({}, {0: (Blueprint.DEPTHWISE, 0, 0.0)}), "above 0"),
        (grown_of({}, {0: (Blueprint.DEPTHWISE, 0, 1.5)}), "at most 1"),
        (grown_of({}, {0: (Blueprint.DEPTHWISE, 99, 1.0)}), "algorithm must be 0 to 2"),
    ],
)
def test_seeds_that_do_not_fit_are_refused(grown, message):
    with pytest.raises(ValueError, match=message):
        tiny_env(2).reset(seed=0, options={"grown": grown})
