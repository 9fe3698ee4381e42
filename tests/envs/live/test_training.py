"""A host with seeds in TRAINING is, bit for bit, the host without them: outputs, gradients, weights, optimiser."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from envs.blueprints import blueprints_for
from envs.live.places import Places
from envs.live.planting import graft
from envs.live.slot import Growth
from envs.vocabulary import AlphaAlgorithm, Blueprint
from tests.envs.helpers import advance, germinate
from tests.envs.live.loops import NETWORKS, OPTIMIZERS, TOPOLOGY, Loop, Script, own_state_dict, prune, same

BLUEPRINTS = {
    "cnn": (Blueprint.CONV_LIGHT, Blueprint.ATTENTION),
    "transformer": (Blueprint.ATTENTION, Blueprint.MLP_SMALL),
    "mlp": (Blueprint.LORA, Blueprint.NORM),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_output_and_all_gradients_are_those_of_the_model_alone_with_every_blueprint(network):
    alone = Loop(network)
    expected = _output_and_gradients(alone)
    for kind, algorithm in itertools.product(blueprints_for(TOPOLOGY[network]), AlphaAlgorithm):
        loop = Loop(network)
        slots = _incubating(loop, kind, algorithm)
        assert same(_output_and_gradients(loop), expected), (kind, algorithm)
        assert all(p.grad is not None for slot in slots for p in slot.named().values()), (kind, algorithm)


def _incubating(loop, kind, algorithm):
    """Seeds in every slot, in TRAINING, their weights moved so that they propose something."""
    possible = Places(loop.model, loop.x[:3])
    places = possible.chosen(loop.slots)
    growth = Growth(places, [possible.device(place) for place in places])
    graft(loop.model, growth)
    generator = torch.Generator().manual_seed(1)
    for number, slot in enumerate(growth.slots()):
        slot.plant(kind)
        slot.set_stage(incubating=True, attached=False)
        slot.set_form(algorithm, 1, np.random.default_rng(number))
        with torch.no_grad():
            for parameter in slot.named().values():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return growth.slots()


def _output_and_gradients(loop):
    torch.manual_seed(3)
    loop.model.train()
    logits = loop.model(loop.x)
    F.cross_entropy(logits, loop.y).backward()
    gradients = {name: p.grad for name, p in loop.model.named_parameters() if not name.startswith("growth.")}
    return {"logits": logits.detach(), "gradients": gradients, "state": own_state_dict(loop.model)}


CASES = [
    (network, optimizer, closure, clip)
    for number, (network, optimizer) in enumerate(itertools.product(NETWORKS, OPTIMIZERS))
    for closure, clip in [((number // 2) % 2 == 0, number % 2 == 0)]
]


@pytest.mark.parametrize(("network", "optimizer", "closure", "clip"), CASES)
def test_training_is_that_of_an_untouched_twin_while_seeds_are_born_incubate_and_are_pruned(
    network, optimizer, closure, clip
):
    first, second = BLUEPRINTS[TOPOLOGY[network]]
    plan = {
        0: germinate(1, first),
        1: advance(1),
        2: germinate(0, second, style=3),
        3: advance(0),
        5: prune(1),
        7: prune(0),
    }
    twin = Loop(network, optimizer, closure, clip)
    torch.manual_seed(5)
    expected = [(twin.epoch(), twin.own_state())[1] for _ in range(9)]
    loop = Loop(network, optimizer, closure, clip)
    grower = loop.grow(Script(plan))
    torch.manual_seed(5)
    alive = []
    for epoch in range(9):
        before = {id(p): p.detach().clone() for p in _seed_parameters(loop)}
        loop.epoch()
        moved = [not torch.equal(before[id(p)], p) for p in _seed_parameters(loop)]
        alive.append(any(moved))
        assert same(loop.own_state(), expected[epoch]), epoch
        assert not grower.end_epoch().note
        assert same(loop.own_state(), expected[epoch]), epoch
    assert alive == [False, *[True] * 6, False, False]
    assert sum(len(group["params"]) for group in loop.optimizer.param_groups) == len(list(twin.model.parameters()))
    assert len(loop.optimizer.state) == len(twin.optimizer.state)


def _seed_parameters(loop):
    own = {id(p) for name, p in loop.model.named_parameters() if not name.startswith("growth.")}
    return [p for group in loop.optimizer.param_groups for p in group["params"] if id(p) not in own]
