import warnings

import numpy as np
import pytest
import torch

from envs.governor import Governor, Panic
from envs.vocabulary import Blueprint, SeedStage
from tests.envs.helpers import WAIT, advance, everyone, fossilize, germinate, random_valid_actions, tiny_env

CHANCE = 10.0


def judge(governor, loss, accuracy, committed=False):
    return Panic(int(governor.judge(np.array([loss]), np.array([accuracy]), np.array([committed]))[0]))


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_at_once_even_when_committed(loss):
    for committed in (False, True):
        assert judge(Governor(1, CHANCE), loss, 50.0, committed) is Panic.NON_FINITE


def test_accuracy_near_chance_for_three_epochs_after_something_was_learnt_is_a_collapse():
    governor = Governor(1, CHANCE)
    verdicts = [judge(governor, 1.0, accuracy) for accuracy in (20.0, 12.0, 12.0, 12.1, 12.0, 12.0, 12.0)]
    assert verdicts == [Panic.NONE] * 6 + [Panic.COLLAPSE]


def test_a_host_that_never_learnt_does_not_collapse():
    governor = Governor(1, CHANCE)
    assert {judge(governor, 1.0, accuracy) for accuracy in (19.9, *[5.0] * 10)} == {Panic.NONE}


def test_three_epochs_of_an_extreme_loss_are_a_divergence():
    governor = Governor(1, CHANCE)
    losses = [1.0, 1.2, 0.8, 1.0, 13.0, 13.0, 1.0, 12.1, 12.1, 12.1]
    assert [judge(governor, loss, 50.0) for loss in losses] == [Panic.NONE] * 9 + [Panic.DIVERGENCE]


def test_a_loss_is_extreme_only_beyond_three_means_and_six_sigmas_of_the_healthy_epochs():
    calm, wild = Governor(1, CHANCE), Governor(1, CHANCE)
    for _ in range(10):
        judge(calm, 5.0, 50.0)
    for loss in (1.0, 9.0) * 5:  # mean 5, σ 4: the limit is 29 instead of 15
        judge(wild, loss, 50.0)
    assert [judge(calm, 14.9, 50.0) for _ in range(1)] == [Panic.NONE]
    assert [judge(calm, 28.0, 50.0) for _ in range(3)] == [Panic.NONE, Panic.NONE, Panic.DIVERGENCE]
    assert [judge(wild, 28.0, 50.0) for _ in range(3)] == [Panic.NONE] * 3


def test_a_stripped_evaluation_is_not_judged_for_collapse_or_divergence():
    governor = Governor(1, CHANCE)
    for loss, accuracy in ((1.0, 60.0), (50.0, 5.0), (50.0, 5.0)):
        judge(governor, loss, accuracy)
    assert judge(governor, 50.0, 5.0, committed=True) is Panic.NONE


def test_members_are_judged_singly_and_forget_at_a_new_episode():
    governor = Governor(3, CHANCE)
    quiet = np.zeros(3, bool)
    governor.judge(np.ones(3), np.full(3, 50.0), quiet)
    for _ in range(2):
        governor.judge(np.ones(3), np.array([50.0, 5.0, 5.0]), quiet)
    governor.start(np.array([2]))
    assert governor.judge(np.ones(3), np.array([50.0, 5.0, 5.0]), quiet).tolist() == [0, Panic.COLLAPSE, 0]


def member_state(env, member):
    population = env.population
    state = [population.flat[member], population.momentum[member]]
    state += [buffer[member] for buffer in population.buffers.values()]
    for (slot, blueprint), bank in sorted(population.banks.items()):
        if env.lifecycle.stage[member, slot] == SeedStage.FOSSILIZED:
            row = int(np.flatnonzero(bank.rows.members == member)[0])
            state += [torch.tensor([slot, int(blueprint)]), bank.rows.flat[row], bank.rows.momentum[row]]
    return [value.clone() for value in state]


