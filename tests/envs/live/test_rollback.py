"""When the training breaks the host is what it was when it was last healthy, bit for bit, and grows no more."""

import copy
import math

import pytest
import torch

from envs.vocabulary import Blueprint, LifecycleOp
from policies.bundle import PolicySettings
from policies.factory import build_policy
from tests.envs.helpers import advance, fossilize, germinate
from tests.envs.live.loops import Loop, Script, same

PLAN = {
    0: germinate(1, Blueprint.CONV_LIGHT, style=3),
    1: advance(1),
    4: advance(1),
    7: advance(1),
    8: fossilize(1),
    9: germinate(0, Blueprint.NORM),
    10: advance(0),
}


class Breaking(Loop):
    """Weights become NaN in the epochs that ``poisoned`` says; the validation loss is NaN after those of ``broken``."""

    poisoned, broken, done = (), (), 0

    def evaluate(self):
        loss, accuracy = super().evaluate()
        return (math.nan, math.nan) if self.done in self.broken else (loss, accuracy)

    def epoch(self):
        super().epoch()
        self.done += 1
        if self.done in self.poisoned:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.fill_(math.nan)
                self.model.get_buffer("1.running_mean").fill_(math.nan)

    def everything(self):
        """Copies of all tensors and the optimiser's state of every parameter, seeds too, by name."""
        state = {f"{name} state": self.optimizer.state.get(p, {}) for name, p in self.model.named_parameters()}
        return copy.deepcopy(self.model.state_dict() | state)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "Adam foreach", "AdamW fused"])
@pytest.mark.parametrize(("broken", "saved"), [(3, 0), (7, 5), (10, 9), (12, 10)])
def test_host_fossils_and_optimiser_go_back_to_the_last_snapshot_and_nothing_grows_any_more(optimizer, broken, saved):
    loop = Breaking("cnn", optimizer)
    loop.poisoned = {broken}
    grower = loop.grow(Script(PLAN))
    states = [loop.everything()]
    own = sum(len(group["params"]) for group in loop.optimizer.param_groups)
    for epoch in range(1, broken + 1):
        loop.epoch()
        states.append(loop.everything())
        decision = grower.end_epoch()
        assert bool(decision.note) == (epoch == broken)
    assert "non finite" in decision.note
    fossils = 1 if saved >= 9 else 0
    wanted = {k: v for k, v in states[saved].items() if "growth" not in k or (fossils and "growth.slot/4" in k)}
    assert same(loop.everything(), wanted)
    trained = sum(len(group["params"]) for group in loop.optimizer.param_groups)
    assert trained == own + fossils * len(list(loop.model.growth.parameters()))
    assert len(loop.optimizer.state) == len([k for k, v in wanted.items() if k.endswith(" state") and v])
    assert math.isfinite(decision.loss)
    for _ in range(3):
        loop.epoch()
        assert grower.end_epoch().op is LifecycleOp.WAIT
    assert not same(loop.everything(), wanted)
    assert len(grower.commit().kept) == fossils


def _given(results, **settings):
    """Notes of the decisions of a run whose loop gives these results."""
    loop = Loop("mlp")
    grower = loop.grow(Script({}), **settings)
    notes = []
    for loss, accuracy in results:
        loop.epoch()
        notes.append(grower.end_epoch(loss, accuracy).note)
    return notes


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ([(1.0, 60.0)] + [(1.0, 25.0)] * 3, "collapse"),
        ([(1.0, 60.0)] * 3 + [(50.0, 60.0)] * 3, "divergence"),
        ([(1.0, 60.0), (math.inf, 60.0)], "non finite"),
    ],
)
def test_each_of_the_three_alarms_stops_the_growth(results, reason):
    notes = _given(results, chance=25.0)
    assert not any(notes[:-1])
    assert reason in notes[-1]


def test_without_a_chance_a_collapse_is_not_noticed_and_without_a_governor_nothing_is():
    assert not any(_given([(1.0, 60.0)] + [(1.0, 25.0)] * 5))
    assert not any(_given([(1.0, 60.0)] * 3 + [(50.0, 60.0)] * 5 + [(math.nan, 0.0)], chance=25.0, governor=False))


def test_without_a_governor_no_copies_are_kept_and_the_host_stays_as_it_was_trained():
    loop = Breaking("cnn", "AdamW")
    loop.broken = {3, 11, 12}
    grower = loop.grow(Script(PLAN), governor=False)
    for _ in range(14):
        loop.epoch()
        before = loop.own_state()
        assert not grower.end_epoch().note
        assert same(loop.own_state(), before)
        assert grower.state_dict()["host"]["saved"] == grower.state_dict()["host"]["saved_optimizer"] == {}
    assert "fossilized" in grower.decision.slots["4"]


@pytest.mark.parametrize("governor", [True, False])
def test_a_learned_policy_decides_whatever_is_measured(governor):
    loop = Breaking("cnn")
    loop.broken = set(range(8))
    policy = build_policy("learned", PolicySettings(Script({}).slot_config, 40))
    grower = loop.grow(policy, governor=governor)
    for _ in range(9):
        loop.epoch()
        assert "asked for what is not possible" not in grower.end_epoch().note


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW fused"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_seeds_gradient_that_is_not_finite_is_dropped_and_the_host_goes_on(optimizer, poison):
    twin = Loop("cnn", optimizer)
    torch.manual_seed(1)
    expected = [(twin.epoch(), twin.own_state())[1] for _ in range(4)]
    loop = Loop("cnn", optimizer)
    grower = loop.grow(Script({0: germinate(1, Blueprint.CONV_LIGHT), 1: advance(1)}))
    torch.manual_seed(1)
    loop.epoch()
    grower.end_epoch()
    seed = loop.model.growth.get_submodule("slot/4").named()
    hook = next(iter(seed.values())).register_hook(lambda gradient: gradient * poison)
    for epoch in range(1, 4):
        before = copy.deepcopy(seed)
        if epoch == 3:
            hook.remove()
        loop.epoch()
        assert same(dict(before), dict(seed)) == (epoch < 3)
        assert same(loop.own_state(), expected[epoch])
        assert not grower.end_epoch().note
    assert all(torch.isfinite(p).all() for p in seed.values())
