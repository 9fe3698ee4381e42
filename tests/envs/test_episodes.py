"""Seeds, determinism, autoreset, refused actions, tasks, and Gymnasium's own checks."""

import itertools
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import envs
from envs.morphogenesis import MorphogenesisEnv, MorphogenesisVectorEnv
from envs.population.optimizer import GradientMeter, sgd_step
from envs.seeding import Purpose, host_seeds
from envs.tasks import make_task, task_arguments, task_names
from envs.vocabulary import Blueprint, LifecycleOp
from tests.envs.helpers import (
    WAIT,
    advance,
    everyone,
    germinate,
    random_valid_actions,
    same_observations,
    task_of,
    tiny_env,
    views_of,
)
from tests.envs.packages import with_their_data


def episode(env, seed, chance=0, epochs=22):
    rng = np.random.default_rng(chance)
    obs, _ = env.reset(seed=seed)
    record = []
    for _ in range(epochs):
        actions = random_valid_actions(env, obs, rng)
        obs, reward, terminated, *_ = env.step(actions)
        record.append((obs, reward, terminated, env.population.flat.clone()))
    return record


def identical(left, right):
    return all(
        same_observations(a[0], b[0])
        and np.array_equal(a[1], b[1])
        and np.array_equal(a[2], b[2])
        and torch.equal(a[3], b[3])
        for a, b in zip(left, right, strict=True)
    )


# ---------------------------------------------------------------------- seeds
@pytest.mark.parametrize("task", [(), "digits_mixed"], ids=["tiny", "digits_mixed"])
def test_the_same_seed_is_the_same_episode_bit_for_bit_in_a_new_env_and_in_a_used_one(task):
    def fresh():
        return tiny_env(3, max_epochs=9) if not task else MorphogenesisVectorEnv(3, task=task, max_epochs=9)

    env = fresh()
    first = episode(env, 7)
    assert identical(first, episode(fresh(), 7))
    assert identical(first, episode(env, 7))


def test_different_seeds_streams_and_hosts_differ():
    hosts = []
    for seed, stream in ((1, 0), (2, 0), (1, 1)):
        env = tiny_env(4, seed_stream=stream)
        env.reset(seed=seed)
        hosts += list(env.population.flat.clone())
    for left, right in itertools.combinations(hosts, 2):
        assert not torch.equal(left, right)


def test_an_int_seed_is_spread_so_that_neighbouring_seeds_share_no_host():
    drawn = [int(value) for seed in range(50) for value in host_seeds(Purpose.ROLLOUT_HOSTS, seed, 8)]
    assert len(set(drawn)) == len(drawn)
    spread, listed = tiny_env(2), tiny_env(2)
    spread.reset(seed=3)
    listed.reset(seed=host_seeds(Purpose.ROLLOUT_HOSTS, 3, 2, 0).tolist())
    assert torch.equal(spread.population.flat, listed.population.flat)


def test_a_listed_seed_is_the_same_host_at_any_place_and_in_a_single_env():
    env, turned = tiny_env(3), tiny_env(3)
    env.reset(seed=[1, 2, 3])
    turned.reset(seed=[3, 1, 2])
    assert torch.equal(env.population.flat, turned.population.flat[[1, 2, 0]])
    single = MorphogenesisEnv(task=task_of(), max_epochs=20)
    single.reset(seed=2)
    assert torch.equal(single.population_of_one.population.flat[0], env.population.flat[1])


def test_reset_without_a_seed_goes_on_to_the_next_episode_of_the_same_seeds():
    env, again = tiny_env(2), tiny_env(2)
    hosts = []
    for each in (env, again):
        each.reset(seed=4)
        hosts.append(each.population.flat.clone())
        each.reset()
        hosts.append(each.population.flat.clone())
    assert torch.equal(hosts[0], hosts[2])
    assert torch.equal(hosts[1], hosts[3])
    assert not torch.equal(hosts[0], hosts[1])


def test_unseeded_envs_differ():
    left, right = tiny_env(1), tiny_env(1)
    left.reset()
    right.reset()
    assert not torch.equal(left.population.flat, right.population.flat)


