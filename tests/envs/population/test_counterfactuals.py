import itertools

import numpy as np
import pytest

from envs.counterfactuals import evaluate_with_counterfactuals
from envs.vocabulary import Blueprint, LifecycleOp
from tests.envs.helpers import (
    WAIT,
    act,
    advance,
    everyone,
    fossilize,
    germinate,
    random_valid_actions,
    stages,
    tiny_env,
)

WIDE_TASK = {"batches": 8, "samples": 200}


def blended(blueprints_by_member, max_epochs=40, slots_on=(0, 1, 2), variants=()):
    """Members whose slots hold blended seeds; a blueprint of None leaves the slot empty."""
    env = tiny_env(
        len(blueprints_by_member),
        variants,
        WIDE_TASK,
        max_epochs=max_epochs,
        parameter_budget=10**9,
        min_training_epochs=1,
        counterfactual_interval=1000,
    )
    env.reset(seed=3)
    for slot in slots_on:
        for kind in ("germinate", "train", "blend"):
            actions = everyone(env, WAIT)
            for member, blueprints in enumerate(blueprints_by_member):
                if blueprints[slot] is not None:
                    actions[member] = germinate(slot, blueprints[slot]) if kind == "germinate" else advance(slot)
            *_, info = env.step(actions)
            assert "refused" not in info
    for _ in range(3):
        env.step(everyone(env, WAIT))
    return env


def measure(env, due=None):
    """What is measured of the hosts that are due, all by default, beside the same results as of a plain evaluation."""
    everybody = np.ones(env.num_envs, bool)
    due = everybody if due is None else np.array(due)
    loss, accuracy, measured = evaluate_with_counterfactuals(env.population.validate, env.lifecycle, everybody, due)
    plain = env.watch._evaluate(np.arange(env.num_envs))
    np.testing.assert_allclose(loss, plain[0], atol=1e-5)
    np.testing.assert_allclose(accuracy, plain[1], atol=1e-9)
    return measured


def brute_force(env, member, kept, active):
    """Accuracy of one member with only ``kept`` of its active slots on, evaluated all alone."""
    alpha = env.lifecycle.alpha[member].copy()
    for slot in active:
        if slot not in kept:
            alpha[slot] = 0.0
    return float(env.population.evaluate(np.array([member]), alpha[None], env.lifecycle, "validation")[1][0])


def expected(env, member, active):
    contribution, total, best = {}, {}, {}
    for slot in active:
        others = [other for other in active if other != slot]
        contribution[slot] = brute_force(env, member, active, active) - brute_force(env, member, others, active)
        pairs = [
            brute_force(env, member, [slot, other], active)
            - brute_force(env, member, [slot], active)
            - brute_force(env, member, [other], active)
            + brute_force(env, member, [], active)
            for other in others
        ]
        if 2 <= len(active) <= 4:
            total[slot], best[slot] = sum(pairs), max(0.0, *pairs)
    return contribution, total, best


def check(env, measured, member, active):
    contribution, total, best = expected(env, member, active)
    for slot in range(env.lifecycle.stage.shape[1]):
        for array, values in (
            (measured.contribution, contribution),
            (measured.interaction_sum, total),
            (measured.interaction_best, best),
        ):
            if slot in values:
                assert array[member, slot] == pytest.approx(values[slot], abs=1e-4)
            else:
                assert np.isnan(array[member, slot])


def test_contributions_and_interactions_equal_one_evaluation_per_subset():
    light, depthwise, norm = Blueprint.CONV_LIGHT, Blueprint.DEPTHWISE, Blueprint.NORM
    lives = [(light, depthwise, norm), (light, None, depthwise), (None, light, None), (None, None, None)]
    env = blended(lives)
    measured = measure(env)
    for member, life in enumerate(lives):
        check(env, measured, member, [slot for slot, blueprint in enumerate(life) if blueprint is not None])
    assert np.nanmax(np.abs(measured.contribution)) > 1.0
    assert np.nanmax(np.abs(measured.interaction_sum)) > 0.1
    only = measure(env, due=[False, True, False, False])
    np.testing.assert_array_equal(only.contribution[1], measured.contribution[1])
    assert np.isnan(only.contribution[[0, 2, 3]]).all()


