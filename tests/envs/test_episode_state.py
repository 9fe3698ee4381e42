"""Nothing of an episode outlives it: a used env is a fresh one, bit for bit, whatever was done to it before."""

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.episode_state import EpisodeArrays, EpisodeState, per_host, per_slot
from envs.grown import GrownSeeds
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.tasks import Split, make_task
from envs.tasks.cifar import SCALE, cifar_task
from envs.vocabulary import Blueprint, LifecycleOp, SeedStage
from tests.envs.helpers import EAGER, WAIT, everyone, germinate, random_valid_actions
from tests.envs.packages import with_their_data

HOSTS, EPOCHS = 2, 16
COMMITTING = EAGER | {LifecycleOp.FOSSILIZE: 6.0, LifecycleOp.GERMINATE: 2.0, LifecycleOp.SET_ALPHA_TARGET: 0.1}
IMAGES = ("digits", "digits_impaired", "digits_mixed", "digits_scale")
FROM_FILES = (*IMAGES, "tabular", "tabular_wide", "text", "text_attending", "mnist5k_impaired", "mnist5k_mixed")


@cache
def small(name):
    """A task whose epochs are cheap: real hosts, few samples."""
    if name == "cifar_scale":
        rng = np.random.default_rng(0)
        images = torch.from_numpy(rng.normal(size=(48, 8, 8, 3)).astype(np.float32))
        split = Split(images, torch.arange(48) % 10)
        task = cifar_task(name, SCALE, dict.fromkeys(("train", "validation", "test"), split), internal_levels=True)
    else:
        task = make_task(name)
    splits = {key: Split(split.x[:48], split.y[:48]) for key, split in task.splits.items()}
    return replace(task, splits=splits, batch_size=8, batches_per_epoch=2)


def make(name):
    return MorphogenesisVectorEnv(
        HOSTS, task=small(name), max_epochs=EPOCHS, min_training_epochs=1, embargo_epochs=1, counterfactual_interval=2
    )


def live(env, obs, rng, steps, break_at=None):
    """Random valid actions; says whether anything fossilised and whether the governor rolled anything back."""
    fossils = rolled_back = False
    for step in range(steps):
        if step == break_at:
            env.population.flat[rng.integers(HOSTS)] = torch.nan
        obs, *_, info = env.step(random_valid_actions(env, obs, rng, COMMITTING))
        fossils |= bool((env.lifecycle.stage == SeedStage.FOSSILIZED).any())
        rolled_back |= bool(info.get("panic", np.zeros(HOSTS)).any())
    return fossils, rolled_back


def trail(env, obs, seed, steps=EPOCHS + 3):
    """Everything that comes out of an env, and all weights, from a reset through its episode into the next one."""
    rng, seen = np.random.default_rng(seed), [obs]
    first = True
    for _ in range(steps):
        # At once where a seed of the last episode may have lived: what was measured of it must not be shown.
        germinating = everyone(env, germinate(0, _first_blueprint(env)))
        actions = germinating if first else random_valid_actions(env, obs, rng, COMMITTING)
        first = False
        obs, reward, terminated, truncated, info = env.step(actions)
        seen.append({**obs, "reward": reward, "terminated": terminated, "truncated": truncated, **info})
    banks = {key: bank.rows for key, bank in env.population.banks.items()}
    weights = [env.population.flat, env.population.momentum, *env.population.buffers.values()]
    weights += [tensor for rows in banks.values() for tensor in (rows.flat, rows.momentum)]
    return seen, [tensor.clone() for tensor in weights], list(banks)


def _first_blueprint(env):
    return next(kind for kind in env.task.slots.blueprints if env.lifecycle.costs.offered[kind])


def same(left, right):
    (seen, weights, banks), (other_seen, other_weights, other_banks) = left, right
    assert banks == other_banks
    for step, (ours, theirs) in enumerate(zip(seen, other_seen, strict=True)):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert _equal(ours[name], theirs[name]), f"step {step}: {name}: {ours[name]} is not {theirs[name]}"
    assert all(torch.equal(*pair) for pair in zip(weights, other_weights, strict=True))


def _equal(left, right):
    return np.array_equal(left, right, equal_nan=np.issubdtype(np.asarray(left).dtype, np.floating))


@pytest.mark.parametrize("name", with_their_data((*FROM_FILES, "cifar_scale")))
def test_a_used_env_is_a_fresh_one_in_every_task(name):
    """After fossils, prunes, whole episodes with autoreset, and a rollback by the governor."""
    for seed, steps, break_at in ((0, EPOCHS, None), (1, 2 * EPOCHS + 5, 12)):
        used, fresh = make(name), make(name)
        obs, _ = used.reset(seed=99 + seed)
        fossils, rolled_back = live(used, obs, np.random.default_rng(seed), steps, break_at)
        assert fossils, "a history in which nothing fossilised shows little"
        assert rolled_back == (break_at is not None)
        same(*(trail(env, env.reset(seed=seed)[0], seed) for env in (used, fresh)))


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 2 * EPOCHS), st.none() | st.integers(1, EPOCHS), st.booleans())
def test_no_history_shows_after_a_reset(seed, steps, break_at, planted):
    used, fresh = make("digits_impaired"), make("digits_impaired")
    grown = GrownSeeds.everywhere(Blueprint.DEPTHWISE, HOSTS, used.task.slots)
    obs, _ = used.reset(seed=seed + 1, options={"grown": grown} if planted else None)
    live(used, obs, np.random.default_rng(seed), steps, break_at)
    same(*(trail(env, env.reset(seed=seed)[0], seed, steps=6) for env in (used, fresh)))