@pytest.mark.parametrize("break_at", [3, 9, 11, 13, 16])
def test_a_broken_member_goes_back_to_exactly_its_last_snapshot_and_ends_alone(break_at):
    env, twin = (tiny_env(3, max_epochs=20) for _ in range(2))
    for each in (env, twin):
        each.reset(seed=[1, 2, 3])
    plan = {1: germinate(0, Blueprint.CONV_LIGHT), 2: advance(0), 5: advance(0), 8: advance(0), 11: fossilize(0)}
    plan |= {12: germinate(1), 13: advance(1)}
    saved, score_at = member_state(env, 1), {}
    for epoch in range(1, break_at + 1):
        if epoch == break_at:
            env.population.flat[1] = torch.nan
        score_before = env.account.score[1].sum()
        actions = everyone(env, plan.get(epoch, WAIT))
        obs, reward, terminated, _, info = env.step(actions)
        obs_twin, reward_twin, *_ = twin.step(actions)
        if epoch < break_at:
            assert not terminated.any()
            if epoch % 5 == 0 or epoch == 11:
                saved, score_at[epoch] = member_state(env, 1), None
    assert terminated.tolist() == [False, True, False]
    assert info["panic"][1] == Panic.NON_FINITE
    assert info["_panic"].tolist() == [False, True, False]
    restored = member_state(env, 1)
    assert len(restored) == len(saved)
    assert all(torch.equal(*pair) for pair in zip(restored, saved, strict=True))
    fossils = break_at > 11
    assert [SeedStage(stage).name for stage in env.lifecycle.stage[1]] == [
        "FOSSILIZED" if fossils else "DORMANT",
        "DORMANT",
        "DORMANT",
    ]
    host, extra = env.lifecycle.costs.host[1], env.lifecycle.extra_parameters[1]
    accuracy = env.watch._evaluate(np.arange(3))[1][1]
    score = accuracy / 100 - 0.03 * np.log2(1 + extra / host)
    assert info["committed_score"][1] == pytest.approx(score, abs=1e-9)
    assert reward[1] == pytest.approx(score - score_before - 1, abs=1e-9)
    assert info["seeds_fossilized"][1] == fossils
    assert info["seeds_rolled_back"][1] == {3: 1, 9: 1, 11: 1, 13: 1, 16: 1}[break_at]
    for name in obs:
        assert np.array_equal(obs[name][[0, 2]], obs_twin[name][[0, 2]])
    assert np.array_equal(reward[[0, 2]], reward_twin[[0, 2]])


def test_a_stopped_member_starts_anew_and_the_others_go_on_as_if_nothing_had_happened():
    env, twin = (tiny_env(3, max_epochs=14) for _ in range(2))
    rng = np.random.default_rng(0)
    for each in (env, twin):
        obs, _ = each.reset(seed=[1, 2, 3])
    for epoch in range(14):
        if epoch == 6:
            env.population.flat[1] = torch.nan
        actions = random_valid_actions(twin, obs, rng)
        obs_env, reward_env, done_env, *_ = env.step(actions * np.array([[1], [epoch < 6], [1]]))
        obs, reward, *_ = twin.step(actions)
        for name in ("blueprint_indices", "action_mask"):
            assert np.array_equal(obs_env[name][[0, 2]], obs[name][[0, 2]])
        torch.testing.assert_close(
            env.population.flat[[0, 2]], twin.population.flat[[0, 2]], atol=1e-6 * (epoch > 6), rtol=1e-6 * (epoch > 6)
        )
        np.testing.assert_allclose(reward_env[[0, 2]], reward[[0, 2]], atol=1e-6)
        assert done_env[1] == (epoch == 6)
        if epoch == 7:
            assert reward_env[1] == 0.0
            assert env.layout.base(obs_env["obs"], "epoch")[1] == 0.0
            assert torch.isfinite(env.population.flat[1]).all()


