"""Growth at fixed intervals: when, where and what, on hosts of every topology."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.action_masks import split_mask
from envs.hosts.cnn import CnnVariant
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.tasks import make_task
from envs.vocabulary import NO_BLUEPRINT, LifecycleOp
from policies.bundle import PolicySettings
from policies.factory import build_policy, playing_anywhere
from policies.periodic import INTERVALS, SEED_EPOCHS, GradientGrowth, PeriodicGrowth
from policies.player import Player
from policies.schedule import GrowthPlan, GrowthSchedule
from policies.scripted import FixedSchedule
from tests.envs.helpers import task_of, tiny_env

torch.set_num_threads(1)
HOSTS, EPOCHS = 3, 40
PERIOD = EPOCHS // INTERVALS
DECIDERS = {"periodic": PeriodicGrowth, "gradient": GradientGrowth}


def world(task, epochs=EPOCHS, **settings):
    return MorphogenesisVectorEnv(
        HOSTS, task=replace(task, batches_per_epoch=1), max_epochs=epochs, graph=True, **settings
    )


def grown(env, policy, seed=0):
    """Play an episode; yields before each step the epoch, and the actions that are next."""
    player = Player(policy, HOSTS, seed=0)
    observations, _ = env.reset(seed=seed)
    for epoch in range(env.max_epochs):
        actions = player.act(observations)
        yield epoch, actions
        observations, *_, info = env.step(actions)
        assert "refused" not in info


@pytest.mark.parametrize("name", DECIDERS)
@pytest.mark.parametrize("task", ["digits_mixed", "digits_scale", "tabular", "text"])
def test_a_seed_is_begun_every_period_the_cheapest_first_until_too_little_time_is_left(name, task):
    env = world(make_task(task))
    life, begun = env.lifecycle, np.zeros(HOSTS, int)
    for epoch, actions in grown(env, DECIDERS[name](env.graph.layout)):
        op = split_mask(env.watch.mask, env.task.slots.heads)["op"] != 0
        due = (epoch >= PERIOD * (life.living.sum(axis=1) + 1)) & (EPOCHS - epoch >= SEED_EPOCHS)
        older = op[:, LifecycleOp.ADVANCE] | op[:, LifecycleOp.FOSSILIZE]
        running = env.epoch == epoch  # the governor may stop a host
        germinates = (actions[:, 0] == LifecycleOp.GERMINATE) & running
        assert np.array_equal(germinates, due & op[:, LifecycleOp.GERMINATE] & ~older & running)
        assert np.array_equal(actions[running, 0] == LifecycleOp.WAIT, ~(germinates | older)[running])
        for host in np.flatnonzero(germinates):
            slot, blueprint = actions[host, 1:3]
            free = life.blueprint[host] == NO_BLUEPRINT
            assert free[slot]
            assert name == "gradient" or slot == free.argmax()
            there, offered = set(life.blueprint[host].tolist()), np.flatnonzero(life.blueprint_gate()[host])
            new = [kind for kind in offered if kind not in there] or list(offered)
            cost = life.costs.blueprint[host, :, slot]
            assert cost[blueprint] == min(cost[new])
        begun += germinates
    assert (begun[env.epoch == EPOCHS] > 2).all()
    assert (env.epoch == EPOCHS).any()


@pytest.mark.parametrize("late", [0, 1])
def test_a_seed_can_be_finished_in_the_epochs_that_are_taken_for_it_and_in_no_less(late):
    env = tiny_env(2, max_epochs=EPOCHS)
    schedule = GrowthSchedule((GrowthPlan(epoch=EPOCHS - SEED_EPOCHS + late),))
    player = Player(FixedSchedule(env.task.slots, EPOCHS, schedule), 2, seed=0)
    observations, _ = env.reset(seed=0)
    for _ in range(EPOCHS):
        observations, *_, info = env.step(player.act(observations))
    assert info["seeds_fossilized"].tolist() == [1 - late] * 2
    assert info["seeds_unfinished"].tolist() == [late] * 2


def test_the_largest_gradient_beside_a_free_slot_is_where_a_seed_grows():
    """Hand-computed: norms 3 and 4 beside a slot are 5 together; what is not measured counts as 0."""
    env = world(task_of(CnnVariant((4, 8, 8), (1, 3, 1))))
    layout = env.graph.layout
    policy, periodic = GradientGrowth(layout), PeriodicGrowth(layout)
    assert [layer.name for layer in layout.structure.layers] == [
        *("conv0", "norm0", "conv1", "norm1", "conv2", "norm2", "head")
    ]
    observations, _ = env.reset(seed=0)
    for _ in range(PERIOD):
        observations, *_ = env.step(np.zeros((HOSTS, 8), np.int64))
    norms = observations["graph"][:, layout.places["layers.gradient_norm"]]

    def slots(decider):
        actions = Player(decider, HOSTS, seed=0).act(observations)
        assert (actions[:, 0] == LifecycleOp.GERMINATE).all()
        return actions[:, 1].tolist()

    norms[:] = [9.0, 3.0, 4.0, 4.9, 0.0, 1.0, 4.8]  # √(9 + 16), 4.9, √(1 + 23.04) = 4.903
    assert slots(policy) == [0] * HOSTS
    norms[1, 2] = 3.0  # √18 = 4.2
    assert slots(policy) == [0, 2, 0]
    norms[2, 1:3] = np.finfo(np.float32).min  # not measured
    assert slots(policy) == [0, 2, 2]
    assert slots(periodic) == [0, 0, 0]


def test_the_same_hosts_grow_the_same_seeds():
    task = make_task("digits_mixed")
    first, second = (
        [actions.tolist() for _, actions in grown(env, GradientGrowth(env.graph.layout))]
        for env in (world(task), world(task))
    )
    assert first == second


def test_without_graphs_there_is_nothing_that_they_could_read():
    for name in DECIDERS:
        assert name not in playing_anywhere()
        with pytest.raises(ValueError, match=f"{DECIDERS[name].__name__} reads hosts as graphs: give their layout"):
            build_policy(name, PolicySettings(task_of().slots, EPOCHS))
    assert playing_anywhere() == ("fixed_schedule", "heuristic", "never_grow", "random_valid")
