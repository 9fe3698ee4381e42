"""Hosts of both members-first topologies: alone, as a population, and through whole episodes."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.batched.parameters import ParameterLayout, count_parameters
from envs.hosts.base import forward
from envs.hosts.cnn import CnnVariant
from envs.hosts.mlp import MlpHost, MlpVariant
from envs.hosts.transformer import TransformerVariant
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.population.blending import SlotSeeds, grow
from envs.tasks import make_task
from envs.tasks.text import CONTEXT as TEXT_CONTEXT
from envs.tasks.text import text
from envs.vocabulary import Blueprint, SeedStage
from tests.envs.helpers import WAIT, advance, everyone, fossilize, germinate, random_valid_actions, stages, views_of
from tests.envs.topologies import (
    BLUEPRINTS,
    CONTEXT,
    LAYOUTS,
    MEMBERS,
    STYLES,
    TINY_MLP,
    TINY_TRANSFORMER,
    VOCABULARY,
    cells_of,
    env_of,
    run_of,
    seeds_at_birth,
    task_of,
    transformer_of,
)

every_topology = pytest.mark.parametrize("topology", BLUEPRINTS)


def draw(host, variant, members=MEMBERS):
    layout, rng = ParameterLayout(host.parameters(host.widest)), np.random.default_rng(0)
    rows = [layout.draw(host.parameters(variant), rng) for _ in range(members)]
    return layout.views(torch.from_numpy(np.stack(rows)))


def no_seed(slot, h):
    return h


# ---------------------------------------------------------------------- hosts
@pytest.mark.parametrize("algorithm", [None, *STYLES])
def test_a_host_with_seeds_never_looks_ahead(algorithm):
    host = transformer_of()
    parameters = draw(host, TINY_TRANSFORMER)
    tokens = torch.randint(VOCABULARY, (MEMBERS, 4, CONTEXT), generator=torch.Generator().manual_seed(0))

    def grow_slot(slot, h):
        if algorithm is None:
            return h
        blueprint = (Blueprint.ATTENTION, Blueprint.FLEX_ATTENTION)[slot]
        layout, flat = seeds_at_birth("transformer", blueprint, noise=0.5)
        return grow(
            h, SlotSeeds([run_of("transformer", blueprint, layout, flat, algorithm, 1.0)]), LAYOUTS["transformer"]
        )

    before = forward(host, parameters, {}, tokens, grow_slot, True)
    assert before.shape == (MEMBERS, 4, CONTEXT, VOCABULARY)
    for position in (1, 6, CONTEXT - 1):
        changed = tokens.clone()
        changed[:, :, position] = (changed[:, :, position] + 1) % VOCABULARY
        after = forward(host, parameters, {}, changed, grow_slot, True)
        assert torch.equal(after[:, :, :position], before[:, :, :position])
        assert not torch.equal(after[:, :, position], before[:, :, position])


def test_a_shared_batch_gives_what_a_batch_per_member_gives():
    tokens = torch.randint(VOCABULARY, (5, CONTEXT), generator=torch.Generator().manual_seed(0))
    vectors = torch.randn(5, 7)
    mlp = MlpHost(TINY_MLP, num_inputs=7, num_classes=3)
    for host, variant, x in ((transformer_of(), TINY_TRANSFORMER, tokens), (mlp, TINY_MLP, vectors)):
        parameters = draw(host, variant)
        shared = forward(host, parameters, {}, x, no_seed, False)
        own = forward(host, parameters, {}, x.expand(MEMBERS, *x.shape).contiguous(), no_seed, False)
        assert shared.shape[:2] == (MEMBERS, 5)
        torch.testing.assert_close(shared, own, atol=1e-6, rtol=1e-6)


def test_a_segment_without_attention_sees_one_token_only():
    variant = TransformerVariant(8, 2, (1, 1), (8, 8), (False, False))
    host = transformer_of(variant)
    parameters = draw(host, variant)
    tokens = torch.zeros(MEMBERS, 1, CONTEXT, dtype=torch.int64)
    changed = tokens.clone()
    changed[:, :, 3] = 1
    out, out_changed = (forward(host, parameters, {}, x, no_seed, False) for x in (tokens, changed))
    differs = (out != out_changed).any(-1).any(0)[0]
    assert differs.tolist() == [position == 3 for position in range(CONTEXT)]


def test_the_smallest_transformer_has_the_parameters_that_its_design_says():
    host = transformer_of(TransformerVariant(8, 2, (1,), (16,), (True,)))
    attention, mlp = 16 + 3 * 64 + 64 + 8, 16 + 8 * 16 + 16 + 16 * 8 + 8
    assert count_parameters(host.parameters(host.widest)) == (VOCABULARY + CONTEXT) * 8 + attention + mlp + 16


@pytest.mark.parametrize(
    ("variant", "sizes", "message"),
    [
        (TransformerVariant, (8, 3, (1,), (8,), (True,)), "3 heads and width 8"),
        (TransformerVariant, (8, 2, (1, 1), (8,), (True,)), "same one or more segments"),
        (TransformerVariant, (8, 2, (0,), (8,), (True,)), "at least 1"),
        (MlpVariant, (1, (3,)), "width must be at least 2, got 1"),
        (MlpVariant, (4, ()), "one or more segments"),
        (CnnVariant, ((8, 0), (3, 3)), r"widths must be at least 1, got \(8, 0\)"),
        (CnnVariant, ((8,), (2,)), "odd and positive"),
    ],
)
def test_impossible_sizes_are_refused(variant, sizes, message):
    with pytest.raises(ValueError, match=message):
        variant(*sizes)


def test_variants_of_different_width_are_refused():
    with pytest.raises(ValueError, match="hidden alone"):
        TransformerVariant.widest((TINY_TRANSFORMER, TransformerVariant(16, 2, (1, 2), (8, 4), (True, False))))
    with pytest.raises(ValueError, match="same width"):
        MlpVariant.widest((TINY_MLP, MlpVariant(8, (3, 2))))


# ---------------------------------------------------------------------- populations
@pytest.mark.parametrize(
    ("topology", "variant"),
    [
        ("transformer", TINY_TRANSFORMER),
        ("transformer", replace(TINY_TRANSFORMER, width=9, heads=3)),
        ("mlp", TINY_MLP),
        ("mlp", replace(TINY_MLP, width=7)),
    ],
)
def test_the_parameters_paid_for_are_those_allocated(topology, variant):
    cells = cells_of(topology)
    env = env_of(topology, len(cells), (variant,))
    env.reset(seed=0)
    assert (env.lifecycle.costs.host == env.population.flat.shape[1]).all()
    env.step(np.stack([germinate(slot, blueprint, style=3) for blueprint, _, slot in cells]))
    env.step(np.stack([advance(slot) for _, _, slot in cells]))
    for member, (blueprint, _, slot) in enumerate(cells):
        bank = env.population.banks[slot, blueprint]
        assert member in bank.rows.members
        assert env.lifecycle.extra_parameters[member] == bank.rows.flat.shape[1]


@every_topology
def test_training_seeds_leave_hosts_bit_identical_even_when_they_break(topology):
    cells = cells_of(topology)
    grown, plain = (env_of(topology, len(cells), max_epochs=8) for _ in range(2))
    for env in (grown, plain):
        env.reset(seed=3)
    script = [
        np.stack([germinate(slot, blueprint, style=style) for blueprint, style, slot in cells]),
        np.stack([advance(slot) for _, _, slot in cells]),
        *[everyone(grown, WAIT)] * 3,
    ]
    for epoch, actions in enumerate(script):
        if epoch == 3:
            assert all(row.count("TRAINING") == 1 for row in stages(grown))
            assert all(bank.rows.momentum.abs().sum() > 0 for bank in grown.population.banks.values())
            for bank in grown.population.banks.values():
                bank.rows.flat.fill_(torch.nan)
        grown.step(actions)
        plain.step(everyone(plain, WAIT))
        assert torch.equal(grown.population.flat, plain.population.flat)
        assert torch.equal(grown.population.momentum, plain.population.momentum)
        assert np.array_equal(grown.progress.loss, plain.progress.loss, equal_nan=True)


def script_of(cells):
    """Grow, blend and fossilise every cell's seed, and a second one in the other slot meanwhile."""
    plan = {
        1: lambda blueprint, style, slot: germinate(slot, blueprint, style=style),
        2: lambda blueprint, style, slot: advance(slot),
        4: lambda blueprint, style, slot: germinate(1 - slot, Blueprint.MLP_SMALL),
        5: lambda blueprint, style, slot: advance(1 - slot),
        6: lambda blueprint, style, slot: advance(slot),
        9: lambda blueprint, style, slot: advance(slot),
        11: lambda blueprint, style, slot: fossilize(slot),
    }
    return [np.stack([plan[epoch](*cell) if epoch in plan else WAIT for cell in cells]) for epoch in range(1, 13)]


