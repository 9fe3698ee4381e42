"""Stopping after any epoch and loading grower, model and optimiser elsewhere is the same as not stopping."""

import io
import math

import pytest
import torch

from envs.vocabulary import AlphaSpeed, AlphaTarget, Blueprint
from policies.bundle import PolicySettings
from policies.factory import build_policy
from tests.envs.helpers import advance, fossilize, germinate, grow_inside, shrink_inside
from tests.envs.live.loops import Eager, Loop, Script, prune, retarget, same
from tests.policies.strategic.test_inference import STEADY, trained

EPOCHS = 18
PLAN = {
    0: germinate(1, Blueprint.CONV_LIGHT),
    1: advance(1),
    2: germinate(0, Blueprint.CONV_LADDER, style=3),
    3: advance(0),
    4: advance(1),
    5: grow_inside(0),
    6: advance(0),
    7: advance(1),
    8: fossilize(1),
    9: advance(0),
    10: retarget(0, style=0, target=AlphaTarget.HALF, speed=AlphaSpeed.FAST),
    13: shrink_inside(0),
    14: prune(0, speed=AlphaSpeed.FAST),
}
"""A fossil, and a ladder that changes its levels, its way of blending and its alpha, and whose prune takes its time."""


class Run:
    """A loop and its grower; the validation loss is NaN in the epochs that ``broken`` says.

    Args:
        resumed: What :meth:`saved` gave, of a run of which this is the continuation.
    """

    def __init__(self, make_policy, optimizer, network="cnn", broken=(), resumed=None):
        self.loop, self.broken, self.epochs = Loop(network, optimizer), broken, 0
        if resumed is not None:
            torch.nn.utils.vector_to_parameters(torch.zeros(10**4), self.loop.model.parameters())
        self.evaluate, self.loop.evaluate = self.loop.evaluate, self._evaluate
        self.grower, self.said = self.loop.grow(make_policy()), []
        if resumed is not None:
            self.load(resumed)

    def load(self, saved):
        state = _loaded(saved)
        self.epochs = state["epochs"]
        self.grower.load_state_dict(state["grower"])
        self.loop.model.load_state_dict(state["model"])
        self.loop.optimizer.load_state_dict(state["optimizer"])

    def _evaluate(self):
        loss, accuracy = self.evaluate()
        return math.nan if self.epochs in self.broken else loss, accuracy

    def epoch(self):
        torch.manual_seed(self.epochs)
        self.loop.epoch()
        self.epochs += 1
        self.said.append(str(self.grower.end_epoch()))

    def state(self):
        return {
            "epochs": self.epochs,
            "grower": self.grower.state_dict(),
            "model": self.loop.model.state_dict(),
            "optimizer": self.loop.optimizer.state_dict(),
        }

    def saved(self):
        file = io.BytesIO()
        torch.save(self.state(), file)
        return file.getvalue()


def _check(make_policy, optimizer, broken=(), network="cnn", every=1):
    run = Run(make_policy, optimizer, network, broken)
    saved = [run.saved()]
    for _ in range(EPOCHS):
        run.epoch()
        saved.append(run.saved())
    for epoch in range(0, EPOCHS, every):
        resumed = Run(make_policy, optimizer, network, broken, saved[epoch])
        assert same(_steady(resumed.state()), _steady(_loaded(saved[epoch]))), epoch
        then = min(epoch + 3, EPOCHS)
        for _ in range(epoch, then):
            resumed.epoch()
        assert resumed.said == run.said[epoch:then], epoch
        assert same(_steady(resumed.state()), _steady(_loaded(saved[then]))), epoch
    return run


def _steady(state):
    """Without the scale of what depends on the machine."""
    chooser = {name: value for name, value in state["grower"]["chooser"].items() if name != "scale"}
    return state | {"grower": state["grower"] | {"chooser": chooser}}


def _loaded(state):
    return torch.load(io.BytesIO(state), weights_only=True)


@pytest.mark.parametrize(("optimizer", "every"), [("AdamW", 1), ("SGD", 2)])
def test_two_seeds_planted_out_of_slot_order_go_on_exactly(optimizer, every):
    run = _check(lambda: Script(PLAN, internal_levels=True), optimizer, every=every)
    assert not any("not possible" in line for line in run.said)
    assert "fossilized" in run.said[-1]
    assert "1 embargoed" in run.said[-1]


def test_a_run_that_was_rolled_back_goes_on_exactly():
    run = _check(lambda: Script(PLAN, internal_levels=True), "AdamW", broken={11}, every=3)
    assert "taken back" in run.said[10]
    assert "fossilized" in run.said[-1]


@pytest.mark.parametrize("network", ["transformer", "mlp"])
def test_a_policy_that_draws_and_remembers_goes_on_exactly(network):
    _check(lambda: Eager(3), "AdamW fused", network=network, every=3)


def test_a_learned_policy_goes_on_exactly():
    slots = Script({}).slot_config
    torch.manual_seed(1)
    learned = build_policy("learned", PolicySettings(slots, 40))
    _check(lambda: learned, "SGD", every=5)


@pytest.mark.parametrize("network", ["cnn", "transformer"])
def test_a_policy_of_graphs_goes_on_exactly(network, tmp_path):
    trained(STEADY).save(tmp_path)
    run = _check(lambda: tmp_path, "SGD", network=network, every=4)
    assert any("germinate" in line for line in run.said)


@pytest.mark.parametrize("back", [0, 3, 6, 10])
def test_a_run_can_go_back_to_where_it_was_in_the_midst_of_an_epoch(back):
    run = Run(lambda: Script(PLAN, internal_levels=True), "AdamW")
    saved = [run.saved()]
    for _ in range(14):
        run.epoch()
        saved.append(run.saved())
    run.loop.epoch()
    run.load(saved[back])
    assert same(run.state(), _loaded(saved[back]))
    for _ in range(3):
        run.epoch()
    assert same(run.state(), _loaded(saved[back + 3]))