# ---------------------------------------------------------------------- autoreset
def test_after_an_episodes_end_the_next_step_ignores_its_action_and_starts_a_new_host():
    env = tiny_env(2, max_epochs=5, min_training_epochs=1)
    obs, _ = env.reset(seed=0)
    first = env.population.flat.clone()
    for action in (germinate(), advance(), WAIT, WAIT, WAIT):
        obs, _, terminated, truncated, info = env.step(everyone(env, action))
    assert terminated.all()
    assert not truncated.any()
    assert info["_committed_score"].all()
    assert env.layout.base(obs["obs"], "epoch").tolist() == [1.0, 1.0]
    obs, reward, terminated, _, info = env.step(everyone(env, germinate(1)))
    assert reward.tolist() == [0.0, 0.0]
    assert not terminated.any()
    assert "refused" not in info
    assert "committed_score" not in info
    assert env.layout.base(obs["obs"], "epoch").tolist() == [0.0, 0.0]
    assert env.layout.base(obs["obs"], "last_action_success").tolist() == [1.0, 1.0]
    assert env.layout.base(obs["obs"], "last_op_WAIT").tolist() == [1.0, 1.0]
    assert (obs["blueprint_indices"] == -1).all()
    assert not env.lifecycle.living.any()
    assert not torch.equal(env.population.flat, first)
    assert not env.population.momentum.any()
    assert not env.population.banks
    for _ in range(5):
        *_, terminated, _, info = env.step(everyone(env, WAIT))
    assert terminated.all()


def test_an_autoreset_episode_equals_the_one_that_a_call_of_reset_starts():
    automatic, called = tiny_env(3, max_epochs=8), tiny_env(3, max_epochs=8)
    episode(automatic, 5, epochs=8)
    episode(called, 5, epochs=8)
    obs, *_ = automatic.step(everyone(automatic, germinate()))
    obs_called, _ = called.reset()
    rng = np.random.default_rng(0)
    for _ in range(8):
        assert same_observations(obs, obs_called)
        actions = random_valid_actions(called, obs_called, rng)
        obs, reward, *_ = automatic.step(actions)
        obs_called, reward_called, *_ = called.step(actions)
        assert np.array_equal(reward, reward_called)
        assert torch.equal(automatic.population.flat, called.population.flat)


# ---------------------------------------------------------------------- actions
def test_a_masked_action_becomes_wait_and_says_so_and_an_admitted_one_is_executed():
    env, shadow = (tiny_env(6, max_epochs=30, min_training_epochs=1) for _ in range(2))
    heads = env.task.slots.heads
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=0)
    shadow.reset(seed=0)
    counts = {True: 0, False: 0}
    for _ in range(29):
        valid = random_valid_actions(env, obs, rng)
        wild = rng.integers([head.size for head in heads], size=(6, 8))
        actions = np.where(rng.random(6)[:, None] < 0.5, valid, wild)
        views = views_of(env, obs["action_mask"])
        admitted = []
        for member, action in enumerate(actions):
            op = action[0]
            good = bool(views["op"][member, op])
            for column, head in enumerate(heads):
                if op in head.needed_by and column:
                    row = views[head.name][member]
                    good &= bool((row[op] if head.masked_by_op else row)[action[column]])
            admitted.append(good)
        admitted = np.array(admitted)
        obs, reward, *_, info = env.step(actions)
        obs_shadow, reward_shadow, *_ = shadow.step(np.where(admitted[:, None], actions, 0))
        executed = np.where(admitted, actions[:, 0], LifecycleOp.WAIT)
        success = env.layout.base(obs["obs"], "last_action_success")
        assert np.array_equal(success, admitted.astype(np.float32))
        onehot = np.stack([env.layout.base(obs["obs"], f"last_op_{op.name}") for op in env.task.slots.ops], axis=1)
        assert np.array_equal(onehot.argmax(axis=1), executed)
        assert (onehot.sum(axis=1) == 1).all()
        assert np.array_equal(info.get("_refused", np.zeros(6, bool)), ~admitted)
        if not admitted.all():
            assert all("WAIT was executed" in reason for reason in info["refused"][~admitted])
        assert np.array_equal(reward, reward_shadow)
        assert np.array_equal(obs["action_mask"], obs_shadow["action_mask"])
        assert torch.equal(env.population.flat, shadow.population.flat)
        counts[True] += admitted.sum()
        counts[False] += (~admitted).sum()
    assert min(counts.values()) > 30