@every_topology
def test_a_population_that_mixes_seeds_equals_single_hosts(topology):
    cells = cells_of(topology)
    together = env_of(topology, len(cells))
    together.reset(seed=list(range(len(cells))))
    script = script_of(cells)
    record = []
    for actions in script:
        _, reward, *_, info = together.step(actions)
        assert "refused" not in info
        record.append((together.population.flat.clone(), reward))
    chosen = [cell for cell, _ in enumerate(cells)][:: 2 if topology == "transformer" else 3]
    assert (together.lifecycle.stage[chosen] == SeedStage.FOSSILIZED).sum() == len(chosen)
    for member in chosen:
        single = env_of(topology, 1)
        single.reset(seed=[member])
        for actions, (flat, reward) in zip(script, record, strict=True):
            _, reward_alone, *_ = single.step(actions[member : member + 1])
            torch.testing.assert_close(flat[member], single.population.flat[0], atol=1e-5, rtol=1e-5)
            np.testing.assert_allclose(reward[member], reward_alone[0], atol=1e-6)


@every_topology
def test_hosts_that_differ_in_hidden_units_equal_single_hosts(topology):
    small, large = {
        "transformer": (TransformerVariant(8, 2, (1, 2), (3, 2), (True, False)), TINY_TRANSFORMER),
        "mlp": (MlpVariant(4, (1, 2)), TINY_MLP),
    }[topology]
    mixed, alone = (env_of(topology, 4, variants) for variants in ((small, large), (small, small)))
    for env in (mixed, alone):
        env.reset(seed=[0, 1, 6, 8])
    narrow = mixed.population.variant == 0
    assert 0 < narrow.sum() < 4
    for epoch in range(1, 9):
        action = {1: germinate(0, Blueprint.MLP), 2: advance(), 6: advance()}.get(epoch, WAIT)
        for env in (mixed, alone):
            env.step(everyone(env, action))
        np.testing.assert_allclose(mixed.progress.loss[narrow, -1], alone.progress.loss[narrow, -1], atol=1e-5)
    assert np.array_equal(mixed.lifecycle.costs.host[narrow], alone.lifecycle.costs.host[narrow])
    own = mixed.population.layout.present(mixed.task.host.parameters(small)) > 0
    assert not mixed.population.flat[torch.from_numpy(narrow)][:, torch.from_numpy(~own)].any()


