"""The record of what a policy did agrees with the episodes' own books."""

import numpy as np
import pytest

from envs.tasks import make_task
from envs.vocabulary import Blueprint, LifecycleOp
from esper_ray.config import EnvConfig
from esper_ray.measuring.behaviour import BehaviourRecorder
from esper_ray.measuring.episodes import held_out_seeds, run_episodes
from policies.scripted import FixedSchedule, NeverGrow, RandomValid

ENV = EnvConfig(task="digits_impaired", max_epochs=24)
SLOTS = make_task(ENV.task).slots
HOSTS = 3


def _record(policy):
    recorder = BehaviourRecorder(SLOTS, ENV.max_epochs)
    return recorder, run_episodes(policy, ENV, held_out_seeds(0, HOSTS), recorder.observe)


@pytest.mark.parametrize("policy", [RandomValid(SLOTS), FixedSchedule(SLOTS, ENV.max_epochs)])
def test_every_germinated_seed_has_a_fate_and_every_fossil_is_found(policy):
    recorder, results = _record(policy)
    assert recorder.germinated.sum() == recorder.ops[:, LifecycleOp.GERMINATE].sum()
    assert recorder.germinated.sum() == sum(counts.sum() for counts in results.fates.values())
    assert recorder.fossilized.sum() == results.fates["fossilized"].sum()
    assert (recorder.fossilized <= recorder.germinated).all()


def test_a_host_is_counted_once_per_epoch():
    recorder, _ = _record(NeverGrow(SLOTS))
    assert (recorder.ops[:, LifecycleOp.WAIT] == HOSTS).all()
    assert recorder.ops.sum() == HOSTS * ENV.max_epochs


def test_what_the_fixed_schedule_keeps_is_found_in_its_slot():
    recorder, _ = _record(FixedSchedule(SLOTS, ENV.max_epochs))
    ((_slot, blueprint),) = np.argwhere(recorder.fossilized)
    assert blueprint == Blueprint.DEPTHWISE
    assert recorder.fossilized.sum() == HOSTS


def test_a_second_episode_of_a_stopped_host_counts_for_nothing():
    from envs.morphogenesis import MorphogenesisVectorEnv

    recorder = BehaviourRecorder(SLOTS, 4)
    world = MorphogenesisVectorEnv(2, task=ENV.task, max_epochs=2)
    wait = np.zeros((2, len(SLOTS.heads)), np.int64)
    world.reset(seed=0)
    recorder.observe(world)
    for _ in range(4):  # two epochs, a reset, one epoch of the next episode
        world.step(wait)
        recorder.observe(world)
    assert recorder.ops.sum(axis=1).tolist() == [2, 2, 0, 0]
