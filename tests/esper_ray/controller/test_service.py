"""Whatever a policy, a disk or a packet does, who asks gets a command: if need be a PAUSE with its reason."""

import dataclasses
import json
import threading
import time

import pytest

from benchmarks.full_disk import files_of_at_most
from envs.vocabulary import LifecycleOp
from esper_ray.controller.assessment import RunState
from esper_ray.controller.breakers import BreakerConfig
from esper_ray.controller.commands import AdaptationCommand, Kind, Reason
from esper_ray.controller.conservative import Change
from esper_ray.controller.evaluation import ControllerConfig, read_config
from esper_ray.controller.head_file import HEAD_FILE
from esper_ray.controller.records import Fate, Records
from esper_ray.controller.reports.field_report import ReportOutcome
from esper_ray.controller.reports.outbox import entries, read_experience
from esper_ray.controller.service import Controller
from esper_ray.controller.store import give_order
from esper_ray.errors import UserError
from policies.strategic.messages import METRICS, SystemState
from tests.esper_ray.bus.patience import wait_for
from tests.esper_ray.controller.faulty import POLICY, request
from tests.esper_ray.controller.reporting import found
from tests.esper_ray.controller.test_isolated_policy import Clock
from tests.esper_ray.controller.test_store import read_only

LONG = 120.0
PATIENT = ControllerConfig(
    breakers=BreakerConfig(failures=1000), inference_ms=1e3 * LONG, evaluate_ms=1e3 * LONG, return_ms=1e5 * LONG
)


@pytest.fixture(scope="module")
def clock():
    return Clock()


@pytest.fixture(scope="module")
def seen():
    return []


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("controller")


@pytest.fixture(scope="module")
def controller(clock, seen, directory):
    with Controller(POLICY, directory, config=PATIENT, watch=seen.append, now=clock) as made:
        yield made


def packet(fault="none", epoch=1, run_id="run", **fields):
    """A packet on which the policy has a fault."""
    plain = SystemState.model_validate_json(request(fault, str(epoch), run_id).packet)
    declared = (*plain.declared, *(f"metrics.{name}" for name in fields.get("metrics", ())))
    declared += ("run.validation_loss",) * ("validation_loss" in fields)
    return SystemState(**{**dict(plain), "epoch": epoch, "declared": declared, **fields})


def uncovered(**fields):
    """One of which next to nothing was measured: CRITICAL."""
    plain = packet(**fields)
    lacking = tuple(f"metrics.{name}" for name in METRICS) + tuple(
        f"layers.{name}" for name in ("weight_norm", "gradient_norm", "update_frequency", "loss_share", "depth")
    )
    more = tuple(
        f"{kind}.{name}"
        for kind, names in {
            "activations": ("saturation_rate", "gradient_flow", "computational_cost"),
            "connects": ("connection_strength", "data_flow_volume"),
            "feeds": ("activation_frequency", "saturation_events"),
            "influences": ("gradient_contribution", "nonlinearity_strength"),
            "tunes": ("update_magnitude", "convergence_rate"),
            "parameters": ("count", "learning_rate", "momentum", "gradient_variance"),
            "seeds": ("alpha", "risk", "scope"),
        }.items()
        for name in names
    )
    return SystemState(**{**dict(plain), "declared": (*plain.declared, *lacking, *more)})


def of(controller, directory, run_id):
    """What is on record of a run, once what was given to the disk is done."""
    controller._disk.within(lambda: None, LONG)
    with Records.open(directory) as records:
        return list(records.records(run_id)), records.state(run_id)


def told(command):
    return command.kind, command.reason


