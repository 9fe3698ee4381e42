"""A seed that trains is invisible to its host; a seed that blends is not, but the host's own path stays whole."""

import itertools

import numpy as np
import pytest
import torch

from envs.batched.activations import IMAGES
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.population.blending import GATE_BIAS, GATE_WEIGHT, SlotSeeds, grow
from envs.vocabulary import Blueprint, LifecycleOp
from tests.envs.blueprints.test_blueprints import MEMBERS, MODULES, activation, run_of, seeds_at_birth
from tests.envs.helpers import (
    CNN_BLUEPRINTS,
    STYLE_OF,
    WAIT,
    advance,
    everyone,
    fossilize,
    germinate,
    same_observations,
    stages,
    tiny_env,
    views_of,
)

CELLS = [
    (blueprint, style, index % 3)
    for index, (blueprint, style) in enumerate(itertools.product(CNN_BLUEPRINTS, STYLE_OF.values()))
]


def host_state(env):
    population = env.population
    return [population.flat, population.momentum, *population.buffers.values()]


def test_training_seeds_leave_hosts_bit_identical_even_when_they_break():
    grown, plain = (tiny_env(len(CELLS), max_epochs=12, parameter_budget=10**9) for _ in range(2))
    for env in (grown, plain):
        env.reset(seed=3)
    script = [
        np.stack([germinate(slot, blueprint, style=style) for blueprint, style, slot in CELLS]),
        np.stack([advance(slot) for _, _, slot in CELLS]),
        *[everyone(grown, WAIT)] * 6,
    ]
    for epoch, actions in enumerate(script):
        if epoch == 5:
            for bank in grown.population.banks.values():
                bank.rows.flat.fill_(torch.nan)
        with_seed = grown.step(actions)[4]
        without = plain.step(everyone(plain, WAIT))[4]
        assert all(torch.equal(*pair) for pair in zip(host_state(grown), host_state(plain), strict=True))
        assert np.array_equal(grown.progress.loss, plain.progress.loss, equal_nan=True)
        assert np.array_equal(with_seed["val_accuracy"], without["val_accuracy"])
        if epoch == 4:
            assert all(row.count("TRAINING") == 1 for row in stages(grown))
            moved = [bank.rows.momentum.abs().sum() > 0 for bank in grown.population.banks.values()]
            assert all(moved), "the seeds learn meanwhile"
    assert all(torch.isnan(bank.rows.flat).all() for bank in grown.population.banks.values())


def test_a_seed_whose_gradients_are_broken_cannot_advance():
    env = tiny_env(2, max_epochs=12)
    env.reset(seed=0)
    for action in (germinate(), advance(), WAIT, WAIT):
        obs = env.step(everyone(env, action))[0]
    assert env.lifecycle.gates()[:, LifecycleOp.ADVANCE, 0].all()
    env.population.banks[0, Blueprint.DEPTHWISE].rows.flat[1] = torch.nan
    obs = env.step(everyone(env, WAIT))[0]
    assert env.lifecycle.gates()[:, LifecycleOp.ADVANCE, 0].tolist() == [True, False]
    assert env.layout.slot(obs["obs"], "gradient_health")[1, 0] < 0.3
    assert env.layout.slot(obs["obs"], "exploding")[1, 0] == 1.0


def cut(h):
    """A copy through which no gradient returns to ``h``; it asks for one, as group norm's backward needs that."""
    return h.detach().clone().requires_grad_()


def literal_effect(blueprint, algorithm, h, u, parameters):
    """The formulas of the design, member by member axis kept, with plain autograd."""
    d = MODULES[blueprint].delta(parameters, u, None)
    size = d.square().sum((2, 3, 4)).sqrt()
    allowed = h.detach().square().sum((2, 3, 4)).sqrt()
    d = d * torch.minimum(torch.ones_like(size), allowed / size)[:, :, None, None, None]
    if algorithm == "MULTIPLY":
        return h * torch.tanh(d)
    if algorithm == "GATE":
        pooled = u.mean((2, 3))
        logit = (pooled * parameters[GATE_WEIGHT][:, None]).sum(-1) + parameters[GATE_BIAS]
        return torch.sigmoid(logit)[:, :, None, None, None] * d
    return d


