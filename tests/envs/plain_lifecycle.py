"""The stage machine written down slowly and plainly, one host and one slot at a time, and comparisons with it."""

import math

import numpy as np
import pytest
from hypothesis import strategies as st

from envs.action_masks import build_mask, split_mask
from envs.lifecycle import Lifecycle
from envs.limits import LifecycleRules, ParameterCosts
from envs.slot_states import Fate
from envs.slots import SlotConfig
from envs.vocabulary import SeedStage

OPS = ("WAIT", "GERMINATE", "SET_ALPHA_TARGET", "PRUNE", "FOSSILIZE", "ADVANCE", "GROW_INTERNAL", "SHRINK_INTERNAL")
CURVES = ("LINEAR", "COSINE", "SIGMOID_GENTLE", "SIGMOID", "SIGMOID_SHARP")
STYLES = (("LINEAR", "ADD"), ("LINEAR", "MULTIPLY"), ("SIGMOID", "ADD"), ("SIGMOID", "GATE"))
LIVING = ("GERMINATED", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED")
OFFERED = (1, 2, 3)  # of the blueprints, for these tests
LADDER, TOP = 13, 4  # the blueprint with internal levels, offered where they are on


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

    def __init__(self, enabled, min_training, embargo, max_living, budget, costs, gate, rung=None):
        self.enabled, self.min_training, self.embargo = enabled, min_training, embargo
        self.max_living, self.budget, self.costs, self.gate = max_living, budget, costs, gate
        self.rung = rung  # price of one internal level at each slot; None without internal levels
        self.slots = [self.empty("DORMANT") for _ in enabled]
        self.fates = {"FOSSILIZED": 0, "PRUNED": 0}

    @staticmethod
    def empty(stage):
        return {
            "stage": stage,
            "age": 0,
            "blueprint": -1,
            "level": 0,
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
                if slot["blueprint"] == LADDER:
                    total += self.costs[LADDER][index] + (slot["level"] - 1) * self.rung[index]
                else:
                    total += self.costs[slot["blueprint"]][index]
                if slot["algorithm"] == "GATE":
                    total += self.gate[index]
        return total

    def blueprints(self):
        left = self.budget - self.spent()
        fitting = set()
        for blueprint in self.costs:
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
        if self.rung is None or slot["blueprint"] != LADDER or stage not in ("TRAINING", "BLENDING", "HOLDING"):
            return False
        if op == "GROW_INTERNAL":
            return slot["level"] < TOP and self.rung[index] <= self.budget - self.spent()
        return op == "SHRINK_INTERNAL" and slot["level"] > 0

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
            slot.update(blueprint=blueprint, level=int(blueprint == LADDER), algorithm=STYLES[style][1], target=goal)
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
        elif op == "GROW_INTERNAL":
            slot["level"] += 1
        elif op == "SHRINK_INTERNAL":
            slot["level"] -= 1
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

    def write(self, luck):
        """What the env writes after an epoch."""
        for slot in self.slots:
            trains = slot["stage"] in ("TRAINING", "BLENDING", "HOLDING", "FOSSILIZED")
            slot["healthy"] = trains and luck != 0
            slot["measured"] = slot["measured"] or (slot["stage"] == "HOLDING" and luck != 1)

    def keep(self, kept):
        """Everything but the slots in ``kept`` is emptied at once."""
        for index in range(len(self.slots)):
            if index not in kept:
                self.slots[index] = self.empty("DORMANT")


@st.composite
def worlds(draw, internal_levels=False):
    size = draw(st.integers(1, 4))
    enabled = draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any))
    offered = (*OFFERED, LADDER) if internal_levels else OFFERED
    prices = st.lists(st.integers(1, 40), min_size=size, max_size=size)
    costs = draw(st.lists(prices, min_size=len(offered), max_size=len(offered)))
    if internal_levels:  # half of them offer nothing else, so that ladders are common
        costs, offered = draw(st.sampled_from([(costs, offered), (costs[-1:], offered[-1:])]))
    return {
        "rung": draw(prices) if internal_levels else None,
        "enabled": enabled,
        "min_training": draw(st.integers(1, 4)),
        "embargo": draw(st.integers(1, 4)),
        "max_living": draw(st.sampled_from([None, None, 0, 1, 2])),
        "budget": draw(st.sampled_from([None, None, 30, 60, 90])),
        "costs": dict(zip(offered, costs, strict=True)),
        "gate": draw(st.lists(st.integers(1, 25), min_size=size, max_size=size)),
    }


HOST_SIZE = 10
MOVE = st.tuples(st.integers(0, 10**6), *(st.integers(0, size - 1) for size in (3, 4, 3, 3, 4, 5)), st.integers(0, 9))
MOVES = st.lists(MOVE, min_size=20, max_size=60)


