import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from envs.batched.activations import IMAGES
from envs.batched.parameters import count_parameters
from envs.blueprints import blueprints_for
from envs.hosts.cnn import CnnHost, CnnVariant
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.population.bank import SeedBank
from envs.population.blending import GATE_BIAS, GATE_WEIGHT, SeedRun, SlotSeeds, grow
from envs.population.optimizer import sgd_step
from envs.vocabulary import Blueprint
from tests.envs.helpers import CNN_BLUEPRINTS, advance, germinate, tiny_env

MODULES = blueprints_for("cnn")
ALGORITHMS = ("ADD", "MULTIPLY", "GATE")
WIDTHS = (2, 4, 8, 16)
ANY_WIDTHS = (1, 5, 6, 7, 9, 10, 30)
MEMBERS = 3


def activation(width, side, seed=0, batch=8):
    """What a host hands to a slot; like a host's it takes a gradient."""
    noise = torch.randn(MEMBERS, batch, side, side, width, generator=torch.Generator().manual_seed(seed))
    return noise.requires_grad_()


def seeds_at_birth(blueprint, width, seed=0):
    bank = SeedBank.create(MODULES[blueprint], 0, width, torch.device("cpu"))
    rng = np.random.default_rng(seed)
    rows = [bank.layout.draw(bank.layout.specs, rng) for _ in range(MEMBERS)]
    return bank.layout, torch.from_numpy(np.stack(rows))


def run_of(blueprint, layout, flat, algorithm, alpha, incubating=False, attached=False):
    every = torch.ones(MEMBERS, dtype=torch.bool)
    amplitude = torch.full((MEMBERS,), alpha)
    return SeedRun(
        slot=0,
        module=MODULES[blueprint],
        layout=layout,
        flat=flat,
        members=torch.arange(MEMBERS),
        alpha=torch.zeros(MEMBERS) if incubating else amplitude,
        gradient_weight=torch.ones(MEMBERS) if incubating else amplitude,
        attached=every & attached,
        incubating=every & incubating,
        multiplies=every if algorithm == "MULTIPLY" else ~every,
        gated=every if algorithm == "GATE" else ~every,
        present=None,
    )


