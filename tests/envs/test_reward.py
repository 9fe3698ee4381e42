import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.hosts.cnn import CnnVariant
from envs.reward import COMPONENTS, RewardConfig
from envs.vocabulary import LifecycleOp
from tests.envs.helpers import EAGER, WAIT, act, everyone, random_valid_actions, schedule, tiny_env

EPOCHS = 16


def play(env, seed, op_weights=EAGER, disturb=None):
    """One episode of every member: rewards [T, N], components [T, N, 8], first and last scores, and last infos."""
    rng = np.random.default_rng(seed)
    obs, info = env.reset(seed=seed)
    start, alive = info["score"].copy(), np.ones(env.num_envs, bool)
    rewards, parts, last = [], [], [None] * env.num_envs
    for epoch in range(EPOCHS):
        if disturb is not None:
            disturb(epoch, env)
        obs, reward, terminated, truncated, info = env.step(random_valid_actions(env, obs, rng, op_weights))
        assert not truncated.any()
        rewards.append(np.where(alive, reward, 0.0))
        parts.append(np.stack([info[f"reward_{name}"] for name in COMPONENTS], axis=1) * alive[:, None])
        for member in np.flatnonzero(alive & terminated):
            last[member] = {name: info[name][member] for name in info}
        alive &= ~terminated
    assert not alive.any()
    return np.array(rewards), np.array(parts), start, last


def literal_score(env, member, accuracy):
    """accuracy/100 − λ·log2(1 + extra/host) − κ·living, from the committed seeds."""
    host = env.lifecycle.costs.host[member]
    living = int((env.lifecycle.stage[member] == 6).sum())
    extra = int(env.lifecycle.extra_parameters[member])
    return accuracy / 100 - 0.03 * np.log2(1 + extra / host) - 0.02 * living


