"""Hosts that are trained in one call are as independent as hosts that are trained one by one."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from envs.hosts.cnn import CnnVariant
from envs.morphogenesis import MorphogenesisEnv, MorphogenesisVectorEnv
from envs.seeding import episode_generator
from envs.vocabulary import AlphaTarget, Blueprint, LifecycleOp, SeedStage
from tests.envs.helpers import (
    CNN_BLUEPRINTS,
    STYLE_OF,
    TINY,
    WAIT,
    act,
    advance,
    everyone,
    fossilize,
    germinate,
    schedule,
    stages,
    task_of,
    tiny_env,
)

# Four members with different lives: two seeds at once, a retarget and a prune, a fossil by GATE, nothing.
LIVES = [
    schedule(0, 1, 3, Blueprint.CONV_LIGHT) | {11: germinate(2, Blueprint.ATTENTION), 12: advance(2)},
    schedule(1, 1, 3, Blueprint.DEPTHWISE, fossilised=False, style=1)
    | {9: act(LifecycleOp.SET_ALPHA_TARGET, 1, style=3, target=AlphaTarget.HALF, speed=1), 12: act(3, 1, speed=1)},
    schedule(0, 2, 3, Blueprint.DEPTHWISE, style=3) | {11: germinate(1, Blueprint.NORM), 12: advance(1)},
    {},
]
EPOCHS = 14


def actions_at(epoch, members=range(4)):
    return np.stack([LIVES[member].get(epoch, WAIT) for member in members])


def play(env, members, epochs=EPOCHS, disturb=None):
    """Follow the members' lives; the observations, rewards and weights of every epoch."""
    record = []
    for epoch in range(1, epochs + 1):
        if disturb is not None:
            disturb(epoch, env)
        obs, reward, *_, info = env.step(actions_at(epoch, members))
        record.append((obs, reward, env.population.flat.clone(), info))
    return record


def test_the_script_of_these_tests_is_executed_as_written():
    env = tiny_env(4)
    env.reset(seed=[1, 2, 3, 4])
    for *_, info in play(env, range(4)):
        assert "refused" not in info
    assert [row[:2] for row in stages(env)] == [
        ["FOSSILIZED", "DORMANT"],
        ["DORMANT", "PRUNED"],
        ["FOSSILIZED", "TRAINING"],
        ["DORMANT", "DORMANT"],
    ]


def noisy_fields(env):
    """Shares of vanishing tensors, and what follows from them: a bias before a batch norm has a gradient of nothing
    but rounding, which lies around the threshold."""
    return np.array([field.name.endswith(("vanishing", "health")) for field in env.layout.fields])