@every_topology
def test_a_member_that_breaks_breaks_alone(topology):
    broken, whole = (env_of(topology, 3) for _ in range(2))
    for env in (broken, whole):
        env.reset(seed=[1, 2, 3])
    for epoch in range(1, 13):
        action = {1: germinate(0, Blueprint.MLP, style=3), 2: advance(), 6: advance(), 9: advance()}.get(epoch, WAIT)
        if epoch == 10:
            broken.population.flat[1, 5] = torch.nan
        results = [env.step(everyone(env, action)) for env in (broken, whole)]
        assert results[0][2].tolist() == [False, epoch == 10, False]
        for left, right in zip(*(result[:2] for result in results), strict=True):
            left, right = (x["obs"] if isinstance(x, dict) else x for x in (left, right))
            np.testing.assert_allclose(left[[0, 2]], right[[0, 2]], atol=1e-5)
        torch.testing.assert_close(broken.population.flat[[0, 2]], whole.population.flat[[0, 2]], atol=1e-6, rtol=1e-6)


@every_topology
def test_every_blueprint_lowers_the_training_loss_when_blended(topology):
    """The same untrained host for all, put back after every epoch, so that the gain is the seed's own."""
    blueprints = BLUEPRINTS[topology]
    env = env_of(topology, len(blueprints) + 1, max_epochs=40, task_changes={"samples": 32, "batches": 4})
    env.reset(seed=[4] * env.num_envs)
    hosts = env.population.flat.clone()
    for epoch in range(1, 16):
        actions = everyone(env, WAIT)
        for member, blueprint in enumerate(blueprints):
            actions[member] = {1: germinate(0, blueprint), 2: advance(), 6: advance(), 9: advance()}.get(epoch, WAIT)
        env.step(actions)
        env.population.flat.copy_(hosts)
        env.population.momentum.zero_()
    assert (env.lifecycle.stage[:-1, 0] == SeedStage.HOLDING).all()
    loss, _ = env.population.evaluate(np.arange(env.num_envs), env.lifecycle.alpha, env.lifecycle, "train")
    gain = dict(zip([blueprint.name for blueprint in blueprints], loss[-1] - loss[:-1], strict=True))
    assert min(gain.values()) > 0.0, gain


