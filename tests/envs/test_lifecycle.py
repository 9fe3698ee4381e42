"""The stage machine against a slow, plain model of it, over random histories."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.action_masks import build_mask, marginal_mask, mask_size, split_mask
from envs.alpha import curve_value, ramp_value
from envs.limits import LifecycleRules
from envs.slots import SlotConfig
from envs.vocabulary import BLENDING_METHODS, NO_SHAPE, TRANSITIONS, AlphaCurve, LifecycleOp, RampShape, SeedStage
from tests.envs.plain_lifecycle import (
    MOVES,
    OPS,
    all_pairs,
    build,
    check_mask,
    check_state,
    choose,
    curve_share,
    refuses,
    worlds,
    write,
)
from tests.envs.ramp_vector import RAMP_VECTOR


@settings(max_examples=120)
@given(worlds(), MOVES, MOVES)
def test_any_history_is_that_of_the_plain_model_and_the_mask_admits_exactly_what_is_executed(world, left, right):
    life, models = build(world, hosts=2)
    for moves in zip(left, right, strict=False):
        row = np.zeros((2, 8), np.int64)
        chosen = []
        for host, (move, model) in enumerate(zip(moves, models, strict=True)):
            pairs = check_mask(life, host, model)
            action = choose(move, model, pairs)
            row[host] = OPS.index(action[0]), *action[1:]
            chosen.append(action)
            closed = [pair for pair in all_pairs(model) if pair not in pairs]
            if closed:
                refuses(life, host, *closed[move[0] % len(closed)])
        before = life.stage.copy()
        life.apply(row)
        life.tick()
        for host, (model, action, move) in enumerate(zip(models, chosen, moves, strict=True)):
            model.act(*action)
            model.tick()
            write(life, host, model, move[-1])
            check_state(life, host, model)
        for was, now in zip(before.ravel(), life.stage.ravel(), strict=True):
            assert was == now or SeedStage(int(now)) in TRANSITIONS[SeedStage(int(was))], "one stage an epoch at most"


@given(worlds(), MOVES)
def test_the_marginal_mask_says_which_choice_is_open_under_some_op_and_never_shows_an_empty_head(world, moves):
    life, _ = build(world)
    heads = life.slots.heads
    for pick, *_ in moves:
        mask = build_mask(life)
        marginal = marginal_mask(mask, heads)[0]
        assert len(marginal) == sum(head.size for head in heads)
        views = split_mask(mask[0], heads)
        start = 0
        for head in heads:
            part = marginal[start : start + head.size].tolist()
            rows = views[head.name] if head.masked_by_op else [views[head.name]]
            open_somewhere = [int(any(row[choice] for row in rows)) for choice in range(head.size)]
            assert part == (open_somewhere if any(open_somewhere) else [1] + [0] * (head.size - 1))
            start += head.size
        pairs = np.argwhere(views["slot"])
        row = np.zeros((1, 8), np.int64)
        if len(pairs):
            row[0, :2] = pairs[pick % len(pairs)]
            row[0, 2] = np.flatnonzero(views["blueprint"])[0] if views["blueprint"].any() else 0
        life.apply(row)
        life.tick()
        life.book_gradients(np.ones_like(life.pruning))
        life.book_measurement(np.ones_like(life.pruning))


@pytest.mark.parametrize("curve", AlphaCurve)
def test_curves_reach_zero_and_one_exactly_rise_and_are_symmetric(curve):
    steps = np.linspace(0.0, 1.0, 41)
    values = curve_value(np.full(41, curve), steps)
    assert values[0] == 0.0
    assert values[-1] == 1.0
    assert (np.diff(values) > 0).all()
    np.testing.assert_allclose(values + values[::-1], 1.0, atol=1e-12)
    np.testing.assert_allclose(values, [curve_share(curve.name, x) for x in steps], atol=1e-12)


def test_sigmoids_differ_in_steepness():
    quarter = curve_value(np.arange(len(AlphaCurve)), np.full(len(AlphaCurve), 0.25))
    assert quarter[AlphaCurve.SIGMOID_SHARP] < quarter[AlphaCurve.SIGMOID] < quarter[AlphaCurve.SIGMOID_GENTLE] < 0.25


FREE = {
    "enabled": [True, True],
    "min_training": 1,
    "embargo": 5,
    "max_living": None,
    "budget": None,
    "costs": {1: [5, 5], 2: [6, 6], 3: [7, 7]},
    "gate": [2, 2],
}


def step(life, op=LifecycleOp.WAIT, slot=0, blueprint=1, style=0, tempo=0, target=2, speed=0, curve=0):
    life.apply(np.array([[op, slot, blueprint, style, tempo, target, speed, curve]]))
    life.tick()
    life.book_gradients(np.ones_like(life.pruning))
    life.book_measurement(np.ones_like(life.pruning))


@pytest.mark.parametrize(("tempo", "epochs"), [(0, 3), (1, 5), (2, 8)])
@pytest.mark.parametrize("target", range(3))
def test_blending_reaches_its_target_in_exactly_its_last_epoch_and_a_partial_target_fossilises(tempo, epochs, target):
    life, _ = build(FREE)
    step(life, LifecycleOp.GERMINATE, tempo=tempo, target=target)
    step(life, LifecycleOp.ADVANCE)
    step(life, LifecycleOp.ADVANCE)
    alphas = [life.alpha[0, 0]]
    while len(alphas) < epochs:
        assert not life.gates()[0, LifecycleOp.ADVANCE, 0]
        step(life)
        alphas.append(life.alpha[0, 0])
    goal = (0.5, 0.7, 1.0)[target]
    np.testing.assert_allclose(alphas, [goal * k / epochs for k in range(1, epochs + 1)])
    assert alphas[-1] == goal
    step(life, LifecycleOp.ADVANCE)
    step(life, LifecycleOp.FOSSILIZE)
    assert life.stage[0, 0] == SeedStage.FOSSILIZED
    assert life.alpha[0, 0] == goal
    assert not life.gates()[0, :, 0].any(), "a fossil is final"


@pytest.mark.parametrize("speed", range(4))
def test_a_scheduled_prune_ramps_down_then_the_slot_is_closed_for_the_embargo(speed):
    life, _ = build(FREE)
    step(life, LifecycleOp.GERMINATE)
    for op in (LifecycleOp.ADVANCE, LifecycleOp.ADVANCE, LifecycleOp.WAIT, LifecycleOp.WAIT, LifecycleOp.ADVANCE):
        step(life, op)
    assert life.stage[0, 0] == SeedStage.HOLDING
    step(life, LifecycleOp.PRUNE, speed=speed, curve=AlphaCurve.COSINE)
    for elapsed in range(1, (0, 3, 5, 8)[speed]):
        assert SeedStage(life.stage[0, 0]) is SeedStage.HOLDING
        assert 0.0 < life.alpha[0, 0] < 1.0
        assert life.epochs_to_target[0, 0] == (0, 3, 5, 8)[speed] - elapsed
        assert not life.gates()[0, :, 0].any(), "a slot whose prune is under way admits no op"
        step(life)
    seen = []
    for _ in range(8):
        seen.append(SeedStage(life.stage[0, 0]).name)
        step(life)
    assert seen == ["PRUNED"] + ["EMBARGOED"] * 5 + ["RESETTING", "DORMANT"]
    assert life.extra_parameters[0] == 0


def test_a_retarget_may_not_switch_to_a_gate_that_does_not_fit():
    life, _ = build(FREE | {"budget": 12})  # two seeds of 5 and one gate of 2
    for slot in (0, 1):
        step(life, LifecycleOp.GERMINATE, slot)
    for slot in (0, 1):
        step(life, LifecycleOp.ADVANCE, slot)
        step(life, LifecycleOp.ADVANCE, slot)
    for _ in range(3):
        step(life)

    def styles():
        return split_mask(build_mask(life)[0], life.slots.heads)["style"].tolist()

    assert styles() == [1, 1, 1, 1]
    step(life, LifecycleOp.SET_ALPHA_TARGET, 0, style=3)
    assert life.extra_parameters[0] == 12
    assert styles() == [1, 1, 1, 0], "open for slot 0, but slot 1 has no room for a gate"
    step(life, LifecycleOp.PRUNE, 1)
    assert styles() == [1, 1, 1, 1]


def test_sizes_follow_from_the_slots():
    for size, expected in ((1, 44), (3, 56), (5, 68), (10, 98)):
        heads = SlotConfig.for_row(size).heads
        assert mask_size(heads) == expected == 6 + 6 * size + 13 + 4 + 3 + 3 + 4 + 5
        assert [head.size for head in heads] == [6, size, 13, 4, 3, 3, 4, 5]
        inside = SlotConfig.for_row(size, internal_levels=True).heads
        assert mask_size(inside) == 8 + 8 * size + 14 + 4 + 3 + 3 + 4 + 5
        assert [head.size for head in inside] == [8, size, 14, 4, 3, 3, 4, 5]
        # The ops on internal levels need the slot and nothing else.
        assert [head.name for head in inside if 6 in head.needed_by] == ["op", "slot"]
        assert [head.name for head in inside if 7 in head.needed_by] == ["op", "slot"]
        assert all(max(head.needed_by) <= 5 for head in heads)
    assert sum(head.size for head in SlotConfig.for_row(3).heads) == 41


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlotConfig(()), "slot_ids"),
        (lambda: SlotConfig(("a", "a")), "slot_ids"),
        (lambda: SlotConfig(("a", "b"), ("c",)), "'c'"),
        (lambda: LifecycleRules(min_training_epochs=0), "min_training_epochs"),
        (lambda: LifecycleRules(embargo_epochs=0), "embargo_epochs"),
        (lambda: LifecycleRules(max_living_seeds=-1), "max_living_seeds"),
        (lambda: LifecycleRules(parameter_budget=-1), "parameter_budget"),
    ],
)
def test_impossible_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


WINDOWS = st.tuples(st.floats(0.0, 0.95), st.floats(0.0, 1.0)).map(
    lambda drawn: (drawn[0], min(drawn[0] + 0.05 + (0.95 - drawn[0]) * drawn[1], 1.0))
)


@given(st.sampled_from(RampShape), WINDOWS, st.integers(0, 2), st.integers(0, 2), st.integers(0, 1))
def test_a_seed_is_blended_in_by_the_shape_that_was_chosen_for_it(shape, window, tempo, target, early):
    life, _ = build(FREE)
    step(life, LifecycleOp.GERMINATE, tempo=tempo, target=target)
    for epoch in range(2):
        if epoch == early:
            life.shape_blending(*(np.array([x]) for x in (0, 0, shape, *window)))
        step(life, LifecycleOp.ADVANCE)
    epochs, goal = (3, 5, 8)[tempo], (0.5, 0.7, 1.0)[target]
    alphas = [life.alpha[0, 0]]
    while len(alphas) < epochs:
        step(life)
        alphas.append(life.alpha[0, 0])
    np.testing.assert_allclose(alphas, goal * ramp_value(shape, *window, np.arange(1, epochs + 1) / epochs), atol=1e-12)
    assert alphas[-1] == goal


@pytest.mark.parametrize(("shape", "start", "end", "points"), RAMP_VECTOR)
def test_a_seed_is_blended_in_as_the_shared_vector_says(shape, start, end, points):
    """At every share of its window at which an epoch of some tempo ends."""
    met = 0
    for tempo, epochs in enumerate((3, 5, 8)):
        life, _ = build(FREE)
        step(life, LifecycleOp.GERMINATE, tempo=tempo, target=1)
        life.shape_blending(*(np.array([x]) for x in (0, 0, BLENDING_METHODS.index(shape), start, end)))
        step(life, LifecycleOp.ADVANCE)
        step(life, LifecycleOp.ADVANCE)
        for epoch in range(1, epochs + 1):
            said = [value for share, value in points.items() if math.isclose(share * epochs, epoch)]
            np.testing.assert_allclose([life.alpha[0, 0]] * len(said), 0.7 * np.array(said), atol=1e-8)
            met += len(said)
            step(life)
    assert met >= 5


def test_whoever_retargets_a_seed_takes_its_shape_from_it():
    life, _ = build(FREE)
    step(life, LifecycleOp.GERMINATE, tempo=1)
    life.shape_blending(*(np.array([x]) for x in (0, 0, RampShape.WARMUP_HOLD, 0.0, 0.1)))
    for _ in range(2):
        step(life, LifecycleOp.ADVANCE)
    for _ in range(4):
        assert life.alpha[0, 0] == 0.5
        step(life)
    assert life.alpha[0, 0] == 1.0
    step(life, LifecycleOp.SET_ALPHA_TARGET, target=0, speed=2)
    np.testing.assert_allclose(life.alpha[0, 0], 0.9)


def test_a_shape_is_chosen_before_blending_begins_and_fits_its_window():
    life, _ = build(FREE)
    step(life, LifecycleOp.GERMINATE)
    with pytest.raises(ValueError, match=r"slot r0c1 of host 0 is DORMANT: choose how a seed is blended in before"):
        life.shape_blending(*(np.array([x]) for x in (0, 1, RampShape.COSINE, 0.0, 1.0)))
    with pytest.raises(ValueError, match="0 <= start < end <= 1"):
        life.shape_blending(*(np.array([x]) for x in (0, 0, RampShape.COSINE, 0.5, 0.5)))
    for _ in range(2):
        step(life, LifecycleOp.ADVANCE)
    with pytest.raises(ValueError, match="is BLENDING"):
        life.shape_blending(*(np.array([x]) for x in (0, 0, RampShape.COSINE, 0.0, 1.0)))
    assert (life.blend_shape == NO_SHAPE).all()
