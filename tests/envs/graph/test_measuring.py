"""Measuring hosts as graphs changes nothing about them, nothing of one host in another, and outlives no episode."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from envs.governor import Panic
from envs.graph.activity import FUNCTIONS, ActivityStatistics
from envs.graph.layout import UNKNOWN
from envs.graph.measurements import ACTIVITY_INTERVAL
from envs.hosts.cnn import CnnVariant
from envs.vocabulary import NO_BLUEPRINT, AlphaAlgorithm, Blueprint, LifecycleOp, SeedStage
from tests.envs.helpers import (
    WAIT,
    act,
    advance,
    everyone,
    germinate,
    random_valid_actions,
    schedule,
    tiny_env,
    torch_alone,
)
from tests.envs.test_grown import grown_of
from tests.envs.topologies import env_of

SIZES = (CnnVariant((8, 16, 16), (3, 1, 3)), CnnVariant((4, 8, 8), (3, 3, 1)))
MAKERS = {
    "images": lambda **settings: tiny_env(4, SIZES, **settings),
    "levels": lambda **settings: tiny_env(4, SIZES, {"internal_levels": True}, **settings),
    "vectors": lambda **settings: env_of("mlp", 4, **settings),
    "sequences": lambda **settings: env_of("transformer", 4, **settings),
}


def views_of(env, observation):
    views = env.graph.layout.views(torch.from_numpy(observation["graph"]))
    return {key: values.numpy() for key, values in views.items()}


def play(env, rng, epochs, seed=5):
    observation, info = env.reset(seed=seed)
    yield observation, None, info
    for _ in range(epochs):
        observation, reward, *_, info = env.step(random_valid_actions(env, observation, rng))
        yield observation, reward, info


# ------------------------------------------------------------------ hosts do not notice
@pytest.mark.parametrize("without_compiler", [False, True])
@pytest.mark.parametrize("kind", MAKERS)
def test_hosts_that_are_measured_live_bit_for_bit_as_hosts_that_are_not(kind, without_compiler):
    if without_compiler:
        with torch_alone():
            compare_lives(kind, epochs=8)
    else:
        compare_lives(kind, epochs=20)


def compare_lives(kind, epochs):
    plain, measured = MAKERS[kind](max_epochs=14), MAKERS[kind](max_epochs=14, graph=True)
    lives = (play(env, np.random.default_rng(3), epochs) for env in (plain, measured))
    for (flat, reward, info), (graph, other_reward, other_info) in zip(*lives, strict=True):
        views = views_of(measured, graph)
        np.testing.assert_array_equal(views["run.observation"], flat["obs"])
        np.testing.assert_array_equal(views["run.blueprint_indices"], flat["blueprint_indices"])
        np.testing.assert_array_equal(graph["action_mask"], flat["action_mask"])
        np.testing.assert_array_equal(reward, other_reward)
        assert info.keys() == other_info.keys()
        for name in info:
            np.testing.assert_array_equal(info[name], other_info[name])
        ours, theirs = plain.population, measured.population
        assert torch.equal(ours.flat, theirs.flat)
        assert torch.equal(ours.momentum, theirs.momentum)
        assert all(torch.equal(ours.buffers[name], theirs.buffers[name]) for name in ours.buffers)
        np.testing.assert_array_equal(ours.training_flops, theirs.training_flops)


def test_without_a_graph_the_observation_is_what_it_was():
    env = tiny_env(2)
    assert env.graph is None
    assert set(env.single_observation_space.spaces) == {"obs", "blueprint_indices", "action_mask"}


@pytest.mark.parametrize("kind", MAKERS)
def test_observations_lie_in_their_space_and_begin_with_one(kind):
    env = MAKERS[kind](max_epochs=10, graph=True)
    assert set(env.single_observation_space.spaces) == {"graph", "action_mask"}
    for observation, *_ in play(env, np.random.default_rng(0), 12):
        assert env.observation_space.contains(observation)
        assert np.isfinite(observation["graph"]).all()
        assert (observation["graph"][:, 0] == 1.0).all()


# ------------------------------------------------------------------ hosts do not notice each other
LIVES = (
    schedule(0, 1, 3, Blueprint.CONV_LIGHT),
    schedule(1, 1, 3, Blueprint.DEPTHWISE, style=3),
    {1: germinate(2, Blueprint.NORM), 2: advance(2)},
    {},
)


@pytest.mark.parametrize("member", range(4))
def test_a_host_is_measured_among_others_as_it_is_alone(member):
    together, alone = tiny_env(4, SIZES, graph=True), tiny_env(1, SIZES, graph=True)
    pair = together.reset(seed=[1, 2, 3, 4])[0], alone.reset(seed=[member + 1])[0]
    for epoch in range(12):
        many, one = (views_of(env, observation) for env, observation in zip((together, alone), pair, strict=True))
        for key in many:
            np.testing.assert_allclose(one[key][0], many[key][member], rtol=2e-3, atol=1e-4, err_msg=f"{key}, {epoch}")
        actions = np.stack([life.get(epoch, WAIT) for life in LIVES])
        pair = together.step(actions)[0], alone.step(actions[member : member + 1])[0]


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_broken_in_one_host_shows_in_no_other(kind):
    healthy, other = (MAKERS[kind](graph=True) for _ in range(2))
    for env in (healthy, other):
        env.reset(seed=[1, 2, 3, 4])
        for _ in range(3):
            env.step(everyone(env, WAIT))
    other.population.flat[1] = torch.nan
    left, right = (env.step(everyone(env, WAIT))[0]["graph"] for env in (healthy, other))
    np.testing.assert_array_equal(left[[0, 2, 3]], right[[0, 2, 3]])
    broken = views_of(other, {"graph": right})
    assert np.isfinite(right).all()
    assert np.isnan(broken["metrics.loss"][1])
    assert np.isnan(broken["layers.gradient_norm"][1]).all()


# ------------------------------------------------------------------ nothing outlives an episode
@pytest.mark.parametrize("kind", MAKERS)
def test_a_used_env_measures_as_a_fresh_one(kind):
    used = MAKERS[kind](max_epochs=9, graph=True)
    for _ in play(used, np.random.default_rng(1), 13, seed=77):
        pass
    fresh = MAKERS[kind](max_epochs=9, graph=True)
    lives = zip(play(used, np.random.default_rng(2), 8), play(fresh, np.random.default_rng(2), 8), strict=True)
    for (ours, *_), (theirs, *_) in lives:
        np.testing.assert_array_equal(ours["graph"], theirs["graph"])


def test_hosts_that_begin_anew_are_measured_as_after_a_reset_whoever_goes_on():
    env = tiny_env(3, SIZES, graph=True)
    env.reset(seed=[1, 2, 3])
    for _ in range(3):
        before, *_ = env.step(everyone(env, WAIT))
    after, _ = env.reset(seed=[None, 9, None], options={"reset_mask": np.array([False, True, False])})
    alone = tiny_env(3, SIZES, graph=True)
    fresh, _ = alone.reset(seed=[7, 9, 8])
    np.testing.assert_array_equal(after["graph"][1], fresh["graph"][1])
    np.testing.assert_array_equal(after["graph"][[0, 2]], before["graph"][[0, 2]])


def test_an_untrained_host_says_what_it_is_and_nothing_of_a_training():
    env = tiny_env(2, SIZES, graph=True)
    views = views_of(env, env.reset(seed=1)[0])
    unknown = {key for key, values in views.items() if np.isnan(values).all()}
    assert unknown == {
        *(f"layers.{name}" for name in ("gradient_norm", "update_frequency", "loss_share")),
        *("activations.gradient_flow", "parameters.gradient_variance"),
        *(f"tunes.{name}" for name in ("update_magnitude", "convergence_rate")),
        *(f"seeds.{name}" for name in ("learning_rate", "activity_level", "success_rate")),
        *(f"metrics.{name}" for name in ("loss", "gradient_norm", "loss_delta", "loss_volatility", "grad_var")),
    }


def test_a_host_that_the_governor_rolled_back_is_measured_as_it_is_then():
    env = tiny_env(2, SIZES, graph=True)
    env.reset(seed=[1, 2])
    for _ in range(2):
        env.step(everyone(env, WAIT))
    env.population.flat[0] = torch.nan
    observation, *_, info = env.step(everyone(env, WAIT))
    assert info["panic"][0] == Panic.NON_FINITE
    views = views_of(env, observation)
    expected = env.population.layout.norms(env.population.flat)[0, 0]
    assert views["layers.weight_norm"][0, 0] == pytest.approx(float(expected))
    assert np.isnan(views["metrics.gradient_norm"][0])


# ------------------------------------------------------------------ seeds
def test_a_seeds_activity_is_the_change_of_its_parameters_over_their_norm():
    env = tiny_env(3, SIZES, graph=True)
    env.reset(seed=[1, 2, 3])
    env.step(np.stack([germinate(1, Blueprint.BOTTLENECK), germinate(1, Blueprint.BOTTLENECK), WAIT]))
    env.step(np.stack([advance(1), WAIT, WAIT]))
    (bank,) = env.population.banks.values()
    before = bank.layout.views(bank.rows.flat.clone())
    observation, *_ = env.step(everyone(env, WAIT))
    (bank,) = env.population.banks.values()
    after = bank.layout.views(bank.rows.flat)
    own = [name for name in before if not name.startswith("gate_")]
    change, size = (
        torch.cat([values[name].flatten() for name in own]).norm()
        for values in ({name: after[name] - before[name] for name in own}, before)
    )
    views = views_of(env, observation)
    assert views["seeds.activity_level"][0, 1] == pytest.approx(float(change / size), rel=1e-4)
    assert views["seeds.learning_rate"][0, 1] == views["parameters.learning_rate"][0, 0]
    others = np.delete(views["seeds.activity_level"].ravel(), 1)
    assert np.isnan(others).all(), "GERMINATED seeds have no weights yet, and empty slots have no seed"


def test_success_is_what_became_of_the_seeds_of_that_blueprint():
    env = tiny_env(2, graph=True, embargo_epochs=1, min_training_epochs=1)
    grown = grown_of({0: (Blueprint.NORM, AlphaAlgorithm.ADD, 1.0)}, {})
    observation, _ = env.reset(seed=1, options={"grown": grown})
    success = views_of(env, observation)["seeds.success_rate"]
    np.testing.assert_array_equal(success, [[1.0, np.nan, np.nan], [np.nan] * 3])
    env.step(everyone(env, germinate(1, Blueprint.NORM)))
    observation, *_ = env.step(everyone(env, act(LifecycleOp.PRUNE, 1)))
    assert (env.lifecycle.stage[:, 1] == SeedStage.PRUNED).all()
    observation, *_ = env.step(everyone(env, germinate(2, Blueprint.NORM)))
    success = views_of(env, observation)["seeds.success_rate"]
    np.testing.assert_array_equal(success[0], [0.5, np.nan, 0.5], "one kept, one pruned")
    np.testing.assert_array_equal(success[1], [np.nan, np.nan, 0.0], "one pruned")


def test_seeds_are_counted_as_the_episodes_books_count_them():
    env = tiny_env(6, max_epochs=30, graph=True)
    for _ in play(env, np.random.default_rng(4), 29):
        counted = env.graph._fates
        kept, gone = counted.kept.sum(axis=1), (counted.decided - counted.kept).sum(axis=1)
        np.testing.assert_array_equal(kept, env.lifecycle.fates[:, 0])
        np.testing.assert_array_equal(gone, env.lifecycle.fates[:, 1:].sum(axis=1))
    assert kept.any()
    assert gone.any()


def test_blueprints_come_as_the_flat_policy_has_them():
    env = tiny_env(2, graph=True)
    env.reset(seed=1)
    observation, *_ = env.step(np.stack([germinate(2, Blueprint.CONV_HEAVY), WAIT]))
    blueprints = views_of(env, observation)["run.blueprint_indices"]
    assert blueprints.tolist() == [[NO_BLUEPRINT, NO_BLUEPRINT, Blueprint.CONV_HEAVY], [NO_BLUEPRINT] * 3]


# ------------------------------------------------------------------ activation functions
def test_activation_functions_are_watched_every_few_epochs_and_stand_in_between():
    env = tiny_env(2, SIZES, graph=True)
    seen = [views_of(env, env.reset(seed=3)[0])["activations.saturation_rate"]]
    seen += [
        views_of(env, env.step(everyone(env, WAIT))[0])["activations.saturation_rate"]
        for _ in range(2 * ACTIVITY_INTERVAL)
    ]
    changed = [not np.array_equal(now, then) for then, now in itertools.pairwise(seen)]
    assert np.flatnonzero(changed).tolist() == [ACTIVITY_INTERVAL - 1, 2 * ACTIVITY_INTERVAL - 1]


numbers = st.floats(-8, 8, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)


@settings(deadline=None)
@given(st.sampled_from(sorted(FUNCTIONS)), arrays(np.float32, (2, 3, 2, 4), elements=numbers), st.integers(1, 4))
def test_activity_is_what_its_definition_says_of_the_channels_that_exist(name, given, channels):
    given[1, ..., channels:] = 0.0
    function = FUNCTIONS[name]
    statistics = ActivityStatistics.of(function, torch.from_numpy(given), np.array([4.0, channels]))
    for host, width in enumerate((4, channels)):
        x = torch.from_numpy(given[host, ..., :width]).flatten().requires_grad_()
        y = function.value(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        read, out = x.detach().numpy(), y.detach().numpy()
        assert statistics.active[host] == pytest.approx(np.mean(out != 0))
        assert statistics.saturated[host] == pytest.approx(np.mean(np.abs(slope.numpy()) < 0.01))
        assert statistics.events[host] == pytest.approx(np.sum(np.abs(slope.numpy()) < 0.01) / 3)
        if read.std() > 0.1 and out.std() > 0.1:
            unexplained = 1 - np.corrcoef(read, out)[0, 1] ** 2
            assert statistics.nonlinearity[host] == pytest.approx(unexplained, abs=1e-3)


def test_one_number_stands_for_all_that_is_unknown():
    assert np.isfinite(np.float32(UNKNOWN))
    assert np.float32(UNKNOWN) == UNKNOWN < -1e38