def test_seeds_planted_in_a_used_host_have_weights_of_their_own():
    used, fresh = make("digits"), make("digits")
    grown = GrownSeeds.everywhere(Blueprint.DEPTHWISE, HOSTS, used.task.slots)
    used.reset(seed=1, options={"grown": grown})
    for _ in range(3):
        used.step(everyone(used, WAIT))
    same(*(trail(env, env.reset(seed=2, options={"grown": grown})[0], 0, steps=3) for env in (used, fresh)))


def test_an_autoreset_begins_the_episode_that_a_call_of_reset_begins():
    automatic, called = make("digits_mixed"), make("digits_mixed")
    rng = np.random.default_rng(3)
    obs, _ = automatic.reset(seed=5)
    fossils, _ = live(automatic, obs, rng, EPOCHS)
    assert fossils
    called.reset(seed=5)
    obs_called, _ = called.reset()
    obs_automatic, reward, terminated, *_ = automatic.step(everyone(automatic, WAIT))
    assert not reward.any()
    assert not terminated.any()
    same(trail(automatic, obs_automatic, 1), trail(called, obs_called, 1))


def test_a_mask_resets_the_hosts_that_it_marks_and_no_other():
    env, twin = make("digits_impaired"), make("digits_impaired")
    rng = np.random.default_rng(0)
    for each in (env, twin):
        obs, _ = each.reset(seed=[1, 2])
    for _ in range(9):
        actions = random_valid_actions(env, obs, rng, COMMITTING)
        obs, *_ = env.step(actions)
        twin.step(actions)
    started, info = env.reset(seed=[None, 7], options={"reset_mask": np.array([False, True])})
    fresh = make("digits_impaired")
    begun, fresh_info = fresh.reset(seed=[1, 7])
    for name in obs:
        assert np.array_equal(started[name][0], obs[name][0])
        assert np.array_equal(started[name][1], begun[name][1])
    for name in info:
        assert info[name][1] == fresh_info[name][1]
    for tensor, untouched, new in zip(
        (env.population.flat, env.population.momentum),
        (twin.population.flat, twin.population.momentum),
        (fresh.population.flat, fresh.population.momentum),
        strict=True,
    ):
        assert torch.equal(tensor[0], untouched[0])
        assert torch.equal(tensor[1], new[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset_mask": np.array([True])}, "must be 2 bools"),
        ({"reset_mask": np.array([False, False])}, "at least one of them True"),
        ({"reset_mask": np.array([1, 0])}, "must be 2 bools"),
        ({"mask": np.array([True, False])}, "knows the options reset_mask and grown, got mask"),
    ],
)
def test_what_reset_cannot_do_is_refused_and_changes_nothing(options, message):
    env = make("digits")
    obs, _ = env.reset(seed=0)
    live(env, obs, np.random.default_rng(0), 5)
    before = env.population.flat.clone()
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)
    assert torch.equal(env.population.flat, before)


def test_what_an_env_has_given_out_never_changes():
    env = make("digits_impaired")
    rng, given = np.random.default_rng(2), []
    obs, info = env.reset(seed=5)
    for step in range(2 * EPOCHS + 2):
        given.append(((obs, info), copy.deepcopy((obs, info))))
        obs, *flags, info = env.step(random_valid_actions(env, obs, rng, COMMITTING))
        given.append((flags, copy.deepcopy(flags)))
        if step % 7 == 6:
            obs, info = env.reset(options={"reset_mask": np.array([True, False])})
    for kept, then in given:
        np.testing.assert_equal(kept, then)


def test_whatever_an_env_keeps_of_its_episodes_is_walked_by_its_resets():
    """No array or tensor of an env, or of what it holds, has a row per host without an owner that a reset knows."""
    env = make("digits_mixed")
    owners = set(map(id, env.episode_state))
    exempt = {"mask", "watch"}  # computed anew from the lifecycle at every observation; looked into beside the env
    for name, value in (*vars(env).items(), *vars(env.watch).items()):
        if id(value) in owners or name in exempt:
            continue
        assert not (isinstance(value, np.ndarray | torch.Tensor) and value.shape[:1] == (HOSTS,)), name
        held = vars(value).items() if hasattr(value, "__dict__") and not name.endswith("space") else ()
        assert not any(isinstance(part, EpisodeState) for _, part in held), name
    for state in env.episode_state:
        if isinstance(state, EpisodeArrays):
            arrays = {name for name, value in vars(state).items() if isinstance(value, np.ndarray)}
            assert arrays - {"enabled"} == set(state._declared), type(state).__name__  # enabled slots are the task's


def test_an_array_is_made_and_started_anew_from_its_declaration():
    class Two(EpisodeArrays):
        plain = per_host(2, 3)
        sure = per_host(True)
        cell = per_slot(float("nan"))

    two = Two(4, num_slots=2)
    assert (two.plain.shape, two.plain.dtype, two.sure.dtype) == ((4, 3), np.int64, np.bool_)
    assert two.cell.shape == (4, 2)
    two.plain[:], two.sure[:], two.cell[:] = 9, False, 9.0
    two.start(np.array([1, 3]))
    assert two.plain[:, 0].tolist() == [9, 2, 9, 2]
    assert two.sure.tolist() == [False, True, False, True]
    assert np.isnan(two.cell).all(axis=1).tolist() == [False, True, False, True]