def check_spared(left, right, spared, exactly, compared):
    """The spared members of two runs are the same.

    They are so bit for bit until the broken member is stopped; from then on fewer members ride in some calls, which
    may add up in another order.
    """
    (obs, reward, flat, _), (obs_right, reward_right, flat_right, _) = left, right
    for name in ("blueprint_indices", "action_mask"):
        assert np.array_equal(obs[name][spared], obs_right[name][spared])
    if exactly:
        assert np.array_equal(obs["obs"][spared], obs_right["obs"][spared])
        assert np.array_equal(reward[spared], reward_right[spared])
        assert torch.equal(flat[spared], flat_right[spared])
    np.testing.assert_allclose(obs["obs"][spared][:, compared], obs_right["obs"][spared][:, compared], atol=1e-4)
    np.testing.assert_allclose(reward[spared], reward_right[spared], atol=1e-6)
    torch.testing.assert_close(flat[spared], flat_right[spared], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("broken", range(4))
def test_nan_weights_in_one_member_never_reach_another(broken):
    healthy, other = (tiny_env(4) for _ in range(2))
    for env in (healthy, other):
        env.reset(seed=[1, 2, 3, 4])

    def disturb(epoch, env):
        if epoch == 8:
            env.population.flat[broken] = torch.nan

    spared = [member for member in range(4) if member != broken]
    records = zip(play(healthy, range(4)), play(other, range(4), disturb=disturb), strict=True)
    for epoch, (left, right) in enumerate(records, start=1):
        check_spared(left, right, spared, exactly=epoch <= 8, compared=~noisy_fields(healthy))


@pytest.mark.parametrize("broken", range(3))
def test_nan_weights_in_one_members_seeds_never_reach_another(broken):
    healthy, other = (tiny_env(4) for _ in range(2))
    for env in (healthy, other):
        env.reset(seed=[1, 2, 3, 4])

    def disturb(epoch, env):
        if epoch == 7:
            for bank in env.population.banks.values():
                bank.rows.flat[bank.rows.members == broken] = torch.nan

    spared = [member for member in range(4) if member != broken]
    records = zip(play(healthy, range(4), 10), play(other, range(4), 10, disturb), strict=True)
    for epoch, (left, right) in enumerate(records, start=1):
        check_spared(left, right, spared, exactly=epoch <= 7, compared=~noisy_fields(healthy))


def test_a_member_does_not_depend_on_who_else_is_in_the_population():
    everybody, without = tiny_env(4), tiny_env(3)
    everybody.reset(seed=[1, 2, 3, 4])
    without.reset(seed=[1, 3, 4])
    for left, right in zip(play(everybody, range(4)), play(without, [0, 2, 3]), strict=True):
        torch.testing.assert_close(left[2][[0, 2, 3]], right[2], atol=1e-5, rtol=1e-5)
        compared = ~noisy_fields(without)
        np.testing.assert_allclose(left[0]["obs"][[0, 2, 3]][:, compared], right[0]["obs"][:, compared], atol=1e-3)
        assert np.array_equal(left[0]["action_mask"][[0, 2, 3]], right[0]["action_mask"])


def test_a_population_equals_single_hosts():
    together = MorphogenesisVectorEnv(4, task=task_of(), max_epochs=20)
    together.reset(seed=[5, 6, 7, 8])
    record = play(together, range(4))
    for member in range(4):
        single = MorphogenesisEnv(task=task_of(), max_epochs=20)
        single.reset(seed=5 + member)
        for epoch, (obs, reward, flat, _) in enumerate(record, start=1):
            obs_alone, reward_alone, *_ = single.step(LIVES[member].get(epoch, WAIT))
            alone = single.population_of_one.population.flat[0]
            torch.testing.assert_close(flat[member], alone, atol=1e-5, rtol=1e-5)
            compared = ~noisy_fields(together)
            np.testing.assert_allclose(obs["obs"][member, compared], obs_alone["obs"][compared], atol=1e-3)
            np.testing.assert_allclose(reward[member], reward_alone, atol=1e-6)
            assert np.array_equal(obs["action_mask"][member], obs_alone["action_mask"])
            assert np.array_equal(obs["blueprint_indices"][member], obs_alone["blueprint_indices"])


def test_accuracy_is_a_count_that_does_not_depend_on_the_size_of_the_population():
    """With many members evaluation runs in smaller pieces; the share of hits must still be the same number."""
    many = MorphogenesisVectorEnv(90, task="digits_impaired", max_epochs=4)
    one = MorphogenesisEnv(task="digits_impaired", max_epochs=4)
    _, info = many.reset(seed=range(90))
    for member in (0, 17, 89):
        _, info_alone = one.reset(seed=member)
        assert info["val_accuracy"][member] == info_alone["val_accuracy"]


def torch_host(variant, classes=10):
    """The host as anybody would write it in plain torch."""
    layers, channels = [], 1
    for width, kernel in zip(variant.widths, variant.kernels, strict=True):
        layers.append(nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False))
        layers.append(nn.BatchNorm2d(width, momentum=0.3))
        layers += [nn.ReLU(), nn.AvgPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


@pytest.mark.parametrize(("lr_spread", "widths"), [(1.0, (4, 8, 8)), (4.0, (4, 8, 8)), (1.0, (6, 10, 1))])
def test_a_member_learns_as_a_plain_torch_network_with_plain_torch_sgd(lr_spread, widths):
    variant = CnnVariant(widths, (3, 1, 3))
    env = tiny_env(3, variants=(variant,), task_changes={"lr_spread": lr_spread}, max_epochs=6)
    env.reset(seed=[1, 2, 3])
    population, member = env.population, 1
    factor = float(population.lr_factor[member])
    assert (factor == 1.0) == (lr_spread == 1.0)
    net = torch_host(variant)
    with torch.no_grad():
        for parameter, ours in zip(net.parameters(), population.layout.views(population.flat).values(), strict=True):
            parameter.copy_(ours[member])
    optimiser = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    train, validation = env.task.splits["train"], env.task.splits["validation"]
    for epoch in range(3):
        *_, info = env.step(everyone(env, WAIT))
        net.train()
        for batch in population._order[member, epoch]:
            optimiser.param_groups[0]["lr"] = env.task.learning_rate(epoch / 6) * factor
            optimiser.zero_grad()
            index = torch.from_numpy(batch.astype(np.int64))
            nn.functional.cross_entropy(net(train.x[index].permute(0, 3, 1, 2)), train.y[index]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
        flat = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
        torch.testing.assert_close(population.flat[member], flat, atol=1e-5, rtol=1e-4)
        net.eval()
        with torch.no_grad():
            logits = net(validation.x.permute(0, 3, 1, 2))
        loss = nn.functional.cross_entropy(logits, validation.y)
        accuracy = 100 * (logits.argmax(1) == validation.y).float().mean()
        assert env.progress.loss[member, -1] == pytest.approx(float(loss), abs=1e-4)
        assert info["val_accuracy"][member] == pytest.approx(float(accuracy), abs=1e-4)


def test_every_pass_over_the_training_set_visits_every_sample_once():
    env = tiny_env(2, max_epochs=20)
    env.reset(seed=0)
    samples = len(env.task.splits["train"].y)
    order = env.population._order.reshape(2, -1)
    for start in range(0, order.shape[1] - samples, samples):
        for row in order[:, start : start + samples]:
            assert sorted(row) == list(range(samples))
    assert not np.array_equal(order[0], order[1])


NARROW = CnnVariant(widths=(2, 4, 6), kernels=(1, 3, 1))
WIDE = CnnVariant(widths=(8, 9, 16), kernels=(3, 3, 3))
CELLS = [(blueprint, slot) for blueprint, slot in itertools.product(CNN_BLUEPRINTS, range(3))]


def seeds_that_draw(variant, count, variants=2):
    """Seeds whose episode draws this variant first of all."""
    drawn = (s for s in itertools.count() if episode_generator(s, 0).integers(variants) == variant)
    return list(itertools.islice(drawn, count))


def leading_corner(population, narrow):
    """The narrow members' own parameters, out of the wide rows."""
    mask = population.layout.present(population.task.host.parameters(narrow)) > 0
    return population.flat[:, torch.from_numpy(mask)], population.flat[:, torch.from_numpy(~mask)]


@pytest.mark.parametrize("style", STYLE_OF.values(), ids=STYLE_OF)
def test_a_masked_member_equals_a_really_narrow_host(style):
    seeds = seeds_that_draw(0, len(CELLS) + 1)
    narrow = tiny_env(len(seeds), variants=(NARROW, NARROW), parameter_budget=10**9)
    mixed = tiny_env(len(seeds) + 1, variants=(NARROW, WIDE), parameter_budget=10**9)
    narrow.reset(seed=seeds)
    mixed.reset(seed=seeds + seeds_that_draw(1, 1))
    assert [mixed.population.variant[member] for member in (0, -2, -1)] == [0, 0, 1]
    plan = {1: "germinate", 2: advance, 6: advance, 9: advance, 11: fossilize}
    for epoch in range(1, 14):
        actions = everyone(narrow, WAIT)
        for member, (blueprint, slot) in enumerate(CELLS):  # the last narrow member stays without a seed
            if plan.get(epoch) == "germinate":
                actions[member] = germinate(slot, blueprint, style=style)
            elif epoch in plan:
                actions[member] = plan[epoch](slot)
        obs, reward, *_, info = narrow.step(actions)
        obs_mixed, reward_mixed, *_, info_mixed = mixed.step(np.concatenate([actions, actions[:1]]))
        assert "refused" not in info
        assert np.array_equal(info["extra_parameters"], info_mixed["extra_parameters"][:-1])
        own, padding = leading_corner(mixed.population, NARROW)
        assert not padding[:-1].any(), "absent parameters stay zero"
        torch.testing.assert_close(narrow.population.flat, own[:-1], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(narrow.progress.loss[:, -1], mixed.progress.loss[:-1, -1], atol=1e-4)
        np.testing.assert_allclose(reward, reward_mixed[:-1], atol=1e-6)
        compared = ~noisy_fields(narrow)
        np.testing.assert_allclose(obs["obs"][:, compared], obs_mixed["obs"][:-1, compared], atol=2e-3)
    assert (narrow.lifecycle.stage == SeedStage.FOSSILIZED).sum() == len(CELLS)


def test_a_narrow_host_in_a_layout_that_only_it_uses_equals_a_really_narrow_host():
    """A task's host may be larger than all of the task's variants."""
    narrow, padded = (
        MorphogenesisVectorEnv(2, task=task_of(TINY, widest=widest), max_epochs=20)
        for widest in (TINY, CnnVariant((8, 8, 16), (3, 3, 3)))
    )
    for env in (narrow, padded):
        env.reset(seed=[1, 2])
    for epoch in range(1, 12):
        obs = narrow.step(actions_at(epoch, [0, 1]))[0]
        obs_padded = padded.step(actions_at(epoch, [0, 1]))[0]
        own, padding = leading_corner(padded.population, TINY)
        assert not padding.any()
        torch.testing.assert_close(narrow.population.flat, own, atol=1e-5, rtol=1e-5)
        compared = ~noisy_fields(narrow)
        np.testing.assert_allclose(obs["obs"][:, compared], obs_padded["obs"][:, compared], atol=1e-3)


def test_hosts_of_a_mixed_task_are_drawn_from_all_variants():
    env = MorphogenesisVectorEnv(60, task="digits_mixed", max_epochs=1)
    env.reset(seed=0)
    assert set(env.population.variant) == set(range(5))
