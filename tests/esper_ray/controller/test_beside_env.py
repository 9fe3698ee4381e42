"""A host under a controller beside the same policy without one, and beside the greenhouse's env."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from envs.live.places import LiveError
from envs.live.task_host import TaskLoop
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.tasks import make_task
from envs.vocabulary import Blueprint, GerminationStyle
from esper_ray.controller.commands import AdaptationCommand, Kind
from esper_ray.controller.proposals import Request, draw_seed
from esper_ray.controller.proposing import answer, load_proposer
from esper_ray.controller.records import Records
from esper_ray.controller.service import Controller
from esper_ray.live import grow
from policies.schedule import GrowthPlan, GrowthSchedule
from policies.strategic.messages import SystemState
from tests.envs.live.loops import same
from tests.esper_ray.controller.episodes import packet_of
from tests.esper_ray.controller.test_attending import EXPORT, UNHURRIED

torch.set_num_threads(1)

RUN, SEED, EPOCHS = "run", 1, 24
GREEDY = dataclasses.replace(UNHURRIED, greedy=True)
SCHEDULE = GrowthSchedule(
    (
        GrowthPlan(1, Blueprint.CONV_LIGHT, epoch=2, training_epochs=2),
        GrowthPlan(0, Blueprint.NORM, epoch=3, style=GerminationStyle.GATED_GATE),
    )
)


def trained(**who):
    """A host of the greenhouse in a loop: what was done with each epoch, and the model."""
    loop = TaskLoop(make_task("digits_impaired"), EPOCHS, SEED)
    grower = grow(**loop.given, seed=SEED, **who)
    done = []
    for _ in range(EPOCHS):
        done.append(grower.decision.action)
        training_loss = loop.epoch()
        grower.end_epoch(training_loss=training_loss, samples=loop.samples)
    grower.commit()
    return done, loop.model.state_dict()


def in_the_greenhouse(policy):
    """Observations and actions of the same policy, asked in the same way, that plays the env."""
    env = MorphogenesisVectorEnv(1, task="digits_impaired", max_epochs=EPOCHS)
    observation, _ = env.reset(seed=[SEED])
    proposer, hidden, seen, actions = load_proposer(policy)[0], None, [], []
    for epoch in range(EPOCHS):
        packet = packet_of(env, observation, epoch)
        asked = Request(packet.model_dump_json().encode(), draw_seed(RUN, str(epoch)), hidden, greedy=True)
        proposal = answer(proposer, "v", asked).proposal
        hidden = proposal.hidden
        seen.append(observation["obs"][0])
        actions.append(proposal.action)
        observation, *_ = env.step(np.array([proposal.action]))
    return np.array(seen), actions


def test_a_run_with_weights_from_a_generator_says_that_it_cannot_be_kept():
    grower = grow(**TaskLoop(make_task("digits_impaired"), EPOCHS, SEED).given)
    with pytest.raises(LiveError, match="a run with initial_weights cannot be kept"):
        grower.state_dict()


@pytest.mark.parametrize("policy", ["the shipped policy", "a schedule"])
def test_a_controller_in_a_calm_run_is_its_policy_in_the_loop_and_in_the_greenhouse(policy, tmp_path):
    given = EXPORT
    if policy == "a schedule":
        given = str(tmp_path / "schedule.json")
        (tmp_path / "schedule.json").write_text(json.dumps({"schedule": SCHEDULE.to_json()}))
    with Controller(given, tmp_path / "state", config=GREEDY) as controller:
        done, model = trained(controller=controller.named(RUN))
    with Records.open(tmp_path / "state") as records:
        kept = [record.decision for record in records.records(RUN)]
    assert {AdaptationCommand.model_validate_json(one.command).kind for one in kept} == {Kind.SEED}, "nothing fired"

    alone, plain = trained(policy=given, deterministic=True)
    assert done == alone
    assert len(set(done)) > 3
    assert same(model, plain)

    there, actions = in_the_greenhouse(given)
    here = np.array([SystemState.model_validate_json(one.packet).observation for one in kept], np.float32)
    assert [one.epoch for one in kept] == list(range(EPOCHS))
    # Seeds begin with the same weights; rounding, which grows from epoch to epoch, is all that tells the courses apart.
    alike = np.abs(here - there).max(axis=1) < 1e-4
    together = EPOCHS if alike.all() else int(alike.argmin())
    assert together >= next(at for at, action in enumerate(actions) if action[0]) + 6, "a seed has trained by then"
    assert [one.action for one in kept][:together] == actions[:together]
    if policy == "a schedule":
        assert [one.action for one in kept] == actions
