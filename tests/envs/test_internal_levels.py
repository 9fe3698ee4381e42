"""Internal levels: what a ladder computes, what moves, what is paid, what is reported."""

import itertools

import numpy as np
import pytest
import torch

from envs.batched.activations import IMAGES
from envs.batched.parameters import count_parameters
from envs.blueprints import blueprints_for
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.population.bank import SeedBank
from envs.population.blending import GATE_BIAS, GATE_WEIGHT, SlotSeeds, grow
from envs.seed_report import SeedReport, check_internal_levels
from envs.vocabulary import AlphaAlgorithm, Blueprint, LifecycleOp, SeedInternalKind, SeedStage
from tests.envs.blueprints.test_blueprints import MODULES, activation, run_of
from tests.envs.helpers import (
    STYLE_OF,
    WAIT,
    advance,
    everyone,
    fossilize,
    germinate,
    grow_inside,
    random_valid_actions,
    shrink_inside,
    tiny_env,
    views_of,
)

LADDER, TOP, MEMBERS = Blueprint.CONV_LADDER, 4, 3
WITH_LEVELS = {"internal_levels": True}


def bank_at(levels, width=8, seed=0):
    """A bank of three members at these levels, everything that is on far from its start."""
    bank = SeedBank.create(MODULES[LADDER], 0, width, torch.device("cpu"))
    rng = np.random.default_rng(seed)
    move(bank, levels, lambda bank, member: bank.layout.draw(bank.layout.specs, rng))
    noise = torch.randn(bank.rows.flat.shape, generator=torch.Generator().manual_seed(seed))
    bank.rows.flat += torch.where(bank.switched_on(), 0.3 * noise, 0.0)
    bank.rows.momentum += torch.where(bank.switched_on(), noise, 0.0)
    return bank


def move(bank, levels, draw=None):
    everybody = np.ones(MEMBERS, bool)
    bank.sync(everybody, ~everybody, np.array(levels), draw)


def delta(bank, u):
    return bank.module_in_use.delta(bank.layout.views(bank.rows.flat), u, None)