def test_the_refusal_names_the_heads_at_fault():
    env = tiny_env(2)
    env.reset(seed=0)
    actions = np.stack([germinate(0, Blueprint.LORA), advance(1)])
    *_, info = env.step(actions)
    assert "no such blueprint now" in info["refused"][0]
    assert "no such op, slot now" in info["refused"][1]


@pytest.mark.parametrize(
    "actions", [np.zeros((2, 7), int), np.zeros((3, 8), int), np.full((2, 8), 99), -np.ones((2, 8))]
)
def test_actions_outside_the_space_are_an_error(actions):
    env = tiny_env(2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions must be"):
        env.step(actions)


def test_step_before_reset_is_an_error():
    with pytest.raises(gymnasium.error.ResetNeeded):
        tiny_env(1).step(WAIT[None])


# ---------------------------------------------------------------------- tasks and reports
def test_the_test_split_never_reaches_observation_or_reward():
    told, untold = tiny_env(3, max_epochs=9, report_test=True), tiny_env(3, max_epochs=9)
    other = tiny_env(3, max_epochs=9, report_test=True)
    x, y = other.population._data["test"]
    other.population._data["test"] = (torch.randn_like(x), y.flip(0))
    records = [episode(env, 3) for env in (told, untold, other)]
    assert identical(records[0], records[1])
    assert identical(records[0], records[2])


def test_the_report_adds_the_committed_networks_result_on_the_test_split():
    env = tiny_env(2, max_epochs=3, report_test=True)
    env.reset(seed=0)
    for _ in range(3):
        *_, info = env.step(everyone(env, WAIT))
    _, accuracy = env.population.evaluate(np.arange(2), np.zeros((2, 3)), env.lifecycle, "test")
    np.testing.assert_allclose(info["test_accuracy"], accuracy)
    np.testing.assert_allclose(info["test_score"], accuracy / 100)


def test_the_digits_splits_are_fixed_stratified_and_disjoint():
    splits = make_task("digits").splits
    sizes = [len(splits[name].y) for name in ("train", "validation", "test")]
    assert sum(sizes) == 1797
    np.testing.assert_allclose(np.array(sizes) / 1797, [0.6, 0.2, 0.2], atol=0.002)
    for split in splits.values():
        share = torch.bincount(split.y, minlength=10) / len(split.y)
        assert share.min() > 0.09
    images = [set(map(bytes, split.x.reshape(len(split.y), -1).numpy())) for split in splits.values()]
    assert not images[0] & images[2]
    assert not images[1] & images[2]
    assert make_task("digits").splits["test"].x.equal(splits["test"].x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "cifar"}, "digits, digits_impaired, digits_mixed"),
        ({"reward_mode": "dense"}, "score, sparse, shaped"),
        ({"max_epochs": 0}, "max_epochs"),
        ({"num_envs": 0}, "num_envs"),
        ({"counterfactual_interval": 0}, "counterfactual_interval"),
        ({"embargo_epochs": 0}, "embargo_epochs"),
        ({"parameter_budget": -5}, "parameter_budget"),
    ],
)
def test_impossible_settings_are_named_with_the_choices(settings, message):
    with pytest.raises(ValueError, match=message):
        MorphogenesisVectorEnv(**settings)


