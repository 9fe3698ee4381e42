"""Neither a worker that dies nor another run changes a decision: what a policy remembers of a run is its service's."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from esper_ray.controller.attending import Attendance
from esper_ray.controller.commands import CommandResult, Kind, Outcome, Reason
from esper_ray.controller.proposals import Request, draw_seed
from esper_ray.controller.proposing import answer, load_proposer
from esper_ray.controller.service import Controller
from tests.envs.live.loops import same
from tests.esper_ray.bus.patience import wait_for
from tests.esper_ray.controller.episodes import play
from tests.esper_ray.controller.test_attending import EXPORT, UNHURRIED, Alone, episode
from tests.esper_ray.controller.test_isolated_policy import Clock
from tests.esper_ray.controller.test_service import of

torch.set_num_threads(1)

TEN_MINUTES = 600.0


@pytest.fixture(scope="module")
def clock():
    return Clock()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("controller")


@pytest.fixture(scope="module")
def controller(directory, clock):
    with Controller(EXPORT, directory, config=UNHURRIED, now=clock) as made:
        yield made


def kill(controller):
    os.kill(controller.workers[0], signal.SIGKILL)
    wait_for(lambda: not controller.workers)


class Disturbed:
    """A controller of one run whose epochs take ten minutes, and whose worker is killed in some of them."""

    observe = False

    def __init__(self, controller, clock, run_id, deaths):
        self.controller, self.clock, self.run_id, self.deaths = controller, clock, run_id, deaths
        self.slots, self.report, self.ended = controller.slots, controller.report, controller.ended

    def attend(self, training):
        return Attendance(self, training, self.run_id)

    def evaluate_epoch(self, state, hook_ms=None):
        self.clock.ahead += TEN_MINUTES
        if state.epoch in self.deaths:
            kill(self.controller)
            wait_for(lambda: self.controller.workers)
        return self.controller.evaluate_epoch(state, hook_ms)


def test_deaths_of_workers_and_epochs_of_ten_minutes_leave_a_training_bit_for_bit(controller, directory, clock):
    run_id = "a run with deaths"
    decisions, loop = episode(Disturbed(controller, clock, run_id, {2, 7}))
    alone, plain = episode(Alone(EXPORT, run_id))
    assert [decision.action for decision in decisions] == [decision.action for decision in alone]
    assert len({decision.op for decision in decisions}) > 2
    assert same(loop.model.state_dict(), plain.model.state_dict())
    records, _ = of(controller, directory, run_id)
    results = [CommandResult.model_validate_json(record.result) for record in records]
    assert {result.outcome for result in results} == {Outcome.APPLIED}


def test_two_trainings_at_one_service_are_what_each_is_alone(controller):
    names = ("one run", "another run")
    with ThreadPoolExecutor(len(names), initializer=torch.set_num_threads, initargs=(1,)) as threads:
        found = list(threads.map(lambda name: episode(controller.named(name)), names))
    for name, (decisions, _) in zip(names, found, strict=True):
        alone, _ = episode(Alone(EXPORT, name))  # to rounding: threads share the choice of kernels
        assert [decision.action for decision in decisions] == [decision.action for decision in alone]


def test_what_is_missed_while_a_worker_starts_the_policy_never_saw(controller, directory):
    """The packets of an episode: the policy is asked about all but those at which there was nobody to ask."""
    proposer, _ = load_proposer(EXPORT)
    packets, _ = play(lambda asked: answer(proposer, "v", asked).proposal, epochs=8)
    hidden, expected, deaths = None, [], {3, 6}
    for packet in packets:
        if packet.epoch not in deaths:
            asked = Request(packet.model_dump_json().encode(), draw_seed(packet.run_id, packet.packet_id), hidden)
            proposal = answer(proposer, "v", asked).proposal
            hidden = proposal.hidden
            expected.append(proposal.action)
    for packet in packets:
        if packet.epoch in deaths:
            kill(controller)
        command = controller.evaluate_epoch(packet)
        if packet.epoch in deaths:
            assert (command.kind, command.reason) == (Kind.PAUSE, Reason.WORKER_STARTING)
            wait_for(lambda: controller.workers)
    records, state = of(controller, directory, "run")
    assert [record.decision.action for record in records if record.decision.action is not None] == expected
    assert [record.decision.epoch for record in records if record.decision.action is None] == sorted(deaths)
    assert state.hidden == hidden
