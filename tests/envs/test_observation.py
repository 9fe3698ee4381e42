"""Obs V3, number by number, against a slow and literal reading of its definition."""

import math

import numpy as np
import pytest

from envs.hosts.cnn import CnnVariant
from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from envs.vocabulary import Blueprint, LifecycleOp
from tests.envs.helpers import EAGER, WAIT, advance, fossilize, germinate, random_valid_actions, tiny_env, views_of

STAGES = [
    *("UNKNOWN", "DORMANT", "GERMINATED", "TRAINING", "BLENDING"),
    *("HOLDING", "FOSSILIZED", "PRUNED", "EMBARGOED", "RESETTING"),
]
LIVING = STAGES[2:7]


def clip(value, low, high):
    return max(low, min(high, value))


def unit(value):
    return clip(value, 0.0, 1.0)


def signed(value):
    return clip(value, -1.0, 1.0)


def log_loss(value):
    return min(2.0, math.log1p(value) / math.log(11)) if math.isfinite(value) else 2.0


class Scribe:
    """Writes one member's observation down from what happened, with its own books."""

    def __init__(self, env, member):
        self.env, self.member = env, member
        self.losses, self.accuracies, self.plateau = [], [], 0
        self.stable, self.stabilized = 0, False
        self.size = env.lifecycle.stage.shape[1]
        self.slots = [self.fresh() for _ in range(self.size)]
        self.epoch, self.success, self.op = 0, 1.0, 0
        self.alphas = [0.0] * self.size
        self.look()

    @staticmethod
    def fresh():
        return {"contribution": None, "velocity": None, "sum": None, "best": None, "age": None, "health": 1.0}

    def accuracy(self, alphas):
        loss, accuracy = self.env.population.evaluate(
            np.array([self.member]), np.array([alphas]), self.env.lifecycle, "validation"
        )
        return float(loss[0]), float(accuracy[0])

    def stage(self, slot):
        return STAGES[self.env.lifecycle.stage[self.member, slot]]

    def alpha(self, slot):
        return float(self.env.lifecycle.alpha[self.member, slot])

    def look(self):
        loss, accuracy = self.accuracy([self.alpha(slot) for slot in range(self.size)])
        if self.losses:
            improvement = (self.losses[-1] - loss) / self.losses[-1]
            self.stable = self.stable + 1 if improvement < 0.03 else 0
            self.stabilized = self.stabilized or self.stable >= 3
            self.plateau = self.plateau + 1 if accuracy - self.accuracies[-1] < 0.5 else 0
        self.losses.append(loss)
        self.accuracies.append(accuracy)

    def after(self, op, stages_before):
        self.epoch += 1
        self.op = op
        life, member = self.env.lifecycle, self.member
        self.look()
        for slot in range(self.size):
            if self.stage(slot) not in LIVING:
                self.slots[slot] = self.fresh()
            elif self.slots[slot]["age"] is not None:
                self.slots[slot]["age"] += 1
        began = any(self.stage(s) == "HOLDING" != stages_before[s] for s in range(self.size))
        on = [s for s in range(self.size) if self.alpha(s) > 0 and not life.pruning[member, s]]
        if on and (self.epoch % 5 == 0 or began):
            self.measure(on)

    def f(self, kept, on):
        return self.accuracy([self.alpha(s) if s in kept or s not in on else 0.0 for s in range(self.size)])[1]

    def measure(self, on):
        for slot in on:
            book = self.slots[slot]
            contribution = self.accuracies[-1] - self.f([other for other in on if other != slot], on)
            old = book["contribution"]
            book["velocity"] = None if old is None else contribution - old
            book["contribution"], book["age"], book["sum"], book["best"] = contribution, 0, None, None
            if 2 <= len(on) <= 4:
                pairs = [
                    self.f([slot, other], on) - self.f([slot], on) - self.f([other], on) + self.f([], on)
                    for other in on
                    if other != slot
                ]
                book["sum"], book["best"] = sum(pairs), max([0.0, *pairs])

    def base(self):
        life, member = self.env.lifecycle, self.member
        losses, accuracies = self.losses, self.accuracies
        budget = 16 * life.costs.host[member]
        stages = [self.stage(slot) for slot in range(self.size)]
        change = losses[-1] - losses[-2] if len(losses) > 1 else 0.0
        gain = accuracies[-1] - accuracies[-2] if len(accuracies) > 1 else 0.0
        numbers = [
            self.epoch / self.env.max_epochs,
            log_loss(losses[-1]),
            clip(change, -2, 2) / 2,
            accuracies[-1] / 100,
            clip(gain, -10, 10) / 10,
            unit(self.plateau / 20),
            float(self.stabilized),
        ]
        numbers += [0.0] * max(0, 5 - len(losses)) + [log_loss(loss) for loss in losses[-5:]]
        numbers += [0.0] * max(0, 5 - len(losses)) + [accuracy / 100 for accuracy in accuracies[-5:]]
        numbers += [max(accuracies) / 100, log_loss(min(losses))]
        numbers += [math.log1p(life.extra_parameters[member]) / math.log1p(budget)]
        numbers += [sum(stage in LIVING for stage in stages) / self.size]
        numbers += [stages.count(stage) / self.size for stage in ("TRAINING", "BLENDING", "HOLDING")]
        assert len(numbers) == 24
        return [*numbers, self.success, *[float(op == self.op) for op in range(len(self.env.task.slots.ops))]]

    def slot(self, slot, velocity):
        life, member, measured = self.env.lifecycle, self.member, self.env.measurements
        stage, book = self.stage(slot), self.slots[slot]
        onehot = [0.0] * 10
        inside = [0.0] * self.env.task.slots.internal_levels
        if stage == "DORMANT":
            return [0.0] * 30 + inside
        onehot[STAGES.index(stage)] = 1.0
        age = unit(life.epochs_in_stage[member, slot] / self.env.max_epochs)
        if stage not in LIVING:
            return [0.0, *onehot, *[0.0] * 8, age, *[0.0] * 10, *inside]
        trains = stage != "GERMINATED"
        health = float(measured.health[member, slot]) if trains else None
        previous, book["health"] = book["health"], 1.0 if health is None else health
        numbers = [
            1.0,
            *onehot,
            self.alpha(slot),
            life.alpha_target[member, slot],
            life.mode[member, slot] / 2,
            velocity,
            unit(life.epochs_to_target[member, slot] / self.env.max_epochs),
            life.algorithm[member, slot] / 2,
            signed((book["contribution"] or 0) / 10),
            signed((book["velocity"] or 0) / 10),
            age,
            unit(measured.gradient_norm[member, slot] / 10) if trains else 0.0,
            health or 0.0,
            previous,
            measured.vanishing[member, slot] if trains else 0.0,
            measured.exploding[member, slot] if trains else 0.0,
            signed((book["sum"] or 0) / 10),
            unit((book["best"] or 0) / 5),
            unit(sum(self.alpha(s) for s in range(slot)) / 3),
            unit(sum(self.alpha(s) for s in range(slot + 1, self.size)) / 3),
            0.995 ** book["age"] if book["age"] is not None else 0.0,
        ]
        assert len(numbers) == 30
        if inside and life.blueprint[member, slot] == Blueprint.CONV_LADDER:
            inside = [life.internal_level[member, slot] / 4]
        return numbers + inside

    def write(self):
        vector = self.base()
        for slot in range(self.size):
            velocity = self.alpha(slot) - self.alphas[slot]
            vector += self.slot(slot, velocity)
        self.alphas = [self.alpha(slot) for slot in range(self.size)]
        return vector


