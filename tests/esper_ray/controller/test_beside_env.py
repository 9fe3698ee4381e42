"""A host under a controller beside the same policy without one, and beside the greenhouse's env."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from envs.live.errors import LiveError
from envs.live.task_host import TaskLoop
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.tasks import make_task
from envs.vocabulary import Blueprint, GerminationStyle, LifecycleOp
from esper_ray.controller.commands import AdaptationCommand, Kind
from esper_ray.controller.proposals import Request, draw_seed
from esper_ray.controller.proposing import PacketProposer, answer, load_proposer
from esper_ray.controller.records import Records
from esper_ray.controller.service import Controller
from esper_ray.live import grow
from esper_ray.live.policies import SHIPPED
from policies.schedule import GrowthPlan, GrowthSchedule
from policies.strategic.messages import SystemState
from tests.envs.live.loops import same
from tests.esper_ray.controller.episodes import packet_of
from tests.esper_ray.controller.test_attending import EXPORT, UNHURRIED
from tests.policies.strategic.test_both_ways_in import packet_of as measured_packet

torch.set_num_threads(1)

RUN, SEED, EPOCHS = "run", 1, 24
GRAPHS = str(SHIPPED / "sequences_and_vectors")
GREEDY = dataclasses.replace(UNHURRIED, greedy=True)
SCHEDULE = GrowthSchedule(
    (
        GrowthPlan(1, Blueprint.CONV_LIGHT, epoch=2, training_epochs=2),
        GrowthPlan(0, Blueprint.NORM, epoch=3, style=GerminationStyle.GATED_GATE),
    )
)


def trained(task="digits_impaired", epochs=EPOCHS, max_epochs=EPOCHS, **who):
    """A host of the greenhouse in a loop: what was done with each epoch, and the model."""
    loop = TaskLoop(make_task(task), max_epochs, SEED)
    grower = grow(**loop.given, seed=SEED, **who)
    done = []
    for _ in range(epochs):
        done.append(grower.decision.action)
        training_loss = loop.epoch()
        grower.end_epoch(training_loss=training_loss, samples=loop.samples)
    grower.commit()
    return done, loop.model.state_dict()


def in_the_greenhouse(policy, task="digits_impaired", epochs=EPOCHS, max_epochs=EPOCHS, greedy=True):
    """Observations and actions of the same policy, asked in the same way, that plays the env."""
    proposer, hidden, seen, actions = load_proposer(policy)[0], None, [], []
    env = MorphogenesisVectorEnv(1, task=task, max_epochs=max_epochs, graph=isinstance(proposer, PacketProposer))
    observation, _ = env.reset(seed=[SEED])
    for epoch in range(epochs):
        packet = graph_packet(env, observation, epoch) if env.graph else packet_of(env, observation, epoch)
        asked = Request(packet.model_dump_json().encode(), draw_seed(RUN, str(epoch)), hidden, greedy=greedy)
        proposal = answer(proposer, "v", asked).proposal
        hidden = proposal.hidden
        seen.append(packet.observation)
        actions.append(proposal.action)
        observation, *_ = env.step(np.array([proposal.action]))
    return np.array(seen, np.float32), actions


def graph_packet(env, observation, epoch):
    """What the greenhouse measures of an env's only host, as a packet."""
    layout, mask = env.graph.layout, torch.from_numpy(observation["action_mask"])
    views = layout.views(torch.from_numpy(observation["graph"]))
    packet = measured_packet(layout, views, mask, env.lifecycle.stage[0], 0)
    return packet.model_copy(update={"run_id": RUN, "packet_id": str(epoch), "max_epochs": env.max_epochs})


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


@pytest.mark.parametrize("greedy", [True, False], ids=["likeliest", "drawn"])
def test_a_graph_policy_decides_under_a_controller_as_in_the_greenhouse(greedy, tmp_path):
    run = {"task": "tabular", "epochs": 12, "max_epochs": 60}
    with Controller(GRAPHS, tmp_path / "state", config=dataclasses.replace(UNHURRIED, greedy=greedy)) as controller:
        trained(**run, controller=controller.named(RUN))
    with Records.open(tmp_path / "state") as records:
        kept = [record.decision for record in records.records(RUN)]
    assert {AdaptationCommand.model_validate_json(one.command).kind for one in kept} == {Kind.SEED}, "nothing fired"
    there, actions = in_the_greenhouse(GRAPHS, **run, greedy=greedy)
    here = np.array([SystemState.model_validate_json(one.packet).observation for one in kept], np.float32)
    np.testing.assert_allclose(here[: len(there)], there, atol=1e-4)
    assert [one.action for one in kept][: len(actions)] == actions
    assert {LifecycleOp.GERMINATE, LifecycleOp.ADVANCE, LifecycleOp.FOSSILIZE} <= {action[0] for action in actions}
