"""Committing at any epoch is never worse on validation than keeping all seeds or none, and frees the model."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper_ray.live import LiveError, rebuild
from esper_ray.live.commitment import TOLERANCE, choose
from tests.envs.live.loops import NETWORKS, Eager, Loop, Script, same


def _accuracy(loop, stripped=()):
    """Validation accuracy of a copy of the model without some of its seeds."""
    model = copy.deepcopy(loop.model).eval()
    for slot in model.growth.slots():
        if slot.place.name in stripped:
            slot.empty()
    x, y = loop.held_out
    with torch.no_grad():
        return 100.0 * (model(x).argmax(1) == y).float().mean().item()


@settings(max_examples=20)
@given(st.sampled_from(list(NETWORKS)), st.integers(0, 14), st.integers(0, 10**6), st.sampled_from(["SGD", "AdamW"]))
def test_it_is_never_worse_than_all_or_nothing_and_the_report_is_true(network, epochs, seed, optimizer):
    loop = Loop(network, optimizer, seed=seed % 5)
    own = sum(p.numel() for p in loop.model.parameters())
    keys, trained = list(loop.model.state_dict()), sum(len(group["params"]) for group in loop.optimizer.param_groups)
    grower = loop.grow(Eager(seed))
    for _ in range(epochs):
        loop.epoch()
        grower.end_epoch()
    states = grower.decision.slots
    unfinished = [name for name, state in states.items() if state and "fossilized" not in state]
    all_of_them, none_of_them = _accuracy(loop), _accuracy(loop, unfinished)
    report = grower.commit()
    x, _ = loop.held_out
    loss, accuracy = _evaluated(loop)
    assert accuracy == report.accuracy >= max(all_of_them, none_of_them)
    assert loss == report.loss
    assert report.epochs == epochs
    kept = {kept.seed.place.name: kept for kept in report.kept}
    assert kept.keys() >= {name for name, state in states.items() if "fossilized" in state}
    assert not kept.keys() & set(report.removed)
    counted = sum(p.numel() for p in loop.model.parameters())
    assert (report.host_parameters, report.parameters) == (own, counted)
    for name, seed_kept in kept.items():
        slot = next(slot for slot in loop.model.growth.slots() if slot.place.name == name)
        assert seed_kept.parameters == sum(p.numel() for p in slot.parameters()) > 0
        assert float(slot.alpha) == seed_kept.seed.alpha > 0.0
    _check_ordinary(loop, kept, keys, trained)
    again = rebuild(Loop(network).model, report.card)
    again.load_state_dict(loop.model.state_dict(), strict=True)
    assert same(again.eval()(x).detach(), loop.model.eval()(x).detach())


def _evaluated(loop):
    loop.model.eval()
    with torch.no_grad():
        return loop.evaluate()


def _check_ordinary(loop, kept, keys, trained):
    """Hooks where seeds live and nowhere else; the optimiser trains all parameters, in its own way, and saves them."""
    hooked = {name for name, module in loop.model.named_modules() if module._forward_hooks}
    assert hooked == kept.keys()
    if not kept:
        assert list(loop.model.state_dict()) == keys
        assert not hasattr(loop.model, "growth")
    held = [id(p) for group in loop.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in loop.model.parameters())
    assert not loop.optimizer._optimizer_step_pre_hooks
    assert not loop.optimizer._optimizer_step_post_hooks
    before = [p.detach().clone() for p in loop.model.growth.parameters()] if kept else []
    loop.epoch()
    assert not before or not same(before, [p.detach() for p in loop.model.growth.parameters()])
    assert all(p.requires_grad for p in loop.model.parameters())


def test_after_a_commit_the_grower_says_that_the_run_is_over_and_the_model_can_grow_anew():
    loop = Loop("mlp")
    grower = loop.grow(Script({}))
    loop.epoch()
    grower.end_epoch()
    grower.commit()
    for call in (grower.end_epoch, grower.commit, grower.state_dict, lambda: grower.load_state_dict({})):
        with pytest.raises(LiveError, match="committed"):
            call()
    anew = loop.grow(Script({}))
    loop.epoch()
    assert anew.end_epoch().epoch == 1


@settings(max_examples=300)
@given(
    st.lists(st.integers(0, 7).map(lambda part: 0.3 * part), min_size=8, max_size=8),
    st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=3, max_size=3),
    st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_the_rule_itself_whatever_seeds_are_worth(accuracy, alpha, unfinished):
    alpha, unfinished = np.array(alpha), np.array(unfinished)

    def validate(shown):
        return 1.0, accuracy[int((shown > 0.0) @ [1, 2, 4])]

    chosen = choose(validate, alpha, unfinished)
    shown = np.where(chosen.kept | ~unfinished, alpha, 0.0)
    everything, nothing = validate(alpha)[1], validate(np.where(unfinished, 0.0, alpha))[1]
    assert chosen.accuracy == validate(shown)[1] >= max(everything, nothing)
    assert not (chosen.kept & ~(unfinished & (alpha > 0.0))).any()
    if chosen.accuracy > everything:
        for at in np.flatnonzero(chosen.kept):
            less = np.where(np.arange(3) == at, 0.0, shown)
            assert chosen.accuracy - validate(less)[1] > TOLERANCE