def build(world, hosts=1):
    size = len(world["enabled"])
    ids = tuple(f"r0c{i}" for i in range(size))
    enabled = tuple(slot for slot, on in zip(ids, world["enabled"], strict=True) if on)
    slots = SlotConfig(ids, enabled, internal_levels=world.get("rung") is not None)
    rules = LifecycleRules(world["min_training"], world["embargo"], world["max_living"], world["budget"])
    table = np.zeros((hosts, len(slots.blueprints), size), np.int64)
    levels = np.zeros_like(table)
    for blueprint, row in world["costs"].items():
        table[:, blueprint] = row
    if slots.internal_levels:
        levels[:, LADDER] = world["rung"]
    gates = np.tile(np.array(world["gate"]), (hosts, 1))
    offered = np.isin(np.arange(len(slots.blueprints)), list(world["costs"]))
    costs = ParameterCosts(np.full(hosts, HOST_SIZE), table, levels, gates, offered)
    life = Lifecycle(hosts, slots, rules, lambda: costs)
    plain = [
        PlainHost(
            world["enabled"],
            world["min_training"],
            world["embargo"],
            size if world["max_living"] is None else world["max_living"],
            16 * HOST_SIZE if world["budget"] is None else world["budget"],
            world["costs"],
            world["gate"],
            world.get("rung"),
        )
        for _ in range(hosts)
    ]
    return life, plain


def check_state(life, host, model):
    for index, slot in enumerate(model.slots):
        cell = (host, index)
        assert SeedStage(int(life.stage[cell])).name == slot["stage"]
        assert life.blueprint[cell] == slot["blueprint"]
        assert life.internal_level[cell] == slot["level"]
        assert life.internal_max_level[cell] == (TOP if slot["blueprint"] == LADDER else 1)
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
    ops = OPS if life.slots.internal_levels else OPS[:6]
    assert views["op"].shape == (len(ops),)
    pairs = [(op, index) for op in ops for index in range(size) if model.admits(op, index)]
    valid = {"WAIT"} | {op for op, _ in pairs}
    assert [OPS[op] for op in np.flatnonzero(views["op"])] == [op for op in ops if op in valid]
    assert [(OPS[op], index) for op, index in np.argwhere(views["slot"])] == pairs
    germinates, retargets, prunes = ("GERMINATE" in valid), ("SET_ALPHA_TARGET" in valid), ("PRUNE" in valid)
    assert set(np.flatnonzero(views["blueprint"])) == (model.blueprints() if germinates else set())
    styles = [0, 1, 2] + [3] * model.gate_style_open()
    assert list(np.flatnonzero(views["style"])) == (styles if germinates or retargets else [])
    assert views["tempo"].tolist() == [germinates] * 3
    assert views["alpha_target"].tolist() == [germinates or retargets] * 3
    assert views["alpha_speed"].tolist() == [retargets or prunes] * 4
    assert views["alpha_curve"].tolist() == [retargets or prunes] * 5
    return pairs


def all_pairs(model):
    ops = OPS[1:] if model.rung is not None else OPS[1:6]
    return [(op, index) for op in ops for index in range(len(model.slots))]


def choose(move, model, pairs):
    """One admitted action from numbers drawn blindly, with a liking for what leads a seed onwards."""
    pick, blueprint, style, tempo, target, speed, curve, luck = move
    pairs = [("WAIT", 0), *pairs]
    op, index = pairs[pick % len(pairs)]
    onwards = [pair for pair in pairs if pair[0] in ("ADVANCE", "SET_ALPHA_TARGET", "FOSSILIZE")]
    inside = [pair for pair in pairs if pair[0] in ("GROW_INTERNAL", "SHRINK_INTERNAL")]
    if luck < 7 and (onwards or op == "PRUNE"):  # let most seeds live on, so that all stages are reached
        op, index = onwards[pick % len(onwards)] if onwards else pairs[0]
    if luck % 2 and inside:
        op, index = inside[pick % len(inside)]
    fitting = sorted(model.blueprints()) or [0]
    if style == 3 and not model.gate_style_open():
        style = 0
    return op, index, fitting[blueprint % len(fitting)], style, tempo, target, speed, curve


def write(life, host, model, luck):
    """What the env writes after an epoch, into both."""
    model.write(luck)
    finite, measured = life.gradients_ok.copy(), np.zeros_like(life.gradients_ok)
    finite[host] = [slot["healthy"] for slot in model.slots]
    measured[host] = [slot["measured"] for slot in model.slots]
    life.book_gradients(finite)
    life.book_measurement(measured)


def refuses(life, host, op, index):
    """The lifecycle refuses the op and changes nothing."""
    row = np.zeros((len(life.stage), 8), np.int64)
    row[host, :2] = OPS.index(op), index
    before = {name: array.copy() for name, array in vars(life).items() if isinstance(array, np.ndarray)}
    with pytest.raises(ValueError, match=rf"{op} on slot r0c{index} of host {host} is closed in stage"):
        life.apply(row)
    for name, array in before.items():
        assert np.array_equal(array, getattr(life, name)), name