# ---------------------------------------------------------------------- optimiser
def test_rows_are_clipped_and_moved_as_torch_sgd_moves_each_alone():
    generator = torch.Generator().manual_seed(0)
    flat, momentum = torch.randn(3, 7, generator=generator), torch.zeros(3, 7)
    alone = [row.clone().requires_grad_() for row in flat]
    optimisers = [torch.optim.SGD([row], lr=lr, momentum=0.9) for row, lr in zip(alone, (0.1, 0.02, 0.3), strict=True)]
    for size in (0.1, 1.0, 30.0):
        gradient = size * torch.randn(3, 7, generator=generator)
        sgd_step(flat, gradient, momentum, torch.tensor([[0.1], [0.02], [0.3]]))
        for row, optimiser, own in zip(alone, optimisers, gradient, strict=True):
            row.grad = own.clone()
            torch.nn.utils.clip_grad_norm_([row], 1.0)
            optimiser.step()
    torch.testing.assert_close(flat, torch.stack(alone).detach(), atol=1e-5, rtol=1e-5)


def test_gradient_health_is_counted_per_tensor_over_the_epoch():
    meter = GradientMeter()
    batches = torch.tensor(
        [
            [[0.3, 0.4, 1.0, 0.0, 0.0, 1.0, 9.0, 9.0], [0.0] * 8, [3.0, 0.0, 30.0, 0.0, torch.nan, 1.0, 0.0, 0.0]],
            [[0.3, 0.4, 1.0, 0.0, 0.0, 1.0, 9.0, 9.0], [0.0] * 8, [3.0, 0.0, 30.0, 0.0, 1.0, 1.0, 0.0, 0.0]],
        ]
    )
    for batch in batches:
        meter.add(batch.square().unflatten(1, (4, 2)).sum(2))  # four parameters of two numbers each
    health = meter.read(torch.tensor([[True, True, True, False]] * 3))
    assert health.norm[0] == pytest.approx((0.25 + 1 + 1) ** 0.5)
    assert health.vanishing.tolist() == [0.0, 1.0, 0.0]
    assert health.exploding.tolist() == pytest.approx([0.0, 0.0, 2 / 3])
    assert health.health.tolist() == pytest.approx([1.0, 0.5, 1 - 0.8 * 2 / 3])
    with pytest.raises(RuntimeError, match="no gradient"):
        meter.read(torch.ones(3, 4, dtype=torch.bool))


# ---------------------------------------------------------------------- Gymnasium
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("mode", ["score", "shaped"])
def test_gymnasium_finds_nothing_wrong_with_the_single_env(mode):
    check_env(MorphogenesisEnv(task=task_of(), max_epochs=8, reward_mode=mode), skip_render_check=True)


def test_gymnasium_makes_single_and_vector_envs_by_id():
    single = gymnasium.make(envs.ENV_ID, task="digits_impaired", max_epochs=3)
    obs, _ = single.reset(seed=0)
    assert obs in single.observation_space
    assert single.unwrapped.action_masks().shape == (41,)
    obs, reward, *_ = single.step(single.action_space.sample())
    assert isinstance(reward, float)
    vector = gymnasium.make_vec("esper/Morphogenesis-v0", num_envs=4, task="digits_mixed", max_epochs=3)
    assert isinstance(vector.unwrapped, MorphogenesisVectorEnv)
    obs, _ = vector.reset(seed=0)
    assert obs in vector.observation_space
    assert vector.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.NEXT_STEP
    for _ in range(5):
        obs, reward, *_ = vector.step(vector.action_space.sample())
        assert obs in vector.observation_space
        assert reward.shape == (4,)


@pytest.mark.parametrize(
    "task", with_their_data(name for name in task_names() if "data_dir" not in task_arguments(name))
)
def test_every_registered_task_runs(task):
    env = MorphogenesisVectorEnv(2, task=task, max_epochs=2)
    env.reset(seed=0)
    for _ in range(2):
        *_, terminated, _, info = env.step(everyone(env, WAIT))
    assert terminated.all()
    assert (info["committed_accuracy"] > 0).all()


def test_the_world_never_knows_ray():
    code = "import envs.morphogenesis, sys; assert not [m for m in sys.modules if m.split('.')[0] == 'ray']"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=envs.__path__[0] + "/..")
