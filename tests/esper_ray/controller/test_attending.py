"""A host under a controller does what its policy alone would have it do, as long as nothing stands against that."""

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from envs.live.task_host import TaskLoop
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.slots import SlotConfig
from envs.tasks import make_task
from envs.vocabulary import LifecycleOp, SeedStage
from esper_ray.controller import attending
from esper_ray.controller.assessment import RiskConfig
from esper_ray.controller.attending import Attendance
from esper_ray.controller.commanding import bare_pause
from esper_ray.controller.commands import AdaptationCommand, CommandResult, Outcome, Reason
from esper_ray.controller.emitting import CallingSink, Telemetry
from esper_ray.controller.evaluation import ControllerConfig
from esper_ray.controller.proposals import Request, draw_seed
from esper_ray.controller.proposing import answer, load_proposer
from esper_ray.controller.records import Records
from esper_ray.controller.service import Controller
from esper_ray.controller.thresholds import Thresholds
from esper_ray.errors import UserError
from esper_ray.live import LiveError, grow
from esper_ray.live.choosing import Choice
from esper_ray.live.policies import SHIPPED, enabled_slots
from policies.strategic.messages import SeedState, SystemState
from tests.envs.helpers import WAIT
from tests.envs.live.loops import Loop, same
from tests.esper_ray.controller.faulty import DECLARED, POLICY
from tests.esper_ray.controller.test_telemetry import OTHERS_RELY_ON
from tests.places import ROOT
from tests.policies.strategic.test_inference import trained

torch.set_num_threads(1)

EXPORT = str(SHIPPED / "images")
EPOCHS = 15
FOREVER = 1e9
# Nothing that a busy machine does to a run fires.
UNHURRIED = ControllerConfig(
    RiskConfig(
        Thresholds(hook_ms_pauses=FOREVER, step_ms_pauses=FOREVER, apply_ms_slows=FOREVER, throughput_drop_slows=1.0)
    ),
    inference_ms=FOREVER,
    evaluate_ms=FOREVER,
    return_ms=FOREVER,
)


class Alone:
    """The policy in this process, with no more than it reads, and the draws of a run of this name."""

    name = "alone"

    def __init__(self, policy, run_id):
        self.proposer, self.run_id, self.hidden = load_proposer(policy)[0], run_id, None

    def attend(self, training):
        return self

    def slots_of(self, count):
        own = self.proposer.slots
        return SlotConfig.for_row(count) if own is None else enabled_slots(own, count, "it")

    def choose(self, grower, observations):
        packet = SystemState(
            run_id=self.run_id,
            packet_id=str(grower.epoch),
            timestamp_ns=0,
            declared=DECLARED,
            epoch=grower.epoch,
            max_epochs=grower.max_epochs,
            seeds=tuple(SeedState(slot=name, stage=SeedStage.DORMANT) for name in grower.slot_names),
            observation=tuple(observations["obs"][0].tolist()),
            blueprint_indices=tuple(observations["blueprint_indices"][0].tolist()),
            action_mask=tuple(observations["action_mask"][0].tolist()),
        )
        seed = draw_seed(self.run_id, packet.packet_id)
        proposal = answer(self.proposer, "v", Request(packet.model_dump_json().encode(), seed, self.hidden)).proposal
        self.hidden = proposal.hidden
        return Choice(np.array(proposal.action))

    def begun(self, grower):
        pass

    def end(self):
        pass


def episode(controller, epochs=EPOCHS):
    """A host of the greenhouse, trained: what was done, and the model."""
    loop = TaskLoop(make_task("digits_impaired"), epochs, seed=3)
    grower = grow(
        loop.model,
        loop.optimizer,
        "segments.*",
        example=loop.example,
        evaluate=loop.evaluate,
        max_epochs=epochs,
        controller=controller,
    )
    decisions = [grower.decision]
    for _ in range(epochs):
        loss = loop.epoch()
        decisions.append(grower.end_epoch(training_loss=loss, samples=loop.samples))
    grower.commit()
    return decisions, loop


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("controller")


@pytest.fixture(scope="module")
def shipped(directory):
    with Controller(EXPORT, directory, config=UNHURRIED) as controller:
        yield controller


