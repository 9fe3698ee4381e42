"""The stage machine against a slow, plain model of it, over random histories."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.action_masks import build_mask, marginal_mask, mask_size, split_mask
from envs.alpha import curve_value
from envs.lifecycle import Fate, Lifecycle, LifecycleRules, SeedCosts
from envs.slots import SlotConfig
from envs.vocabulary import TRANSITIONS, AlphaCurve, Blueprint, LifecycleOp, SeedStage

OPS = ("WAIT", "GERMINATE", "SET_ALPHA_TARGET", "PRUNE", "FOSSILIZE", "ADVANCE")
CURVES = ("LINEAR", "COSINE", "SIGMOID_GENTLE", "SIGMOID", "SIGMOID_SHARP")
STYLES = (("LINEAR", "ADD"), ("LINEAR", "MULTIPLY"), ("SIGMOID", "ADD"), ("SIGMOID", "GATE"))
LIVING = ("GERMINATED", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED")
OFFERED = (1, 2, 3)  # of the blueprints, for these tests


def curve_share(curve, x):
    if x >= 1:
        return 1.0
    if curve == "LINEAR":
        return x
    if curve == "COSINE":
        return (1 - math.cos(math.pi * x)) / 2
    k = {"SIGMOID_GENTLE": 6, "SIGMOID": 12, "SIGMOID_SHARP": 24}[curve]

    def s(z):
        return 1 / (1 + math.exp(-k * (z - 0.5)))

    return (s(x) - s(0)) / (s(1) - s(0))


class PlainHost:
    """One host's slots, from the words of the design."""

    def __init__(self, enabled, min_training, embargo, max_living, budget, costs, gate):
        self.enabled, self.min_training, self.embargo = enabled, min_training, embargo
        self.max_living, self.budget, self.costs, self.gate = max_living, budget, costs, gate
        self.slots = [self.empty("DORMANT") for _ in enabled]
        self.fates = {"FOSSILIZED": 0, "PRUNED": 0}

    @staticmethod
    def empty(stage):
        return {
            "stage": stage,
            "age": 0,
            "blueprint": -1,
            "algorithm": "ADD",
            "alpha": 0.0,
            "before": 0.0,
            "target": 0.0,
            "mode": "HOLD",
            "ramp": None,
            "pruning": False,
            "measured": False,
            "healthy": False,
        }

    def spent(self):
        total = 0
        for index, slot in enumerate(self.slots):
            if slot["stage"] in LIVING:
                total += self.costs[slot["blueprint"]][index]
                if slot["algorithm"] == "GATE":
                    total += self.gate[index]
        return total

    def blueprints(self):
        left = self.budget - self.spent()
        fitting = set()
        for blueprint in OFFERED:
            fits = True
            for index, slot in enumerate(self.slots):
                if slot["stage"] == "DORMANT" and self.enabled[index]:
                    fits = fits and self.costs[blueprint][index] + self.gate[index] <= left
            if fits:
                fitting.add(blueprint)
        return fitting

    def admits(self, op, index):
        slot = self.slots[index]
        stage = slot["stage"]
        if not self.enabled[index] or slot["pruning"]:
            return False
        settled = slot["mode"] != "RAMP"
        if op == "GERMINATE":
            living = sum(other["stage"] in LIVING for other in self.slots)
            return stage == "DORMANT" and living < self.max_living and len(self.blueprints()) > 0
        if op == "ADVANCE":
            if stage == "TRAINING":
                return slot["age"] >= self.min_training and slot["healthy"]
            return stage == "GERMINATED" or (stage == "BLENDING" and settled)
        if op == "SET_ALPHA_TARGET":
            return stage in ("BLENDING", "HOLDING") and settled
        if op == "FOSSILIZE":
            return stage == "HOLDING" and settled and slot["measured"]
        if op == "PRUNE":
            return stage in ("GERMINATED", "TRAINING", "BLENDING", "HOLDING")
        return False

    def gate_style_open(self):
        left = self.budget - self.spent()
        for index, slot in enumerate(self.slots):
            if self.admits("SET_ALPHA_TARGET", index) and slot["algorithm"] != "GATE" and self.gate[index] > left:
                return False
        return True

    def enter(self, slot, stage):
        slot.update(stage=stage, age=0, measured=False)

    def start_ramp(self, slot, target, epochs, curve):
        slot["target"] = target
        if epochs == 0:
            slot.update(alpha=target, mode="STEP", ramp=None)
        else:
            slot.update(mode="RAMP", ramp=(slot["alpha"], 0, epochs, curve))

    def act(self, op, index, blueprint, style, tempo, target, speed, curve):
        for slot in self.slots:
            slot["before"] = slot["alpha"]
            if slot["mode"] == "STEP":
                slot["mode"] = "HOLD"
        slot = self.slots[index]
        goal, speed = (0.5, 0.7, 1.0)[target], (0, 3, 5, 8)[speed]
        if op == "GERMINATE":
            slot.update(self.empty("GERMINATED"))
            slot.update(blueprint=blueprint, algorithm=STYLES[style][1], target=goal)
            slot["plan"] = ((3, 5, 8)[tempo], STYLES[style][0])
        elif op == "ADVANCE":
            was = slot["stage"]
            self.enter(slot, {"GERMINATED": "TRAINING", "TRAINING": "BLENDING", "BLENDING": "HOLDING"}[was])
            if was == "TRAINING":
                self.start_ramp(slot, slot["target"], *slot["plan"])
        elif op == "SET_ALPHA_TARGET":
            if slot["stage"] == "HOLDING":
                self.enter(slot, "BLENDING")
            slot["algorithm"] = STYLES[style][1]
            self.start_ramp(slot, goal, speed, CURVES[curve])
        elif op == "FOSSILIZE":
            self.enter(slot, "FOSSILIZED")
            self.fates["FOSSILIZED"] += 1
        elif op == "PRUNE":
            if slot["alpha"] == 0 or speed == 0:
                self.slots[index] = self.empty("PRUNED")
                self.fates["PRUNED"] += 1
            else:
                self.start_ramp(slot, 0.0, speed, CURVES[curve])
                slot["pruning"] = True

    def tick(self):
        for index, slot in enumerate(self.slots):
            if slot["stage"] == "PRUNED" and slot["age"] >= 1:
                self.enter(slot, "EMBARGOED")
            elif slot["stage"] == "EMBARGOED" and slot["age"] >= self.embargo:
                self.enter(slot, "RESETTING")
            elif slot["stage"] == "RESETTING" and slot["age"] >= 1:
                self.enter(slot, "DORMANT")
            if slot["mode"] == "RAMP":
                start, done, epochs, curve = slot["ramp"]
                done += 1
                slot["ramp"] = (start, done, epochs, curve)
                slot["alpha"] = start + (slot["target"] - start) * curve_share(curve, done / epochs)
                if done == epochs:
                    slot.update(alpha=slot["target"], mode="HOLD", ramp=None)
                    if slot["pruning"]:
                        slot = self.slots[index] = self.empty("PRUNED")
                        self.fates["PRUNED"] += 1
            slot["age"] += 1