# ---------------------------------------------------------------------- episodes of the real tasks
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("text", {}), ("text", {"depth": "2"}), ("text_attending", {}), ("tabular", {}), ("tabular_wide", {})],
)
def test_random_play_of_a_real_task_stays_in_its_spaces_and_its_return_telescopes(name, arguments):
    env = MorphogenesisVectorEnv(2, task=name, task_args=arguments, max_epochs=10)
    rng = np.random.default_rng(0)
    obs, info = env.reset(seed=0)
    start, total = info["score"], np.zeros(2)
    for _ in range(10):
        assert env.observation_space.contains(obs)
        obs, reward, terminated, _, info = env.step(random_valid_actions(env, obs, rng))
        assert "refused" not in info
        total += reward
    assert terminated.all()
    np.testing.assert_allclose(total, info["committed_score"] - start, atol=1e-9)
    assert env.layout.size == 121


def test_a_host_learns_text_beyond_the_commonest_letter():
    env = MorphogenesisVectorEnv(1, task="text", max_epochs=8)
    env.reset(seed=0)
    for _ in range(8):
        *_, info = env.step(everyone(env, WAIT))
    assert info["committed_accuracy"][0] > env.task.chance_accuracy + 2.0


@every_topology
def test_the_tasks_offer_their_topologies_blueprints_and_no_other(topology):
    env = MorphogenesisVectorEnv(1, task=task_of(topology), max_epochs=5, parameter_budget=10**9)
    obs, _ = env.reset(seed=0)
    assert set(np.flatnonzero(views_of(env, obs["action_mask"])["blueprint"][0])) == set(BLUEPRINTS[topology])


# ---------------------------------------------------------------------- data
def test_text_is_split_by_position_without_overlap():
    task = make_task("text")
    parts = [task.splits[name] for name in ("train", "validation", "test")]
    for part in parts:
        assert part.x.shape == part.y.shape == (len(part.x), TEXT_CONTEXT)
        assert torch.equal(part.x[:, 1:], part.y[:, :-1]), "labels are the next characters"
        assert 0 <= int(part.x.min()) <= int(part.x.max()) < task.num_classes
    assert len(parts[1].x) == 128
    assert len(parts[2].x) == 512
    assert 10.0 < task.chance_accuracy < 30.0


def test_a_text_file_is_read_and_its_parts_stay_apart(tmp_path):
    corpus = "".join(chr(0x4E00 + index) for index in range(2000))
    (tmp_path / "corpus.txt").write_text(corpus, "utf-8")
    task = text(tmp_path / "corpus.txt")
    seen = [set(torch.cat([task.splits[name].x, task.splits[name].y]).flatten().tolist()) for name in task.splits]
    assert task.num_classes == 2000
    assert not any(left & right for left, right in itertools.combinations(seen, 2))
    assert [min(part) for part in seen] == [0, 1600, 1800]


def test_text_files_that_cannot_serve_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"absent.txt is no file: give a UTF-8 text"):
        text(tmp_path / "absent.txt")
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(ValueError, match=r"short.txt has 9 characters.*longer text"):
        text(tmp_path / "short.txt")


def test_tabular_rows_are_vectors():
    task = make_task("tabular")
    assert all(split.x.shape == (len(split.y), 64) for split in task.splits.values())
    assert task.chance_accuracy == pytest.approx(10.0, abs=0.5)