def test_a_cnn_offers_exactly_its_seven_blueprints_and_with_internal_levels_the_ladder():
    assert set(MODULES) == {*CNN_BLUEPRINTS, Blueprint.CONV_LADDER}
    assert set(tiny_env(1).population.modules) == set(CNN_BLUEPRINTS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("blueprint", CNN_BLUEPRINTS, ids=lambda blueprint: blueprint.name)
def test_a_seed_is_an_exact_identity_at_birth_whatever_alpha(blueprint, algorithm):
    for width, side, alpha in itertools.product(WIDTHS + ANY_WIDTHS, (1, 2, 8), (0.3, 1.0)):
        h = activation(width, side)
        layout, flat = seeds_at_birth(blueprint, width)
        assert torch.equal(grow(h, SlotSeeds([run_of(blueprint, layout, flat, algorithm, alpha)]), IMAGES), h)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("blueprint", CNN_BLUEPRINTS, ids=lambda blueprint: blueprint.name)
def test_a_seed_is_an_exact_identity_at_alpha_zero_whatever_its_parameters(blueprint, algorithm):
    for width, side, broken in itertools.product(WIDTHS, (1, 2, 8), (False, True)):
        h = activation(width, side)
        layout, flat = seeds_at_birth(blueprint, width)
        flat = torch.full_like(flat, torch.nan) if broken else 3.0 * torch.randn_like(flat)
        assert torch.equal(grow(h, SlotSeeds([run_of(blueprint, layout, flat, algorithm, 0.0)]), IMAGES), h)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("blueprint", CNN_BLUEPRINTS, ids=lambda blueprint: blueprint.name)
def test_a_seed_with_trained_parameters_changes_the_host_but_never_more_than_by_its_norm(blueprint, algorithm):
    for width, side in itertools.product(WIDTHS, (1, 2, 8)):
        h = activation(width, side)
        layout, flat = seeds_at_birth(blueprint, width)
        torch.manual_seed(1)
        grown = grow(
            h, SlotSeeds([run_of(blueprint, layout, flat + 3.0 * torch.randn_like(flat), algorithm, 1.0)]), IMAGES
        )
        effect, size = ((x.square().sum((2, 3, 4)).sqrt()) for x in (grown - h, h))
        assert (effect.mean(1) > 1e-3).all()
        assert (effect <= size * (1 + 1e-5)).all()


@pytest.mark.parametrize("incubating", [True, False], ids=["TRAINING", "BLENDING"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("blueprint", CNN_BLUEPRINTS, ids=lambda blueprint: blueprint.name)
def test_every_single_parameter_has_a_gradient_by_the_third_step(blueprint, algorithm, incubating):
    for width in (*WIDTHS, 6, 9):
        layout, flat = seeds_at_birth(blueprint, width, seed=width)
        momentum, seen = torch.zeros_like(flat), torch.zeros_like(flat, dtype=torch.bool)
        for step in range(3):
            leaf = flat.clone().requires_grad_()
            h = activation(width, side=4, seed=step, batch=32)
            target = activation(width, side=4, seed=100 + step, batch=32)
            loss = (
                grow(h, SlotSeeds([run_of(blueprint, layout, leaf, algorithm, 0.5, incubating)]), IMAGES) * target
            ).sum()
            gradient, _ = torch.autograd.grad(loss, [leaf, h])  # as in training, where the host learns too
            seen |= gradient != 0.0
            sgd_step(flat, gradient, momentum, torch.full((MEMBERS, 1), 0.02))
        for name, alive in layout.views(seen).items():
            if name in (GATE_WEIGHT, GATE_BIAS):
                assert alive.all() if algorithm == "GATE" else not alive.any()
            else:
                assert alive.all(), f"{name} at width {width}: {int((~alive).sum())} parameters without a gradient"


@pytest.mark.parametrize("blueprint", CNN_BLUEPRINTS, ids=lambda blueprint: blueprint.name)
def test_members_of_a_bank_compute_as_if_alone(blueprint):
    h = activation(8, 4)
    layout, flat = seeds_at_birth(blueprint, 8)
    flat = flat + 0.3 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    together = MODULES[blueprint].delta(layout.views(flat), h, None)
    for member in range(MEMBERS):
        alone = MODULES[blueprint].delta(layout.views(flat[member : member + 1]), h[member : member + 1], None)
        torch.testing.assert_close(together[member], alone[0], atol=1e-5, rtol=1e-5)


FROZEN_HOST = """
import sys

import torch

from envs.batched.kernels import operators
from envs.batched.parameters import ParameterLayout
from envs.blueprints import blueprints_for

if sys.argv[1] == "torch":
    operators._kernels = lambda: None
for module in blueprints_for("cnn").values():
    for width in (6, 8):
        layout = ParameterLayout(module.parameters(width))
        flat = torch.rand(2, layout.size, requires_grad=True)
        for present in (None, torch.tensor([width - 1, width])):
            module.delta(layout.views(flat), torch.randn(2, 3, 4, 4, width), present).square().sum().backward()
        assert flat.grad.abs().sum() > 0
"""


@pytest.mark.parametrize("by", ["kernels", "torch"])
def test_seeds_train_on_a_frozen_host(by):
    """In a process of its own: torch's group norm would take this one along, if it were given weight and bias."""
    subprocess.run([sys.executable, "-c", FROZEN_HOST, by], check=True)


def test_parameter_counts_are_the_numbers_that_the_blueprints_promise():
    counts = {
        (blueprint, width): count_parameters(MODULES[blueprint].parameters(width))
        for blueprint, width in itertools.product(CNN_BLUEPRINTS, (8, 16, 32))
    }
    assert counts[Blueprint.DEPTHWISE, 8] == 160
    assert counts[Blueprint.DEPTHWISE, 16] == 448
    assert counts[Blueprint.CONV_LIGHT, 8] == 664
    assert counts[Blueprint.CONV_LIGHT, 32] == 10_336


@pytest.mark.parametrize(("kernels", "count"), [((1, 1, 1), 1090), ((3, 1, 1), 1154), ((3, 3, 3), 6274)])
def test_host_parameter_counts_are_those_of_the_design(kernels, count):
    variant = CnnVariant((8, 16, 32), kernels)
    assert count_parameters(CnnHost(variant, in_channels=1, num_classes=10).parameters(variant)) == count


@pytest.mark.parametrize("widths", [(4, 8, 8), (5, 6, 7), (9, 10, 30)])
def test_the_parameters_paid_for_are_those_allocated(widths):
    env = tiny_env(len(CNN_BLUEPRINTS) * 3, (CnnVariant(widths, (1, 3, 1)),), parameter_budget=10**9)
    env.reset(seed=0)
    assert (env.lifecycle.costs.host == env.population.flat.shape[1]).all()
    cells = list(itertools.product(CNN_BLUEPRINTS, range(3)))
    env.step(np.stack([germinate(slot, blueprint, style=3) for blueprint, slot in cells]))
    env.step(np.stack([advance(slot) for _, slot in cells]))
    for member, (blueprint, slot) in enumerate(cells):
        bank = env.population.banks[slot, blueprint]
        assert member in bank.rows.members
        assert env.lifecycle.extra_parameters[member] == bank.rows.flat.shape[1]


def test_a_narrow_member_pays_for_its_own_width_only():
    env = MorphogenesisVectorEnv(40, task="digits_mixed", max_epochs=2)
    env.reset(seed=0)
    for member in range(env.num_envs):
        variant = env.task.variants[env.population.variant[member]]
        host = CnnHost(variant, in_channels=1, num_classes=10)
        assert env.lifecycle.costs.host[member] == count_parameters(host.parameters(variant))
        assert int((env.population.flat[member] != 0).sum()) <= env.lifecycle.costs.host[member]
        for slot, width in enumerate(variant.widths):
            expected = count_parameters(MODULES[Blueprint.DEPTHWISE].parameters(width))
            assert env.lifecycle.costs.blueprint[member, Blueprint.DEPTHWISE, slot] == expected
    assert len(set(env.lifecycle.costs.host.tolist())) == len(env.task.variants)