@pytest.mark.parametrize(("seed", "internal_levels"), [(0, False), (1, False), (2, False), (3, True)])
def test_every_number_is_what_its_definition_says_throughout_random_play(seed, internal_levels):
    changes = {"batches": 4, "internal_levels": internal_levels}
    env = tiny_env(3, max_epochs=34, embargo_epochs=2, min_training_epochs=1, task_changes=changes)
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    scribes = [Scribe(env, member) for member in range(3)]
    seen, levels = set(), set()
    for epoch in range(34):
        stages = [[scribe.stage(slot) for slot in range(3)] for scribe in scribes]
        for row, scribe in zip(obs["obs"], scribes, strict=True):
            for field, number, expected in zip(env.layout.fields, row, scribe.write(), strict=True):
                assert number == pytest.approx(expected, abs=2e-5), f"{field.name} in epoch {epoch}"
        seen |= {stage for row in stages for stage in row}
        actions = random_valid_actions(env, obs, rng, EAGER | {LifecycleOp.PRUNE: 0.4})
        if internal_levels:  # so that levels are common
            ladder = views_of(env, obs["action_mask"])["blueprint"][:, Blueprint.CONV_LADDER] != 0
            actions[ladder & (epoch % 4 > 0), 2] = Blueprint.CONV_LADDER
            levels |= set(env.lifecycle.internal_level.ravel().tolist())
        refused = epoch % 7 == 3 and not views_of(env, obs["action_mask"])["slot"][1, LifecycleOp.FOSSILIZE, 0]
        if refused:
            actions[1] = fossilize(0)
        obs, _, terminated, *_ = env.step(actions)
        if terminated.any():
            break
        for member, scribe in enumerate(scribes):
            scribe.success = 0.0 if refused and member == 1 else 1.0
            scribe.after(int(actions[member][0]) if scribe.success else 0, stages[member])
    assert {"DORMANT", "GERMINATED", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED", "PRUNED", "EMBARGOED"} <= seen
    assert not internal_levels or {0, 1, 2, 3} <= levels


@pytest.mark.parametrize("internal_levels", [False, True])
@pytest.mark.parametrize("slots", [1, 3, 5, 10])
def test_sizes_follow_from_the_slots(slots, internal_levels):
    size = 33 + 31 * slots if internal_levels else 31 + 30 * slots
    assert ObservationLayout(SlotConfig.for_row(slots, internal_levels)).size == size
    variant = CnnVariant((4,) * slots, (1,) * slots)
    env = tiny_env(2, (variant,), {"internal_levels": internal_levels}, max_epochs=4)
    obs, _ = env.reset(seed=0)
    ops, blueprints = (8, 14) if internal_levels else (6, 13)
    assert obs["obs"].shape == (2, size)
    assert obs["blueprint_indices"].shape == (2, slots)
    assert obs["action_mask"].shape == (2, ops + ops * slots + blueprints + 4 + 3 + 3 + 4 + 5)
    assert env.single_observation_space["blueprint_indices"].high.max() == blueprints - 1
    for action in (germinate(slots - 1), advance(slots - 1), WAIT):
        obs, *_ = env.step(np.tile(action, (2, 1)))
        assert obs in env.observation_space
    assert env.layout.stages(obs["obs"])[:, slots - 1].tolist() == [3, 3]


def test_three_slots_make_121_numbers_3_indices_a_mask_of_56_and_marginals_of_41():
    env = tiny_env(2)
    obs, _ = env.reset(seed=0)
    assert {name: values.shape[1] for name, values in obs.items()} == {
        "obs": 121,
        "blueprint_indices": 3,
        "action_mask": 56,
    }
    assert env.action_masks().shape == (2, 41)
    assert {name: str(values.dtype) for name, values in obs.items()} == {
        "obs": "float32",
        "blueprint_indices": "int64",
        "action_mask": "int8",
    }


def test_a_dormant_slot_is_all_zeros_and_shows_no_blueprint():
    env = tiny_env(4, max_epochs=30, embargo_epochs=1)
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=0)
    for _ in range(29):
        slots = obs["obs"][:, 31:].reshape(4, 3, 30)
        living = np.isin(env.lifecycle.stage, [2, 3, 4, 5, 6])
        assert not slots[env.lifecycle.stage == 1].any()
        assert (slots[env.lifecycle.stage != 1].any(axis=-1)).all()
        assert (obs["blueprint_indices"][~living] == -1).all()
        assert (obs["blueprint_indices"][living] >= 1).all()
        assert np.array_equal(env.layout.stages(obs["obs"]), env.lifecycle.stage)
        obs, *_ = env.step(random_valid_actions(env, obs, rng))


@pytest.mark.parametrize("task", ["score", "shaped"])
def test_observations_stay_in_their_space_under_random_play_and_broken_hosts(task):
    env = tiny_env(6, max_epochs=12, reward_mode=task, embargo_epochs=1)
    rng = np.random.default_rng(1)
    obs, _ = env.reset(seed=1)
    low = np.array([field.low for field in env.layout.fields])
    high = np.array([field.high for field in env.layout.fields])
    for epoch in range(40):
        assert obs in env.observation_space
        assert np.isfinite(obs["obs"]).all()
        assert (obs["obs"] >= low).all()
        assert (obs["obs"] <= high).all()
        if epoch % 9 == 5:
            env.population.flat[epoch % 6] *= 1e4
            env.population.flat[(epoch + 1) % 6] = np.inf
        obs, *_ = env.step(random_valid_actions(env, obs, rng))