@st.composite
def worlds(draw):
    size = draw(st.integers(1, 4))
    enabled = draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any))
    costs = draw(st.lists(st.lists(st.integers(1, 40), min_size=size, max_size=size), min_size=3, max_size=3))
    return {
        "enabled": enabled,
        "min_training": draw(st.integers(1, 4)),
        "embargo": draw(st.integers(1, 4)),
        "max_living": draw(st.sampled_from([None, None, 0, 1, 2])),
        "budget": draw(st.sampled_from([None, None, 30, 60, 90])),
        "costs": dict(zip(OFFERED, costs, strict=True)),
        "gate": draw(st.lists(st.integers(1, 25), min_size=size, max_size=size)),
    }


HOST_SIZE = 10
MOVES = st.lists(
    st.tuples(st.integers(0, 10**6), *(st.integers(0, size - 1) for size in (3, 4, 3, 3, 4, 5)), st.integers(0, 9)),
    min_size=20,
    max_size=60,
)


def build(world, hosts=1):
    size = len(world["enabled"])
    ids = tuple(f"r0c{i}" for i in range(size))
    slots = SlotConfig(ids, tuple(slot for slot, on in zip(ids, world["enabled"], strict=True) if on))
    rules = LifecycleRules(world["min_training"], world["embargo"], world["max_living"], world["budget"])
    life = Lifecycle(hosts, slots, rules)
    table = np.zeros((hosts, len(Blueprint), size), np.int64)
    for blueprint, row in world["costs"].items():
        table[:, blueprint] = row
    offered = np.isin(np.arange(len(Blueprint)), OFFERED)
    life.costs = SeedCosts(np.full(hosts, HOST_SIZE), table, np.tile(np.array(world["gate"]), (hosts, 1)), offered)
    plain = [
        PlainHost(
            world["enabled"],
            world["min_training"],
            world["embargo"],
            size if world["max_living"] is None else world["max_living"],
            16 * HOST_SIZE if world["budget"] is None else world["budget"],
            world["costs"],
            world["gate"],
        )
        for _ in range(hosts)
    ]
    return life, plain


def check_state(life, host, model):
    for index, slot in enumerate(model.slots):
        cell = (host, index)
        assert SeedStage(int(life.stage[cell])).name == slot["stage"]
        assert life.blueprint[cell] == slot["blueprint"]
        assert life.epochs_in_stage[cell] == slot["age"]
        assert life.alpha[cell] == pytest.approx(slot["alpha"], abs=1e-12)
        assert life.alpha_velocity[cell] == pytest.approx(slot["alpha"] - slot["before"], abs=1e-12)
        assert life.pruning[cell] == slot["pruning"]
        if slot["stage"] in LIVING:
            assert ("HOLD", "RAMP", "STEP")[life.mode[cell]] == slot["mode"]
            assert ("ADD", "MULTIPLY", "GATE")[life.algorithm[cell]] == slot["algorithm"]
            assert life.alpha_target[cell] == slot["target"]
            assert life.epochs_to_target[cell] == (slot["ramp"][2] - slot["ramp"][1] if slot["ramp"] else 0)
            if slot["mode"] != "RAMP" and slot["stage"] in ("BLENDING", "HOLDING", "FOSSILIZED"):
                assert life.alpha[cell] == slot["target"]
    assert life.extra_parameters[host] == model.spent()
    assert life.extra_parameters[host] <= life.parameter_budget[host]
    assert life.fates[host, Fate.FOSSILIZED] == model.fates["FOSSILIZED"]
    assert life.fates[host, Fate.PRUNED] == model.fates["PRUNED"]