def test_the_shipped_policy_under_a_controller_is_the_policy_alone_bit_for_bit(shipped, directory):
    decisions, loop = episode(shipped.named(run_id := "a run"))
    assert shipped.run_ids == (run_id,)
    shipped._disk.within(lambda: None, FOREVER)
    alone, plain = episode(Alone(EXPORT, run_id))
    assert [decision.action for decision in decisions] == [decision.action for decision in alone]
    assert len({decision.op for decision in decisions}) > 2
    assert same(loop.model.state_dict(), plain.model.state_dict())
    assert not loop.optimizer._optimizer_step_pre_hooks, "the probe is gone"
    with Records.open(directory) as records:
        found = list(records.records(run_id))
    assert [record.decision.epoch for record in found] == list(range(EPOCHS))
    for record in found:
        command = AdaptationCommand.model_validate_json(record.decision.command)
        result = CommandResult.model_validate_json(record.result)
        assert (command.reason, result.outcome) == (Reason.POLICY, Outcome.APPLIED)
        assert command.operation == command.selection.proposed


def test_a_policy_that_reads_graphs_grows_a_host_by_what_a_probe_measures(tmp_path):
    (tmp_path / "graph").mkdir()
    trained().save(tmp_path / "graph")
    readings = []
    with (
        Telemetry([CallingSink(readings.append)]) as telemetry,
        Controller(tmp_path / "graph", tmp_path / "state", config=UNHURRIED, telemetry=telemetry) as controller,
    ):
        decisions, _ = episode(controller.named(run_id := "a run"))
        with pytest.raises(UserError, match="there is a run 'a run' already"):
            controller.named(run_id)
    with Records.open(tmp_path / "state") as records:
        found = [AdaptationCommand.model_validate_json(each.decision.command) for each in records.records(run_id)]
    assert {command.selection is not None for command in found} == {True}
    assert min(command.coverage.average for command in found) > 0.3
    planted = [command.operation for command in found if command.operation.op is LifecycleOp.GERMINATE]
    assert planted
    assert all(operation.blending is not None for operation in planted)
    assert any("germinate" in decision.action for decision in decisions)
    assert {reading.item.name for reading in readings} >= OTHERS_RELY_ON


def grown(controller, width=6, max_epochs=20, force=False):
    """A network on vectors, under a controller."""
    model = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 3))
    return grow(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        ["0"],
        example=torch.randn(4, width),
        evaluate=lambda: (1.0, 50.0),
        max_epochs=max_epochs,
        controller=controller,
        force=force,
    )


def test_a_policy_that_does_not_fit_a_run_is_refused_before_its_first_epoch(shipped):
    with pytest.raises(UserError, match=r"shipped/images was trained on hosts of topology cnn") as refused:
        grown(shipped)
    assert "\n" not in str(refused.value)
    assert grown(shipped, force=True).epoch == 0
    with pytest.warns(UserWarning, match="trained over 15 to 150 epochs and may not finish in 200") as warned:
        grown(shipped, max_epochs=200, force=True)
    assert warned[0].filename == __file__


def test_a_policy_that_cannot_decide_for_a_run_is_refused_before_its_first_epoch(tmp_path):
    file = tmp_path / "schedule.json"
    file.write_text('{"schedule": [{"slot": 2, "blueprint": "NORM", "epoch": 3}]}')
    with Controller(file, tmp_path / "state") as controller:
        with pytest.raises(UserError, match=r"schedule.json cannot decide for this run: .*slot") as refused:
            grown(controller)
        assert "\n" not in str(refused.value)


class Clock:
    """A second passes whenever somebody looks."""

    seconds = 0.0

    def perf_counter(self):
        self.seconds += 1.0
        return self.seconds


class Listening:
    """Decides to wait, and hears what is said of the hook."""

    observe, slots = False, None

    def __init__(self):
        self.heard, self.packets = [], []

    def attend(self, training):
        return Attendance(self, training, "a run")

    def evaluate_epoch(self, state, hook_ms=None):
        self.packets.append(state)
        self.heard.append((hook_ms, state.metrics.get("hook_latency_ms")))
        return bare_pause("a run", state.epoch, Reason.OPERATOR, 0)

    def report(self, result):
        pass

    def ended(self, run_id):
        pass


def test_the_hooks_latency_is_of_a_step_and_of_the_executor_without_what_is_measured_between(monkeypatch):
    monkeypatch.setattr(attending, "time", Clock())
    episode(listening := Listening())
    (first, unknown), *others = listening.heard
    assert (first, unknown) == (0.0, None), "nothing was trained or carried out yet"
    assert [hook for hook, _ in others] == [in_a_step + 1e3 for _, in_a_step in others]


