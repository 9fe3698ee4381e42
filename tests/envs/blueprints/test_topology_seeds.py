"""Seeds of the transformer and the MLP host, one slot at a time."""

import math

import pytest
import torch
from torch import nn

from envs.batched.dense_layers import (
    flex_windowed_attention,
    masked_windowed_attention,
    self_attention,
    windowed_attention,
)
from envs.blueprints import blueprints_for
from envs.population.blending import GATE_BIAS, GATE_WEIGHT, SlotSeeds, grow
from envs.population.optimizer import sgd_step
from envs.vocabulary import Blueprint
from tests.envs.topologies import (
    BLUEPRINTS,
    CASE_IDS,
    CASES,
    LAYOUTS,
    MEMBERS,
    STYLES,
    activation,
    run_of,
    seeds_at_birth,
)

WIDTHS = (2, 6, 8, 40)
ANY_WIDTHS = (1, 5, 7, 9, 10, 30)
every_case = pytest.mark.parametrize(("topology", "blueprint"), CASES, ids=CASE_IDS)
every_algorithm = pytest.mark.parametrize("algorithm", STYLES)


def grown(topology, h, run):
    return grow(h, SlotSeeds([run]), LAYOUTS[topology])


@pytest.mark.parametrize("topology", BLUEPRINTS)
def test_a_topology_offers_exactly_its_blueprints(topology):
    assert set(blueprints_for(topology)) == set(BLUEPRINTS[topology])


@every_algorithm
@every_case
def test_a_seed_is_an_exact_identity_at_birth_whatever_alpha(topology, blueprint, algorithm):
    for width in WIDTHS + ANY_WIDTHS:
        h = activation(topology, width)
        layout, flat = seeds_at_birth(topology, blueprint, width)
        for alpha in (0.3, 1.0):
            assert torch.equal(grown(topology, h, run_of(topology, blueprint, layout, flat, algorithm, alpha)), h)


@every_algorithm
@every_case
def test_a_seed_is_an_exact_identity_at_alpha_zero_whatever_its_parameters(topology, blueprint, algorithm):
    h = activation(topology)
    layout, flat = seeds_at_birth(topology, blueprint, noise=3.0)
    for broken in (flat, torch.full_like(flat, torch.nan)):
        assert torch.equal(grown(topology, h, run_of(topology, blueprint, layout, broken, algorithm, 0.0)), h)


@every_algorithm
@every_case
def test_no_delta_is_longer_than_what_it_is_added_to(topology, blueprint, algorithm):
    h = activation(topology)
    layout, flat = seeds_at_birth(topology, blueprint, noise=3.0)
    effect = (grown(topology, h, run_of(topology, blueprint, layout, flat, algorithm, 1.0)) - h).norm(dim=-1)
    assert effect.mean() > 1e-3
    assert (effect <= h.norm(dim=-1) * (1 + 1e-5)).all(), "of every token, or every sample"


@pytest.mark.parametrize("incubating", [True, False], ids=["TRAINING", "BLENDING"])
@every_algorithm
@every_case
def test_every_single_parameter_has_a_gradient_by_the_third_step(topology, blueprint, algorithm, incubating):
    for width in WIDTHS:
        layout, flat = seeds_at_birth(topology, blueprint, width, seed=width)
        momentum, seen = torch.zeros_like(flat), torch.zeros_like(flat, dtype=torch.bool)
        for step in range(3):
            leaf = flat.clone().requires_grad_()
            h, target = (activation(topology, width, seed, batch=32) for seed in (step, 100 + step))
            run = run_of(topology, blueprint, layout, leaf, algorithm, 0.5, incubating)
            gradient, _ = torch.autograd.grad((grown(topology, h, run) * target).sum(), [leaf, h])
            seen |= gradient != 0.0
            sgd_step(flat, gradient, momentum, torch.full((MEMBERS, 1), 0.02))
        for name, alive in layout.views(seen).items():
            if name in (GATE_WEIGHT, GATE_BIAS):
                assert alive.all() if algorithm == "GATE" else not alive.any()
            else:
                assert alive.all(), f"{name} at width {width}: {int((~alive).sum())} parameters without a gradient"