def check_mask(life, host, model):
    """The whole flat mask against the model; the admitted (op, slot) pairs."""
    size = len(model.slots)
    views = {name: view[host] for name, view in split_mask(build_mask(life), life.slots.heads).items()}
    pairs = [(op, index) for op in OPS for index in range(size) if model.admits(op, index)]
    ops = {"WAIT"} | {op for op, _ in pairs}
    assert [OPS[op] for op in np.flatnonzero(views["op"])] == [op for op in OPS if op in ops]
    assert [(OPS[op], index) for op, index in np.argwhere(views["slot"])] == pairs
    germinates, retargets, prunes = ("GERMINATE" in ops), ("SET_ALPHA_TARGET" in ops), ("PRUNE" in ops)
    assert set(np.flatnonzero(views["blueprint"])) == (model.blueprints() if germinates else set())
    styles = [0, 1, 2] + [3] * model.gate_style_open()
    assert list(np.flatnonzero(views["style"])) == (styles if germinates or retargets else [])
    assert views["tempo"].tolist() == [germinates] * 3
    assert views["alpha_target"].tolist() == [germinates or retargets] * 3
    assert views["alpha_speed"].tolist() == [retargets or prunes] * 4
    assert views["alpha_curve"].tolist() == [retargets or prunes] * 5
    return pairs


@settings(max_examples=120)
@given(worlds(), MOVES, MOVES)
def test_any_history_is_that_of_the_plain_model_and_the_mask_admits_exactly_what_is_executed(world, left, right):
    life, models = build(world, hosts=2)
    for moves in zip(left, right, strict=False):
        row = np.zeros((2, 8), np.int64)
        chosen = []
        for host, (move, model) in enumerate(zip(moves, models, strict=True)):
            pick, blueprint, style, tempo, target, speed, curve, luck = move
            pairs = [("WAIT", 0), *check_mask(life, host, model)]
            op, index = pairs[pick % len(pairs)]
            onwards = [pair for pair in pairs if pair[0] in ("ADVANCE", "SET_ALPHA_TARGET", "FOSSILIZE")]
            if luck < 7 and (onwards or op == "PRUNE"):  # let most seeds live on, so that all stages are reached
                op, index = onwards[pick % len(onwards)] if onwards else pairs[0]
            fitting = sorted(model.blueprints()) or [0]
            blueprint = fitting[blueprint % len(fitting)]
            if style == 3 and not model.gate_style_open():
                style = 0
            row[host] = OPS.index(op), index, blueprint, style, tempo, target, speed, curve
            chosen.append((op, index, blueprint, style, tempo, target, speed, curve))
            closed = [pair for pair in all_pairs(len(model.slots)) if pair not in pairs]
            if closed:
                refuses(life, host, *closed[pick % len(closed)])
        before = life.stage.copy()
        life.apply(row)
        life.tick()
        for host, (model, action, move) in enumerate(zip(models, chosen, moves, strict=True)):
            model.act(*action)
            model.tick()
            luck = move[-1]
            for index, slot in enumerate(model.slots):  # what the env writes after an epoch
                trains = slot["stage"] in ("TRAINING", "BLENDING", "HOLDING", "FOSSILIZED")
                slot["healthy"] = trains and luck != 0
                slot["measured"] = slot["measured"] or (slot["stage"] == "HOLDING" and luck != 1)
                life.gradients_ok[host, index] = slot["healthy"]
                life.measured_in_holding[host, index] = slot["measured"]
            check_state(life, host, model)
        for was, now in zip(before.ravel(), life.stage.ravel(), strict=True):
            assert was == now or SeedStage(int(now)) in TRANSITIONS[SeedStage(int(was))], "one stage an epoch at most"


def all_pairs(size):
    return [(op, index) for op in OPS[1:] for index in range(size)]


def refuses(life, host, op, index):
    """The lifecycle refuses the op and changes nothing."""
    row = np.zeros((len(life.stage), 8), np.int64)
    row[host, :2] = OPS.index(op), index
    before = {name: array.copy() for name, array in vars(life).items() if isinstance(array, np.ndarray)}
    with pytest.raises(ValueError, match=rf"{op} on slot r0c{index} of host {host} is closed in stage"):
        life.apply(row)
    for name, array in before.items():
        assert np.array_equal(array, getattr(life, name)), name


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
        life.gradients_ok[:] = True
        life.measured_in_holding[:] = True


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
    life.gradients_ok[:] = True
    life.measured_in_holding[:] = True


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