def test_of_a_resumed_run_the_same_is_measured():
    """But for what depends on the machine."""

    def epochs(loop, grower, first, last):
        for epoch in range(first, last):
            torch.manual_seed(epoch)
            loop.epoch()
            grower.end_epoch(training_loss=1.0 / (1 + epoch), samples=24)

    def steady(packet):
        said = packet.model_dump(exclude={"timestamp_ns", "hardware"})
        of_machine = ("latency_ms", "samples_per_s", "percent", "free_gb", "memory_share")
        metrics = {name: value for name, value in said["metrics"].items() if not name.endswith(of_machine)}
        return said | {"metrics": metrics}

    listening, resumed = Listening(), Listening()
    loop = Loop("cnn")
    grower = loop.grow(None, controller=listening)
    epochs(loop, grower, 0, 4)
    states = copy.deepcopy([grower.state_dict(), loop.model.state_dict(), loop.optimizer.state_dict()])
    epochs(loop, grower, 4, 7)
    other = Loop("cnn")
    nn.utils.vector_to_parameters(torch.zeros(10**4), other.model.parameters())
    resuming = other.grow(None, controller=resumed)
    for part, state in zip((resuming, other.model, other.optimizer), states, strict=True):
        part.load_state_dict(state)
    epochs(other, resuming, 4, 7)
    assert [packet.epoch for packet in resumed.packets] == [0, 5, 6, 7]
    assert list(map(steady, resumed.packets[1:])) == list(map(steady, listening.packets[-3:]))
    assert all("loss_volatility" in packet.metrics for packet in resumed.packets[1:])


def test_who_only_observes_changes_nothing(tmp_path):
    with Controller(POLICY, tmp_path, config=UNHURRIED, observe=True) as controller:
        decisions, loop = episode(controller)
    untouched = TaskLoop(make_task("digits_impaired"), EPOCHS, seed=3)
    for _ in range(EPOCHS):
        untouched.epoch()
    assert same(loop.model.state_dict(), untouched.model.state_dict())
    assert all("only observed" in decision.note for decision in decisions[:-1])


def test_a_loop_trains_a_host_as_the_greenhouse_does():
    env = MorphogenesisVectorEnv(1, task="digits_impaired", max_epochs=EPOCHS)
    env.reset(seed=[3])
    loop = TaskLoop(make_task("digits_impaired"), EPOCHS, seed=3)
    for _ in range(3):
        env.step(WAIT[None])
        loop.epoch()
        loop.model.eval()
        loss, accuracy = loop.evaluate()
        found = env.watch.progress
        assert loss == pytest.approx(float(found.loss[0, -1]), abs=1e-4)
        assert accuracy == pytest.approx(float(found.accuracy[0, -1]), abs=0.5)


SCRIPT = """
import torch
from torch import nn
from esper_ray.controller.service import Controller
from esper_ray.live import LiveError, grow

torch.manual_seed(0)
x, y = torch.randn(32, 6), torch.arange(32) % 3
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def evaluate():
    return nn.functional.cross_entropy(model(x), y).item(), 50.0
controller = Controller("heuristic", "state")
grower = grow(model, optimizer, ["0"], example=x[:4], evaluate=evaluate, max_epochs=12, controller=controller)
print(grower.decision)
for _ in range(12):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    print(grower.end_epoch())
print(grower.commit())
"""


def test_a_script_without_a_main_guard_and_without_a_close_runs_to_its_end(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch ") >= 13
    with Records.open(tmp_path / "state") as records:
        (run_id,) = records.runs()
        assert len(list(records.records(run_id))) == 12


def test_a_run_that_is_refused_late_is_watched_no_longer(tmp_path):
    loop = Loop("mlp")
    hooked = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in loop.model.modules()]
    with Controller("heuristic", tmp_path / "state") as controller:
        with pytest.raises(LiveError, match="max_living_seeds=0"):
            loop.grow(None, controller=controller, max_living_seeds=0)
        assert hooked == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in loop.model.modules()]
        assert not loop.optimizer._optimizer_step_pre_hooks
        assert loop.grow(None, controller=controller).epoch == 0
