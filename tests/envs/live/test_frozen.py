"""Seeds of every blueprint train in a host that is frozen; in a process of its own, since torch could crash there."""

import itertools
import subprocess
import sys

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
from tests.envs.live.loops import NETWORKS, TOPOLOGY, Loop, Script, same

STAGES = {"TRAINING": (True, False), "BLENDING": (False, False), "HOLDING": (False, True)}


def train_every_blueprint(network):
    """One backward through each seed of a frozen host, in each stage."""
    loop = Loop(network)
    loop.model.requires_grad_(False)
    possible = Places(loop.model, loop.x[:3])
    places = possible.chosen(loop.slots)
    growth = Growth(places, [possible.device(place) for place in places])
    graft(loop.model, growth)
    for kind, algorithm, stage in itertools.product(blueprints_for(TOPOLOGY[network]), AlphaAlgorithm, STAGES):
        incubating, attached = STAGES[stage]
        for slot in growth.slots():
            slot.empty()
            slot.plant(kind)
            slot.set_form(algorithm, 1, np.random.default_rng(0))
            slot.set_stage(incubating, attached)
            slot.set_alpha(0.0 if incubating else 0.5)
        F.cross_entropy(loop.model(loop.x), loop.y).backward()
        what = (kind.name, algorithm.name, stage)
        assert all(torch.isfinite(p.grad).all() for slot in growth.slots() for p in slot.named().values()), what
        assert all(p.grad is None for p in loop.model.parameters() if not p.requires_grad), what


def test_every_blueprint_has_gradients_in_a_frozen_host():
    calls = "; ".join(f"train_every_blueprint({network!r})" for network in NETWORKS)
    code = f"import torch; torch.set_num_threads(1); from {__name__} import *; {calls}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("whole", [True, False], ids=["all of it", "all but the head"])
def test_a_frozen_host_stays_as_it_is_while_its_seeds_train(whole):
    loop = Loop("cnn", "AdamW")
    loop.model.requires_grad_(False)
    loop.model[-1].requires_grad_(not whole)
    if not whole:
        loop.optimizer = torch.optim.AdamW(loop.model[-1].parameters(), lr=0.01)
    before = {name: value for name, value in loop.own_state().items() if "model.0" in name or "model.3" in name}
    grower = loop.grow(Script({0: germinate(1, Blueprint.CONV_LIGHT), 1: advance(1), 4: advance(1), 7: advance(1)}))
    moved = []
    for _ in range(9):
        if not whole or any(slot.named() for slot in loop.model.growth.slots()):  # else nothing wants a gradient
            seeds = {name: p.detach().clone() for name, p in loop.model.growth.get_submodule("slot/4").named().items()}
            loop.epoch()
            moved.append(bool(seeds) and not same(seeds, dict(loop.model.growth.get_submodule("slot/4").named())))
        grower.end_epoch()
    assert sum(moved) == 8
    assert same({name: loop.own_state()[name] for name in before}, before)