def test_more_than_four_active_slots_have_contributions_but_no_interactions():
    from envs.hosts.cnn import CnnVariant

    lives = [(Blueprint.DEPTHWISE,) * 5, (*(Blueprint.DEPTHWISE,) * 4, None)]
    env = blended(lives, slots_on=range(5), variants=(CnnVariant((4,) * 5, (1,) * 5),))
    measured = measure(env)
    check(env, measured, 0, list(range(5)))
    check(env, measured, 1, list(range(4)))
    assert np.isnan(measured.interaction_sum[0]).all()
    assert not np.isnan(measured.interaction_sum[1, :4]).any()


def test_a_slot_whose_prune_ramps_down_stays_on_and_is_not_measured():
    env = blended([(Blueprint.CONV_LIGHT, Blueprint.DEPTHWISE, None)])
    env.step(everyone(env, act(LifecycleOp.PRUNE, 0, speed=3)))
    assert env.lifecycle.pruning[0, 0]
    measured = measure(env)
    check(env, measured, 0, [1])


def test_measuring_changes_nothing():
    env = blended([(Blueprint.CONV_LIGHT, Blueprint.DEPTHWISE, None)])
    flat, alpha = env.population.flat.clone(), env.lifecycle.alpha.copy()
    buffers = {name: buffer.clone() for name, buffer in env.population.buffers.items()}
    before = env.watch._evaluate(np.arange(1))
    measure(env)
    assert np.array_equal(env.lifecycle.alpha, alpha)
    assert (env.population.flat == flat).all()
    assert all((env.population.buffers[name] == buffer).all() for name, buffer in buffers.items())
    assert np.array_equal(before, env.watch._evaluate(np.arange(1)))


def test_a_host_that_the_governor_stops_is_not_measured_not_even_in_a_fossil_that_it_keeps():
    env = blended([(Blueprint.CONV_LIGHT, None, None)] * 2)
    for action in (advance(0), fossilize(0), WAIT, WAIT):
        env.step(everyone(env, action))
    env.watch.counterfactual_interval = 1
    env.step(everyone(env, WAIT))
    contribution = env.measurements.contribution.copy()
    env.population.flat[1] = np.nan
    *_, terminated, _, _ = env.step(everyone(env, WAIT))
    assert terminated.tolist() == [False, True]
    assert stages(env)[1][0] == "FOSSILIZED"
    assert env.measurements.epochs_since[:, 0].tolist() == [0, 1]
    assert env.measurements.contribution[1, 0] == contribution[1, 0] != 0.0


@pytest.mark.parametrize("interval", [1, 4, 5, 100])
def test_contributions_are_measured_every_interval_and_always_in_the_first_epoch_of_holding(interval):
    env = tiny_env(4, max_epochs=32, counterfactual_interval=interval, min_training_epochs=1)
    rng = np.random.default_rng(interval)
    obs, _ = env.reset(seed=0)
    holding = np.zeros((4, 3), bool)
    held = 0
    for epoch in range(1, 32):
        obs, _, terminated, *_ = env.step(random_valid_actions(env, obs, rng))
        if terminated.any():
            break
        life, fresh = env.lifecycle, env.measurements.epochs_since == 0
        now = life.stage == 5
        began = (now & ~holding).any(axis=1)
        held += began.sum()
        due = began | (epoch % interval == 0)
        on = (life.alpha > 0) & ~life.pruning
        assert np.array_equal(fresh, on & due[:, None])
        freshness = env.layout.slot(obs["obs"], "freshness")
        assert ((freshness == 1.0) == fresh).all()
        assert (life.measured_in_holding[now]).all(), "FOSSILIZE never waits for a measurement"
        holding = now
    assert held > 2


def test_subset_codes_stay_right_for_every_combination_of_active_slots():
    """Every pattern of occupied slots, one member each, in one call."""
    patterns = list(itertools.product([None, Blueprint.CONV_LIGHT], repeat=3))
    env = blended(patterns)
    measured = measure(env)
    for member, pattern in enumerate(patterns):
        check(env, measured, member, [slot for slot, blueprint in enumerate(pattern) if blueprint is not None])