@pytest.mark.parametrize("attached", [False, True], ids=["BLENDING", "HOLDING"])
@every_algorithm
@every_case
def test_the_host_keeps_its_own_path_at_alpha_one(topology, blueprint, algorithm, attached):
    """In BLENDING a seed's input is detached: by ADD and GATE the host's gradient is exactly that of its own path."""
    h, target = activation(topology), activation(topology, seed=1).detach()
    layout, flat = seeds_at_birth(topology, blueprint, noise=0.3)
    run = run_of(topology, blueprint, layout, flat.requires_grad_(), algorithm, 1.0, attached=attached)
    gradient, _ = torch.autograd.grad((grown(topology, h, run) * target).sum(), [h, flat])
    if attached:
        assert not torch.equal(gradient, target)
        assert (gradient != 0).all()
    elif algorithm == "MULTIPLY":
        assert (gradient / target > 0).all(), "1 + tanh(d) is positive"
    else:
        assert torch.equal(gradient, target)


@every_algorithm
@pytest.mark.parametrize("blueprint", BLUEPRINTS["transformer"], ids=lambda blueprint: blueprint.name)
def test_a_later_token_changes_no_earlier_output(blueprint, algorithm):
    h = activation("transformer")
    layout, flat = seeds_at_birth("transformer", blueprint, noise=0.5)
    run = run_of("transformer", blueprint, layout, flat, algorithm, 1.0)
    before = grown("transformer", h, run)
    for position in (1, 5, 11):
        changed = h.detach().clone()
        changed[:, :, position] += 1.0
        after = grown("transformer", changed, run)
        assert torch.equal(after[:, :, :position], before[:, :, :position])
        assert not torch.equal(after[:, :, position], before[:, :, position])


@every_case
def test_members_of_a_bank_compute_as_if_alone(topology, blueprint):
    h = activation(topology)
    layout, flat = seeds_at_birth(topology, blueprint, noise=0.3)
    module = blueprints_for(topology)[blueprint]
    together = module.delta(layout.views(flat), h, None)
    for member in range(MEMBERS):
        one = slice(member, member + 1)
        alone = module.delta(layout.views(flat[one]), h[one], None)
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-5)


def test_attention_is_that_of_plain_torch():
    h = activation("transformer").detach()[:1]
    qkv = torch.randn(1, 24, 8)
    plain = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    with torch.no_grad():
        plain.in_proj_weight.copy_(qkv[0])
        plain.out_proj.weight.copy_(torch.eye(8))
    for window in (None, 4):
        position = torch.arange(h.shape[2])
        gap = position[:, None] - position
        hidden = (gap < 0) | (gap >= (window or math.inf))
        expected = plain(h[0], h[0], h[0], attn_mask=hidden, need_weights=False)[0]
        torch.testing.assert_close(self_attention(h, qkv, 2, window)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("length", [1, 5, 32])
def test_flex_attention_and_its_mask_give_equal_outputs(length):
    """Where FlexAttention runs on CPU, which is without gradients."""
    q, k, v = torch.randn(3, 4, 2, length, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        flex = flex_windowed_attention(q, k, v, 8)
    torch.testing.assert_close(masked_windowed_attention(q, k, v, 8), flex, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has a backward on CUDA only")
def test_flex_attention_and_its_mask_give_equal_gradients_on_cuda():
    q, k, v = torch.randn(3, 4, 2, 32, 16, device="cuda").requires_grad_().unbind()
    gradients = [
        torch.autograd.grad(f(q, k, v, 8).square().sum(), [q, k, v])
        for f in (windowed_attention, masked_windowed_attention)
    ]
    for flex, masked in zip(*gradients, strict=True):
        torch.testing.assert_close(flex, masked, atol=1e-4, rtol=1e-4)


def test_the_window_of_flex_attention_is_not_that_of_attention():
    h = activation("transformer").detach()
    modules = blueprints_for("transformer")
    layout, flat = seeds_at_birth("transformer", Blueprint.ATTENTION, noise=0.5)
    full, window = (
        modules[blueprint].delta(layout.views(flat), h, None)
        for blueprint in (Blueprint.ATTENTION, Blueprint.FLEX_ATTENTION)
    )
    torch.testing.assert_close(full[:, :, :8], window[:, :, :8], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(full[:, :, 8:], window[:, :, 8:], atol=1e-3)