@pytest.mark.parametrize("attached", [False, True], ids=["BLENDING", "HOLDING"])
@pytest.mark.parametrize("algorithm", STYLE_OF)
@pytest.mark.parametrize("blueprint", CNN_BLUEPRINTS, ids=lambda blueprint: blueprint.name)
def test_a_blended_seed_has_the_value_and_gradients_of_its_formula(blueprint, algorithm, attached):
    layout, flat = seeds_at_birth(blueprint, 8)
    flat = flat + 0.3 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(1))
    target = activation(8, 4, seed=2).detach()
    results = []
    for literal in (False, True):
        h = activation(8, 4)
        leaf = flat.clone().requires_grad_()
        if literal:
            u = h if attached else cut(h)
            out = h + 0.7 * literal_effect(blueprint, algorithm, h, u, layout.views(leaf))
        else:
            out = grow(h, SlotSeeds([run_of(blueprint, layout, leaf, algorithm, 0.7, attached=attached)]), IMAGES)
        (out * target).sum().backward()
        results.append((out, h.grad, leaf.grad))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-4, rtol=2e-4)
    if not attached and algorithm != "MULTIPLY":
        assert torch.equal(results[0][1], target), "only the path of gradient 1 reaches the host"


@pytest.mark.parametrize("algorithm", STYLE_OF)
def test_a_training_seed_learns_from_the_gradient_at_its_output(algorithm):
    layout, flat = seeds_at_birth(Blueprint.CONV_SMALL, 8)
    flat = flat + 0.1 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(1))
    target = activation(8, 4, seed=2).detach()
    h, leaf = activation(8, 4), flat.clone().requires_grad_()
    out = grow(h, SlotSeeds([run_of(Blueprint.CONV_SMALL, layout, leaf, algorithm, 0.0, incubating=True)]), IMAGES)
    to_host, to_seed = torch.autograd.grad((out * target).sum(), [h, leaf])
    assert torch.equal(out, h)
    assert torch.equal(to_host, target)
    leaf = flat.clone().requires_grad_()
    (literal_effect(Blueprint.CONV_SMALL, algorithm, h, cut(h), layout.views(leaf)) * target).sum().backward()
    torch.testing.assert_close(to_seed, leaf.grad, atol=1e-4, rtol=1e-4)
    assert len(to_seed) == MEMBERS


def test_a_host_and_its_held_seed_adapt_to_each_other_and_a_blending_seed_does_not_bend_the_host():
    """Same weights, same batches: only in HOLDING does the host feel the seed's own path."""
    layout, flat = seeds_at_birth(Blueprint.CONV_LIGHT, 8)
    flat = flat + 0.3 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for attached in (False, True):
        h = activation(8, 4)
        out = grow(
            h,
            SlotSeeds([run_of(Blueprint.CONV_LIGHT, layout, flat.requires_grad_(), "ADD", 0.5, attached=attached)]),
            IMAGES,
        )
        gradients.append(torch.autograd.grad(out.square().sum(), [h, flat])[0])
    assert not torch.allclose(*gradients)


def test_sixty_epochs_of_training_then_blended_end_far_above_never_growing():
    members, last = 4, 90
    grown, plain = (MorphogenesisVectorEnv(members, task="digits_impaired", max_epochs=last) for _ in range(2))
    seeds = list(range(12, 12 + members))
    obs, _ = grown.reset(seed=seeds)
    plain.reset(seed=seeds)
    for epoch in range(1, last + 1):
        actions = everyone(grown, {1: germinate(), 2: advance()}.get(epoch, WAIT))
        for member, slots in enumerate(views_of(grown, obs["action_mask"])["slot"]):
            if epoch >= 62 and slots[LifecycleOp.ADVANCE, 0]:
                actions[member] = advance()
            elif slots[LifecycleOp.FOSSILIZE, 0]:
                actions[member] = fossilize()
        obs, *_, info = grown.step(actions)
        assert "refused" not in info
        info_plain = plain.step(everyone(plain, WAIT))[-1]
    committed = info["seeds_fossilized"] == 1
    assert committed.sum() >= 2, "a seed whose gradients explode at the gate stays in TRAINING"
    gain = info["committed_accuracy"] - info_plain["committed_accuracy"]
    assert gain[committed].min() > 5
    assert gain[committed].mean() > 15
    assert (info["committed_score"] - info_plain["committed_score"])[committed].mean() > 0.12


def test_helpers_compare_observations_exactly():
    left = {"obs": np.zeros((2, 3))}
    assert same_observations(left, {"obs": np.zeros((2, 3))})
    assert not same_observations(left, {"obs": np.full((2, 3), 1e-9)})