FAULTS = {
    "raises": Reason.POLICY_FAILED,
    "not finite": Reason.POLICY_NOT_FINITE,
    "forgets numbers": Reason.POLICY_NOT_FINITE,
    "masked": Reason.ACTION_MASKED,
    "no index": Reason.ACTION_MASKED,
    "no tensor": Reason.POLICY_FAILED,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_policys_fault_is_a_pause_on_record_and_the_next_decision_is_as_ever(controller, directory, seen, fault):
    run_id = f"run that {fault}"
    command = controller.evaluate_epoch(packet(fault, 1, run_id))
    assert told(command) == (Kind.PAUSE, FAULTS[fault])
    assert controller.evaluate_epoch(packet("none", 2, run_id)).operation.op is LifecycleOp.WAIT
    (bad, good), state = of(controller, directory, run_id)
    assert AdaptationCommand.model_validate_json(bad.decision.command) == command
    assert (bad.decision.action, bad.decision.policy_version) == (None, None)
    assert good.decision.action[0] == LifecycleOp.WAIT
    assert {bad.fate, good.fate} == {Fate.SENT}
    assert RunState.model_validate_json(state.memory).mode.is_on is False
    assert next(each for each in seen if each.command == command).detail


def test_a_stuck_worker_and_one_that_dies_are_replaced_and_the_trainer_goes_on(controller):
    for fault in ("exits", "stuck"):
        wait_for(lambda: controller._policy.pids)
        run_id = f"run that {fault}"
        assert told(controller.evaluate_epoch(packet(fault, 1, run_id))) == (Kind.PAUSE, Reason.POLICY_FAILED)
        assert told(controller.evaluate_epoch(packet("none", 2, run_id))) == (Kind.PAUSE, Reason.WORKER_STARTING)
        wait_for(lambda: controller._policy.pids)
        assert told(controller.evaluate_epoch(packet("none", 3, run_id))) == (Kind.SEED, Reason.POLICY)


def test_an_answer_that_is_late_by_the_clock_changes_no_state(controller, clock, directory):
    run_id, commands = "late run", []
    thread = threading.Thread(target=lambda: commands.append(controller.evaluate_epoch(packet("slow", 1, run_id))))
    thread.start()
    time.sleep(0.1)
    clock.ahead += 2 * LONG
    thread.join()
    assert told(commands[0]) == (Kind.PAUSE, Reason.TIMEOUT_INFERENCE)
    (record,), state = of(controller, directory, run_id)
    assert record.decision.proposal is state.hidden is None
    assert {signal.reason for signal in commands[0].risk.signals} >= {Reason.TIMEOUT_EVALUATE}
    assert told(controller.evaluate_epoch(packet("none", 2, run_id))) == (Kind.SEED, Reason.POLICY)


def test_what_is_no_packet_and_what_is_over_is_a_pause(controller, seen):
    past_checks = (SystemState.model_construct(), packet().model_copy(update={"epoch": None, "run_id": 7}))
    for nothing in (None, {"run_id": "run"}, b"packet", 7, *past_checks):
        assert told(controller.evaluate_epoch(nothing)) == (Kind.PAUSE, Reason.PACKET_REFUSED)
        assert told(controller.evaluate_step(nothing)) == (Kind.PAUSE, Reason.PACKET_REFUSED)
    assert told(controller.evaluate_epoch(packet(epoch=20, run_id="over"))) == (Kind.PAUSE, Reason.PACKET_REFUSED)
    unseen = dict.fromkeys(("observation", "blueprint_indices", "action_mask"))
    blind = packet(run_id="blind", **unseen)
    assert told(controller.evaluate_epoch(blind)) == (Kind.PAUSE, Reason.POLICY_FAILED)


def test_what_cannot_be_written_is_a_pause_and_changes_no_state(controller, directory):
    run_id = "run on a full disk"
    controller.evaluate_epoch(packet("none", 1, run_id))
    before = of(controller, directory, run_id)
    with files_of_at_most(1):
        assert told(controller.evaluate_epoch(packet("none", 2, run_id))) == (Kind.PAUSE, Reason.STORE_FAILED)
        assert told(controller.evaluate_epoch(uncovered(epoch=3, run_id=run_id))) == (Kind.PAUSE, Reason.STORE_FAILED)
    assert of(controller, directory, run_id) == before
    assert told(controller.evaluate_epoch(packet("none", 4, run_id))) == (Kind.SEED, Reason.POLICY)


def test_without_its_head_file_nothing_is_decided(controller, directory):
    run_id = "run without a head"
    controller.evaluate_epoch(packet("none", 1, run_id))
    controller._disk.within(lambda: None, LONG)
    (directory / HEAD_FILE).rename(directory / "away")
    try:
        assert told(controller.evaluate_epoch(packet("none", 2, run_id))) == (Kind.PAUSE, Reason.STORE_FAILED)
        controller._disk.within(lambda: None, LONG)
    finally:
        (directory / "away").rename(directory / HEAD_FILE)
    assert told(controller.evaluate_epoch(packet("none", 3, run_id))) == (Kind.SEED, Reason.POLICY)
    records, _ = of(controller, directory, run_id)
    assert [record.fate for record in records] == [Fate.SENT, Fate.SENT]


def test_a_disk_that_does_not_answer_is_a_pause_and_its_command_is_never_sent(controller, directory, clock):
    run_id, release = "run on a slow disk", threading.Event()
    controller.evaluate_epoch(packet("none", 1, run_id))
    impatient = dataclasses.replace(PATIENT, return_ms=200.0)
    controller._disk.later(lambda: release.wait(LONG))
    controller._deciding.config = impatient
    try:
        assert told(controller.evaluate_epoch(packet("none", 2, run_id))) == (Kind.PAUSE, Reason.STORE_FAILED)
    finally:
        controller._deciding.config = PATIENT
        release.set()
    assert told(controller.evaluate_epoch(packet("none", 3, run_id))) == (Kind.SEED, Reason.POLICY)


def test_two_runs_at_once_get_what_each_gets_alone(controller, directory):
    found = {}

    def play(run_id):
        found[run_id] = [told(controller.evaluate_epoch(packet("none", at, run_id))) for at in range(10)]

    threads = [threading.Thread(target=play, args=(f"run {name}",)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["run a"] == found["run b"] == [(Kind.SEED, Reason.POLICY)] * 10
    assert len(of(controller, directory, "run a")[0]) == 10


def test_a_run_whose_turn_is_taken_holds_up_no_other_run(controller):
    with controller._deciding.run("busy").turn:
        assert told(controller.evaluate_epoch(packet(run_id="idle"))) == (Kind.SEED, Reason.POLICY)
        controller._deciding.config = dataclasses.replace(PATIENT, evaluate_ms=10.0)
        try:
            assert told(controller.evaluate_epoch(packet(run_id="busy"))) == (Kind.PAUSE, Reason.TIMEOUT_EVALUATE)
        finally:
            controller._deciding.config = PATIENT


def test_a_step_is_looked_at_without_the_policy_and_only_trouble_is_recorded(controller, directory):
    run_id = "run by steps"
    calm = packet("exits", 3, run_id, metrics={"hook_latency_ms": 10.0})
    assert told(controller.evaluate_step(calm)) == (Kind.SEED, Reason.POLICY)
    slow = packet("exits", 3, run_id, metrics={"hook_latency_ms": 75.0})
    assert told(controller.evaluate_step(slow)) == (Kind.PAUSE, Reason.HOOK_LATENCY)
    leaking = packet("exits", 3, run_id, metrics={"isolation_violations": 2.0})
    assert told(controller.evaluate_step(leaking)) == (Kind.PAUSE, Reason.ISOLATION_VIOLATIONS)
    records, _ = of(controller, directory, run_id)
    assert len(records) == 2
    assert controller._policy.pids


def test_an_operators_word_holds_until_it_is_taken_back(controller, directory):
    run_id = "run by hand"
    controller.evaluate_epoch(packet("none", 1, run_id))
    of(controller, directory, run_id)
    give_order(directory, run_id, paused=True)
    for epoch in (2, 3):
        assert told(controller.evaluate_epoch(packet("none", epoch, run_id))) == (Kind.PAUSE, Reason.OPERATOR)
    give_order(directory, run_id, paused=False)
    assert told(controller.evaluate_epoch(packet("none", 4, run_id))) == (Kind.SEED, Reason.POLICY)
    with pytest.raises(UserError, match="there is no run 'nobody'"):
        give_order(directory, "nobody", paused=True)


def test_every_decision_at_the_end_of_an_epoch_is_reported_on(controller, directory):
    run_id = "run with reports"
    for epoch in range(6):
        fault = "raises" if epoch == 1 else "none"
        controller.evaluate_epoch(packet(fault, epoch, run_id, validation_loss=2.0 - epoch))
        if epoch == 3:
            controller.evaluate_step(packet("exits", epoch, run_id, metrics={"isolation_violations": 2.0}))
    of(controller, directory, run_id)
    reports = [entry.report for entry in found(directory).values() if entry.report.run_id == run_id]
    wait = LifecycleOp.WAIT
    assert [(report.epoch, report.op) for report in reports] == [(0, wait), (1, None), (2, wait)]
    assert all(report.loss_delta_sum == -3.0 for report in reports)
    controller.ended(run_id)
    records, _ = of(controller, directory, run_id)
    with Records.open(directory) as beside:
        told = [entry for entry in entries(beside) if entry.report.run_id == run_id]
        experiences = [read_experience(beside, str(entry.report.report_id)) for entry in told]
    assert [entry.report.outcome for entry in told][3:] == [ReportOutcome.ABORTED] * 3
    (step,) = (record for record in records if b"isolation_violations" in record.decision.signals)
    assert len(told) == 6
    assert [each.decision for each in experiences] == [each.decision for each in records if each is not step]
    assert controller.store.faults() == []


def test_conservative_mode_survives_a_restart_and_an_operator_ends_it(tmp_path):
    seen, run_id = [], "run in trouble"
    with Controller("never_grow", tmp_path, config=PATIENT, watch=seen.append) as controller:
        critical = uncovered(epoch=1, run_id=run_id)
        assert told(controller.evaluate_epoch(critical)) == (Kind.CIRCUIT_BREAKER, Reason.COVERAGE)
    with Controller("never_grow", tmp_path, config=PATIENT, watch=seen.append, observe=True) as controller:
        calm = controller.evaluate_epoch(packet("none", 2, run_id))
        assert told(calm) == (Kind.PAUSE, Reason.CONSERVATIVE_MODE)
        of(controller, tmp_path, run_id)
        give_order(tmp_path, run_id, release=True)
        assert told(controller.evaluate_epoch(packet("none", 3, run_id))) == (Kind.SEED, Reason.POLICY)
        assert told(controller.evaluate_epoch(packet("none", 4, run_id))) == (Kind.SEED, Reason.POLICY)
        records, _ = of(controller, tmp_path, run_id)
        with pytest.raises(UserError, match="in use by another controller"):
            Controller("never_grow", tmp_path)
    assert [record.fate for record in records] == [Fate.LOST, *[Fate.WITHHELD] * 3], "nobody reported the first"
    assert found(tmp_path) == {}, "what is only observed is not followed"
    assert [each.event.change for each in seen if each.event] == [Change.ENTERED, Change.RELEASED]


def test_an_open_breaker_asks_nobody_and_is_on_record(controller, directory, clock):
    breaker = controller.live.incumbent.breaker
    for _ in range(1000):
        breaker.record(breaker.try_acquire(), succeeded=False)
    found = controller.evaluate_epoch(packet(run_id="run behind a breaker"))
    assert told(found) == (Kind.CIRCUIT_BREAKER, Reason.BREAKER_INFERENCE)
    (record,), _ = of(controller, directory, "run behind a breaker")
    assert json.loads(record.decision.breakers) == {"policy": "open", "catalogue": "closed"}
    clock.ahead += 31.0
    for epoch in (2, 3):
        controller.evaluate_epoch(packet("none", epoch, "another run"))
    assert told(controller.evaluate_epoch(packet("none", 4, "another run"))) == (Kind.SEED, Reason.POLICY)


def test_what_a_controller_cannot_begin_with_is_refused_in_a_line(tmp_path):
    with pytest.raises(UserError, match="no policy 'nobody'"):
        Controller("nobody", tmp_path)
    Controller("never_grow", tmp_path).close()  # and the directory is free again
    with read_only(tmp_path / "disk") as disk, pytest.raises(UserError, match="cannot write"):
        Controller("never_grow", disk)
    (tmp_path / "config.json").write_text('{"risk": {"thresholds": {"loss_delta_pauses": 0.3}}, "greedy": true}')
    config = read_config(tmp_path / "config.json")
    assert (config.risk.thresholds.loss_delta_pauses, config.greedy) == (0.3, True)
    (tmp_path / "config.json").write_text('{"risk": {"thresholds": {"loss": 0.3}}}')
    with pytest.raises(UserError, match=r"risk\.thresholds\.loss"):
        read_config(tmp_path / "config.json")