@pytest.mark.parametrize("mode", ["score", "sparse"])
@pytest.mark.parametrize("seed", range(3))
def test_the_return_is_the_committed_score_minus_the_initial_score(mode, seed):
    env = tiny_env(5, max_epochs=EPOCHS, reward_mode=mode, path_rent=0.02, min_training_epochs=1)
    rewards, parts, start, last = play(env, seed)
    for member, info in enumerate(last):
        score = literal_score(env, member, info["committed_accuracy"])
        assert info["committed_score"] == pytest.approx(score, abs=1e-12)
        assert rewards[:, member].sum() == pytest.approx(score - start[member], abs=1e-9)
        assert set(np.unique(env.lifecycle.stage[member])) <= {1, 6}, "only fossils are committed"
        accuracy = env.watch._evaluate(np.array([member]))[1][0]
        assert info["committed_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    np.testing.assert_allclose(parts.sum(axis=2), rewards, atol=1e-12)
    assert not parts[:, :, 3:].any()
    if mode == "sparse":
        assert not rewards[:-1].any()
    assert sum(int(info["seeds_fossilized"]) for info in last) > 0


@pytest.mark.parametrize("mode", ["score", "sparse"])
def test_a_governors_stop_costs_one_more(mode):
    env = tiny_env(4, max_epochs=EPOCHS, reward_mode=mode, path_rent=0.02, min_training_epochs=1)

    def disturb(epoch, env):
        if epoch in (3, 9):
            env.population.flat[epoch // 3] = np.nan

    rewards, parts, start, last = play(env, 1, disturb=disturb)
    stopped = np.array([info["panic"] != 0 for info in last])
    assert stopped.tolist() == [False, True, False, True]
    final = np.array([info["committed_score"] for info in last])
    np.testing.assert_allclose(rewards.sum(axis=0), final - start - stopped, atol=1e-9)
    np.testing.assert_allclose(parts[:, :, COMPONENTS.index("governor")].sum(axis=0), -1.0 * stopped)


def test_both_modes_pay_the_same_for_the_same_episode():
    totals = []
    for mode in ("score", "sparse"):
        env = tiny_env(3, max_epochs=EPOCHS, reward_mode=mode, min_training_epochs=1)
        totals.append(sum(play(env, seed)[1].sum(axis=0) for seed in (5, 6)))  # nothing is left over for the second
    np.testing.assert_allclose(*totals, atol=1e-9)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_shaping_telescopes_to_nothing_over_an_episode(gamma):
    env = tiny_env(4, max_epochs=EPOCHS, reward_mode="shaped", gamma=gamma, min_training_epochs=1)

    def disturb(epoch, env):
        if epoch == 9:
            env.population.flat[2] = np.nan

    rewards, parts, *_ = play(env, 2, disturb=disturb)
    shaping = parts[:, :, COMPONENTS.index("shaping")]
    assert np.abs(shaping).max() > 0.01
    np.testing.assert_allclose((gamma ** np.arange(EPOCHS)[:, None] * shaping).sum(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(parts.sum(axis=2), rewards, atol=1e-12)
    assert parts[:, :, COMPONENTS.index("contribution")].any()


def test_shaped_is_score_plus_two_terms():
    plain, shaped = (
        play(tiny_env(3, max_epochs=EPOCHS, reward_mode=mode, min_training_epochs=1), 7)[1]
        for mode in ("score", "shaped")
    )
    np.testing.assert_array_equal(plain[:, :, :6], shaped[:, :, :6])


@pytest.mark.parametrize("mode", ["score", "sparse"])
def test_a_germination_costs_once_beside_the_score(mode):
    free, dear = (
        tiny_env(4, max_epochs=EPOCHS, reward_mode=mode, germination_cost=cost, min_training_epochs=1)
        for cost in (0.0, 0.25)
    )
    usual, _, _, ends = play(free, 3)
    rewards, parts, _, last = play(dear, 3)
    for member, (info, same) in enumerate(zip(last, ends, strict=True)):
        germinated = sum(int(info[f"seeds_{fate}"]) for fate in ("fossilized", "pruned", "unfinished", "rolled_back"))
        assert germinated > 0
        assert info["committed_score"] == same["committed_score"]
        assert rewards[:, member].sum() == pytest.approx(usual[:, member].sum() - 0.25 * germinated, abs=1e-9)
    np.testing.assert_allclose(parts.sum(axis=2), rewards, atol=1e-12)


def test_never_growing_pays_no_rent():
    env = tiny_env(3, max_epochs=EPOCHS, path_rent=0.5, compute_rent=0.5)
    _, parts, *_ = play(env, 0, {op: float(op == LifecycleOp.WAIT) for op in LifecycleOp})
    assert not parts[:, :, 1:].any()


def test_rent_is_paid_in_full_from_germination_on_gate_included_and_returned_at_a_prune():
    env = tiny_env(1, max_epochs=20, path_rent=0.02)
    env.reset(seed=0)
    plan = schedule(0, start=1, style=3, fossilised=False) | {12: np.array([3, 0, 0, 0, 0, 0, 0, 0])}
    for epoch in range(1, 14):
        *_, info = env.step(everyone(env, plan.get(epoch, WAIT)))
        rent, path = info["reward_parameter_rent"][0], info["reward_path_rent"][0]
        size = env.lifecycle.costs.blueprint[0, 4, 0] + env.lifecycle.costs.gate[0, 0]
        full = 0.03 * np.log2(1 + size / env.lifecycle.costs.host[0])
        expected = {1: (-full, -0.02), 12: (full, 0.02)}.get(epoch, (0.0, 0.0))
        assert (rent, path) == pytest.approx(expected, abs=1e-12)


def test_computing_costs_by_the_doublings_of_what_never_growing_takes():
    """Hand-computed: a depthwise seed in TRAINING from epoch 3 of 6 on, and no counterfactual before its end."""
    env = tiny_env(2, (CnnVariant((4, 8), (1, 3)),), max_epochs=6, compute_rent=0.1, counterfactual_interval=99)
    env.reset(seed=0)
    train, val = 3 * 2 * 16, len(env.task.splits["validation"].y)
    # 2 FLOPs per weight and pixel: 1×1 from 1 to 4 channels at 8×8, 3×3 from 4 to 8 at 4×4, head 8 to 10.
    host = 2 * (4 * 64 + 8 * 4 * 9 * 16 + 8 * 10)
    seed = 2 * (4 * 9 + 4 * 4) * 16  # 3×3 per channel and 1×1, behind the pooling of the first block
    spent, alone, total = val * host, val * host, 0.0
    for epoch in range(1, 7):
        action = {2: act(LifecycleOp.GERMINATE), 3: act(LifecycleOp.ADVANCE)}.get(epoch, WAIT)
        actions = everyone(env, WAIT)
        actions[0] = action
        before = -0.1 * np.log2(spent / alone)
        # An incubated seed computes in training alone; what has no weights yet computes nothing.
        spent += train * (host + seed * (epoch >= 3)) + val * host
        alone += (train + val) * host
        *_, terminated, _, info = env.step(actions)
        assert info["reward_compute_rent"][0] == pytest.approx(-0.1 * np.log2(spent / alone) - before, abs=1e-12)
        assert info["reward_compute_rent"][1] == 0.0
        total += info["reward_compute_rent"][0]
    assert terminated.all()
    assert info["training_flops"].tolist() == [spent, alone]
    assert total == pytest.approx(-0.1 * np.log2(spent / alone), abs=1e-12)
    assert total < 0.0


@pytest.mark.parametrize("mode", ["score", "sparse"])
def test_the_compute_rent_is_paid_in_full_beside_the_same_score(mode):
    free, dear = (
        tiny_env(4, max_epochs=EPOCHS, reward_mode=mode, compute_rent=rent, min_training_epochs=1)
        for rent in (0.0, 0.1)
    )
    usual, _, _, ends = play(free, 3)
    rewards, parts, _, last = play(dear, 3)
    alone = dear.population.never_grown_flops(np.full(4, EPOCHS))
    for member, (info, same) in enumerate(zip(last, ends, strict=True)):
        assert info["committed_score"] == same["committed_score"]
        assert info["panic"] == 0
        doublings = np.log2(info["training_flops"] / alone[member])
        assert doublings > 0.0
        assert rewards[:, member].sum() == pytest.approx(usual[:, member].sum() - 0.1 * doublings, abs=1e-9)
    np.testing.assert_allclose(parts.sum(axis=2), rewards, atol=1e-12)


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.floats(0.0, 0.1), st.floats(0.0, 0.1), st.integers(1, 4))
def test_nothing_pays_but_the_end_result_for_any_rents(seed, parameter_rent, path_rent, training):
    env = tiny_env(
        2,
        max_epochs=EPOCHS,
        parameter_rent=parameter_rent,
        path_rent=path_rent,
        min_training_epochs=training,
        task_changes={"batches": 1, "samples": 40},
    )
    rewards, parts, start, last = play(env, seed)
    stopped = np.array([info["panic"] != 0 for info in last])
    final = np.array([info["committed_score"] for info in last])
    np.testing.assert_allclose(rewards.sum(axis=0), final - start - stopped, atol=1e-9)
    np.testing.assert_allclose(parts.sum(axis=2), rewards, atol=1e-12)


def test_an_unknown_mode_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="score, sparse, shaped"):
        RewardConfig(mode="dense")