def literal_delta(bank, u, levels):
    """Each member alone, level by level, with torch's own layers."""
    out = torch.zeros_like(u)
    for member, level in enumerate(levels):
        p = {name: view[member] for name, view in bank.layout.views(bank.rows.flat).items()}
        z = u[member].permute(0, 3, 1, 2)
        for i in range(1, level + 1):
            z = torch.nn.functional.conv2d(z, p[f"conv{i}"], padding=1)
            z = torch.nn.functional.group_norm(z, z.shape[1] // 4, p[f"norm_weight{i}"], p[f"norm_bias{i}"]).relu()
            proposal = torch.nn.functional.conv2d(z, p[f"out_weight{i}"], p[f"out_bias{i}"])
            out[member] += proposal.permute(0, 2, 3, 1)
    return out


@pytest.mark.parametrize("side", [1, 4])
def test_a_ladder_adds_up_what_its_levels_propose(side):
    u = activation(8, side)
    for levels in itertools.product((0, 2, 3), (1, 4), (0, 1)):
        bank = bank_at(levels)
        torch.testing.assert_close(delta(bank, u), literal_delta(bank, u, levels), atol=2e-5, rtol=2e-5)


def test_a_ladder_at_level_one_computes_what_conv_light_computes():
    bank, u = bank_at((1, 1, 1)), activation(8, 4)
    p = bank.layout.views(bank.rows.flat)
    names = {"conv0": "conv1", "norm0_weight": "norm_weight1", "norm0_bias": "norm_bias1"}
    names |= {"out_weight": "out_weight1", "out_bias": "out_bias1"}
    light = MODULES[Blueprint.CONV_LIGHT].delta({ours: p[theirs] for ours, theirs in names.items()}, u, None)
    assert torch.equal(delta(bank, u), light)
    assert count_parameters(bank.module.parameters(8), 1) == count_parameters(
        MODULES[Blueprint.CONV_LIGHT].parameters(8)
    )


@pytest.mark.parametrize("algorithm", STYLE_OF)
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_level_zero_is_the_identity(algorithm, alpha):
    bank, h = bank_at((1, 3, 4)), activation(8, 4)
    assert delta(bank, h).flatten(3).abs().sum() > 0
    move(bank, (0, 0, 0))
    assert not delta(bank, h).any()
    assert torch.equal(grow(h, SlotSeeds([run_of(LADDER, bank.layout, bank.rows.flat, algorithm, alpha)]), IMAGES), h)


@pytest.mark.parametrize("levels", [(0, 0, 0), (1, 1, 1), (0, 2, 3)])
def test_growing_keeps_the_function_bit_for_bit(levels):
    bank, u = bank_at(levels), activation(8, 4)
    before = delta(bank, u)
    move(bank, [level + 1 for level in levels])
    assert torch.equal(delta(bank, u), before)


def test_shrinking_removes_a_level_for_good_and_keeps_the_other_members_as_they_are():
    bank, u = bank_at((4, 2, 1)), activation(8, 4)
    before, rows = delta(bank, u), bank.rows.flat.clone()
    move(bank, (3, 2, 1))
    shrunk = delta(bank, u)
    torch.testing.assert_close(shrunk, literal_delta(bank, u, (3, 2, 1)), atol=2e-5, rtol=2e-5)
    assert not torch.allclose(shrunk[0], before[0])
    assert torch.equal(bank.rows.flat[1:], rows[1:])
    torch.testing.assert_close(shrunk[1:], before[1:], atol=1e-6, rtol=1e-6)
    move(bank, (4, 2, 1))
    assert torch.equal(delta(bank, u), shrunk), "what was removed does not come back"


def test_a_level_that_is_switched_on_again_starts_without_output_and_without_momentum():
    bank = bank_at((4, 4, 4))
    conv = bank.layout.views(bank.rows.flat)["conv4"].clone()
    for levels in ((4, 3, 4), (4, 4, 4)):
        move(bank, levels)
        values, momentum = bank.layout.views(bank.rows.flat), bank.layout.views(bank.rows.momentum)
        for name in ("out_weight4", "out_bias4"):
            assert not values[name][1].any()
            assert values[name][[0, 2]].all()
        for name in (name for name, spec in bank.layout.specs.items() if spec.level == 4):
            assert not momentum[name][1].any()
            assert momentum[name][[0, 2]].all()
        assert momentum["out_weight3"].all()
    assert torch.equal(bank.layout.views(bank.rows.flat)["conv4"], conv)


def ladder_env(num_envs=2, **settings):
    env = tiny_env(num_envs, task_changes=WITH_LEVELS, parameter_budget=10**9, **settings)
    env.reset(seed=list(range(num_envs)))
    return env


def play(env, actions):
    for action in actions:
        info = env.step(everyone(env, action))[-1]
        assert "refused" not in info


TO_TRAINING = [germinate(0, LADDER), advance()]
TO_BLENDING = [*TO_TRAINING, WAIT, WAIT, advance(), WAIT, WAIT]


def test_only_levels_that_are_on_learn():
    env = ladder_env(max_epochs=40)
    play(env, TO_TRAINING)
    bank = env.population.banks[0, LADDER]
    level, moved = 1, set()
    for action in [*[grow_inside()] * 3, *[shrink_inside()] * 4, *[grow_inside()] * 3, WAIT, shrink_inside(), WAIT]:
        before = bank.rows.flat.clone()
        play(env, [action])
        level += {LifecycleOp.GROW_INTERNAL: 1, LifecycleOp.SHRINK_INTERNAL: -1}.get(action[0], 0)
        assert env.lifecycle.internal_level[:, 0].tolist() == bank.levels.tolist() == [level] * 2
        views, old = bank.layout.views(bank.rows.flat), bank.layout.views(before)
        momentum = bank.layout.views(bank.rows.momentum)
        for name, spec in bank.layout.specs.items():
            if name in (GATE_WEIGHT, GATE_BIAS):
                continue
            if spec.level > level:
                assert not momentum[name].any()
                assert torch.equal(views[name], old[name]) or (spec.level == level + 1 and not views[name].any())
                assert not name.startswith("out") or not views[name].any()
            elif not torch.equal(views[name], old[name]):
                moved.add(name)
    assert moved == set(bank.layout.specs) - {GATE_WEIGHT, GATE_BIAS}


def test_parameters_are_counted_by_the_levels_that_are_on():
    for style in (0, STYLE_OF["GATE"]):
        env = ladder_env(max_epochs=40)
        play(env, [germinate(2, LADDER, style=style)])
        gate = 9 if style else 0
        assert env.lifecycle.extra_parameters.tolist() == [664 + gate] * 2
        play(env, [advance(2)])
        for level, action in [(2, grow_inside(2)), (3, grow_inside(2)), (2, shrink_inside(2)), (1, shrink_inside(2))]:
            play(env, [action])
            assert env.lifecycle.extra_parameters.tolist() == [664 * level + gate] * 2
            bank = env.population.banks[2, LADDER]
            assert int(bank.switched_on()[0].sum()) == 664 * level + gate
        play(env, [shrink_inside(2)])
        assert env.lifecycle.extra_parameters.tolist() == [gate] * 2


def test_growing_needs_the_budget_and_shrinking_makes_room():
    env = tiny_env(1, task_changes=WITH_LEVELS, parameter_budget=2 * 664 + 9)
    env.reset(seed=0)
    play(env, [germinate(1, LADDER), advance(1), grow_inside(1)])

    def open_slots(op):
        return views_of(env, env.watch.mask)["slot"][0, op].tolist()

    assert open_slots(LifecycleOp.GROW_INTERNAL) == [0, 0, 0]
    assert open_slots(LifecycleOp.SHRINK_INTERNAL) == [0, 1, 0]
    assert views_of(env, env.watch.mask)["op"][0, [6, 7]].tolist() == [0, 1]
    play(env, [shrink_inside(1)])
    assert open_slots(LifecycleOp.GROW_INTERNAL) == [0, 1, 0]
    refused = env.step(everyone(env, grow_inside(0)))[-1]["refused"]
    assert refused[0] == "the mask admits no such slot now; WAIT was executed"


def test_a_ladder_in_training_leaves_its_host_bit_identical_while_its_levels_move():
    grown, plain = ladder_env(max_epochs=20), ladder_env(max_epochs=20)
    for action in [*TO_TRAINING, grow_inside(), grow_inside(), shrink_inside(), shrink_inside(), shrink_inside(), WAIT]:
        play(grown, [action])
        play(plain, [WAIT])
        assert torch.equal(grown.population.flat, plain.population.flat)
        assert torch.equal(grown.population.momentum, plain.population.momentum)


def test_moving_a_level_of_a_blended_seed_changes_validation_only_by_what_was_removed():
    env = ladder_env(max_epochs=30)
    play(env, [*TO_BLENDING, grow_inside(), WAIT])
    life, everybody = env.lifecycle, np.arange(2)

    def loss():
        env.population.sync(life)
        return env.population.evaluate(everybody, life.alpha, life, "validation")[0]

    now = loss()
    without = env.population.evaluate(everybody, np.zeros_like(life.alpha), life, "validation")[0]
    life.internal_level[:, 0] += 1
    assert np.array_equal(loss(), now)
    life.internal_level[:, 0] = [0, 1]
    shrunk = loss()
    assert shrunk[0] == without[0]
    assert shrunk[1] not in (now[1], without[1])


def test_a_fossil_keeps_its_level_through_a_rollback():
    env = ladder_env(3, max_epochs=30)
    play(env, [*TO_BLENDING, grow_inside(), advance(), grow_inside(), fossilize()])
    bank = env.population.banks[0, LADDER]
    saved, extra = bank.rows.flat[1].clone(), env.lifecycle.extra_parameters[1]
    assert not env.lifecycle.gates()[:, :, 0].any(), "a fossil's level is final"
    play(env, [germinate(1, LADDER), advance(1), grow_inside(1)])
    env.population.flat[1] = torch.nan
    *_, terminated, _, _ = env.step(everyone(env, WAIT))
    assert terminated.tolist() == [False, True, False]
    assert env.lifecycle.internal_level.tolist() == [[3, 2, 0], [3, 0, 0], [3, 2, 0]]
    assert env.lifecycle.extra_parameters[1] == extra
    bank = env.population.banks[0, LADDER]
    assert bank.levels.tolist() == [3, 3, 3]
    assert torch.equal(bank.rows.flat[1], saved)
    assert env.population.banks[1, LADDER].rows.members.tolist() == [0, 2]
    env.step(everyone(env, WAIT))
    assert env.lifecycle.internal_level.tolist() == [[3, 2, 0], [0, 0, 0], [3, 2, 0]], "a new episode starts empty"


def test_a_broken_ladder_cannot_hide_behind_level_zero():
    env = ladder_env(max_epochs=20)
    play(env, [*TO_TRAINING, WAIT, WAIT])
    env.population.banks[0, LADDER].rows.flat[1] = torch.nan
    play(env, [shrink_inside()])
    assert env.lifecycle.gates()[:, LifecycleOp.ADVANCE, 0].tolist() == [True, False]


def test_members_with_ladders_at_any_level_train_as_if_alone():
    together = ladder_env(2, max_epochs=12)
    scripts = [
        [germinate(0, LADDER), advance(), WAIT, WAIT, advance(), grow_inside(), WAIT, grow_inside()],
        [germinate(0, LADDER), advance(), shrink_inside(), WAIT, WAIT, advance(), grow_inside(), WAIT],
    ]
    alone = [tiny_env(1, task_changes=WITH_LEVELS, parameter_budget=10**9, max_epochs=12) for _ in scripts]
    for member, env in enumerate(alone):
        env.reset(seed=[member])
    for actions in zip(*scripts, strict=True):
        together.step(np.stack(actions))
        for env, action in zip(alone, actions, strict=True):
            env.step(action[None])
    for member, env in enumerate(alone):
        torch.testing.assert_close(together.population.flat[member], env.population.flat[0], atol=1e-4, rtol=1e-4)
        ours, theirs = (e.population.banks[0, LADDER].rows.flat for e in (together, env))
        torch.testing.assert_close(ours[member], theirs[0], atol=1e-4, rtol=1e-4)


def test_narrow_members_of_a_mixed_population_pay_for_and_use_their_own_channels():
    from envs.hosts.cnn import CnnVariant

    variants = (CnnVariant((4, 8), (1, 1)), CnnVariant((8, 4), (1, 1)))
    env = tiny_env(8, variants, WITH_LEVELS, parameter_budget=10**9)
    env.reset(seed=0)
    play(env, [germinate(0, LADDER), advance(), grow_inside(), WAIT])
    module = blueprints_for("cnn")[LADDER]
    bank = env.population.banks[0, LADDER]
    for member, variant in enumerate(env.population.variant):
        width = variants[variant].widths[0]
        assert env.lifecycle.extra_parameters[member] == count_parameters(module.parameters(width), 2)
        out = bank.layout.views(bank.rows.flat)["out_weight1"][member, :, :, 0, 0]
        assert out[:width, :width].any()
        assert not out[width:].any()
        assert not out[:, width:].any()


def test_a_slot_reports_its_seed():
    env = ladder_env()
    play(env, [germinate(1, LADDER, style=1, target=0), advance(1), grow_inside(1)])
    assert env.lifecycle.report(0, 1) == SeedReport(
        slot_id="r0c1",
        stage=SeedStage.TRAINING,
        blueprint=LADDER,
        epochs_in_stage=2,
        alpha=0.0,
        alpha_target=0.5,
        algorithm=AlphaAlgorithm.MULTIPLY,
        pruning=False,
        internal_kind=SeedInternalKind.CONV_LADDER,
        internal_level=2,
        internal_max_level=4,
    )
    empty = env.lifecycle.report(0, 0)
    assert (empty.stage, empty.blueprint) == (SeedStage.DORMANT, None)
    assert (empty.internal_kind, empty.internal_level, empty.internal_max_level) == (SeedInternalKind.NONE, 0, 1)


@pytest.mark.parametrize(
    ("kind", "level", "most"),
    [(1, 5, 4), (1, -1, 4), (1, 0, 0), (1, 0, -1), (0, 1, 1), (0, 0, 4), (0, 0, 0)],
)
def test_an_internal_level_that_breaks_the_contract_raises(kind, level, most):
    env = ladder_env()
    fields = vars(env.lifecycle.report(0, 0)) | {"internal_kind": SeedInternalKind(kind)}
    with pytest.raises(ValueError, match=rf"level {level} of {most} breaks the contract"):
        SeedReport(**fields | {"internal_level": level, "internal_max_level": most})
    with pytest.raises(ValueError, match=rf"level {level} of {most} breaks the contract"):
        check_internal_levels(np.array([[0, kind]]), np.array([[0, level]]), np.array([[1, most]]))


def test_an_observation_is_never_made_of_a_broken_level():
    env = ladder_env()
    play(env, TO_TRAINING)
    env.lifecycle.internal_level[1, 0] = 5
    with pytest.raises(ValueError, match="CONV_LADDER at level 5 of 4"):
        env.watch.observe(env.max_epochs)
    with pytest.raises(ValueError, match="CONV_LADDER at level 5 of 4"):
        env.lifecycle.report(1, 0)


def test_random_play_on_digits_scale_is_never_refused_and_moves_levels():
    env = MorphogenesisVectorEnv(4, task="digits_scale", max_epochs=24, embargo_epochs=1, min_training_epochs=1)
    rng, levels = np.random.default_rng(0), set()
    obs, _ = env.reset(seed=0)
    assert obs["obs"].shape == (4, 33 + 31 * 5)
    for _ in range(24):
        actions = random_valid_actions(env, obs, rng)
        ladder = views_of(env, obs["action_mask"])["blueprint"][:, LADDER] != 0
        actions[ladder, 2] = LADDER
        obs, *_, info = env.step(actions)
        assert "refused" not in info
        assert obs in env.observation_space
        levels |= set(env.lifecycle.internal_level.ravel().tolist())
    assert levels == {0, 1, 2, 3, 4}