def test_a_fossil_is_in_the_snapshot_of_its_own_epoch():
    env = tiny_env(1, max_epochs=20)
    env.reset(seed=0)
    plan = {1: germinate(0, Blueprint.CONV_LIGHT, style=3), 2: advance(), 5: advance(), 8: advance(), 12: fossilize()}
    for epoch in range(1, 14):
        if epoch == 13:
            env.population.banks[0, Blueprint.CONV_LIGHT].rows.flat[:] = torch.nan
        *_, terminated, _, info = env.step(everyone(env, plan.get(epoch, WAIT)))
    assert terminated[0]
    assert info["seeds_fossilized"][0] == 1
    bank = env.population.banks[0, Blueprint.CONV_LIGHT]
    assert torch.isfinite(bank.rows.flat).all()
    assert bank.gated.tolist() == [True]


def test_an_episodes_governor_does_not_depend_on_how_the_episode_was_started():
    """The second episode by autoreset and by a call of reset are the same, snapshots included."""
    automatic, called = (tiny_env(2, max_epochs=8) for _ in range(2))
    for env in (automatic, called):
        env.reset(seed=[4, 5])
        for _ in range(8):
            env.step(everyone(env, WAIT))
    obs_automatic, *_ = automatic.step(everyone(automatic, WAIT))
    obs_called, _ = called.reset()
    for _ in range(7):
        for name in obs_called:
            assert np.array_equal(obs_automatic[name], obs_called[name])
        for name, values in vars(called.watch.governor).items():
            assert np.array_equal(values, getattr(automatic.watch.governor, name)), name
        assert torch.equal(automatic.watch.snapshots.weights._flat, called.watch.snapshots.weights._flat)
        obs_automatic, *_ = automatic.step(everyone(automatic, WAIT))
        obs_called, *_ = called.step(everyone(called, WAIT))


def test_a_bad_epoch_is_never_saved_not_even_where_a_seed_fossilises_in_it():
    """A host held at chance, fossilised in its second bad epoch, goes back to the healthy host before."""
    env = tiny_env(1, max_epochs=30)
    env.reset(seed=0)
    plan = {1: germinate(0), 2: advance(), 5: advance(), 8: advance(), 11: fossilize()}
    for epoch in range(1, 10):
        env.step(everyone(env, plan.get(epoch, WAIT)))
    env.watch.governor._best[:] = 90.0  # as if it had learnt something before
    healthy = env.watch.snapshots.weights._flat.clone()
    panics = []
    for epoch in range(10, 13):
        with torch.no_grad():
            env.population.flat[:] = 0.0  # every class is as likely: accuracy at chance
        *_, terminated, _, info = env.step(everyone(env, plan.get(epoch, WAIT)))
        panics.append(bool(terminated[0]))
    assert panics == [False, False, True]
    assert info["panic"][0] == Panic.COLLAPSE
    assert torch.equal(env.population.flat, healthy)
    assert healthy.any()
    assert info["seeds_rolled_back"][0] == 1
    assert info["seeds_fossilized"][0] == 0


def test_a_fossil_of_a_bad_epoch_is_saved_in_the_first_healthy_one_after_it():
    env = tiny_env(1, max_epochs=30)
    env.reset(seed=0)
    plan = {1: germinate(0), 2: advance(), 5: advance(), 8: advance(), 11: fossilize()}
    for epoch in range(1, 13):
        if epoch == 11:
            healthy, best = env.population.flat.clone(), env.watch.governor._best.copy()
            env.watch.governor._best[:] = 99.0
            env.population.flat[:] = 0.0
        if epoch == 12:
            assert not env.watch.governor.healthy[0]
            assert env.watch.snapshots.lacks(env.lifecycle)[0]
            env.watch.governor._best[:], env.population.flat[:] = best, healthy
        env.step(everyone(env, plan.get(epoch, WAIT)))
    assert env.watch.governor.healthy[0]
    assert not env.watch.snapshots.lacks(env.lifecycle)[0]


def test_where_guessing_is_right_half_of_the_time_it_is_said_that_no_collapse_can_be_noticed():
    with pytest.warns(UserWarning, match=r"right in 60.0 % of these data.*its collapse will not be noticed"):
        Governor(1, 60.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Governor(1, 50.0)
