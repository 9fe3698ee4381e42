"""What is told once a command has left is all that was decided, and whatever happens to it costs no decision."""

import threading
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.full_disk import files_of_at_most
from envs.vocabulary import SeedStage
from esper_ray.controller import telemetry as items
from esper_ray.controller.commands import AdaptationCommand, CommandResult, Kind, Outcome, Reason, Refusal
from esper_ray.controller.emitting import CallingSink, Telemetry
from esper_ray.controller.records import Records
from esper_ray.controller.service import Controller
from esper_ray.controller.store import give_order
from tests.esper_ray.bus.patience import wait_for
from tests.esper_ray.controller.faulty import POLICY
from tests.esper_ray.controller.test_service import LONG, PATIENT, packet, told

NAMES = (f"run {at}" for at in count())
STAGES = {"r0c0": SeedStage.DORMANT}


def breaks(reading):
    raise RuntimeError("nobody\nlistens")


@pytest.fixture(scope="module")
def clock():
    return SimpleNamespace(ns=0)


@pytest.fixture(scope="module")
def readings():
    return []


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("controller")


@pytest.fixture(scope="module")
def controller(readings, directory, clock):
    """Of two sinks the first breaks with what it is given first."""
    with (
        Telemetry([CallingSink(breaks), CallingSink(readings.append)], lambda: clock.ns) as telemetry,
        Controller(
            POLICY, directory, config=PATIENT, watch=breaks, telemetry=telemetry, time_ns=lambda: clock.ns
        ) as made,
    ):
        yield made


@pytest.fixture
def of(controller, readings):
    """What was told of a run, or of the service itself, by item: epochs, parts and values."""

    def gather(item, run_id=""):
        marker = next(NAMES)
        controller._after.worker_lost(marker)
        wait_for(lambda: marker in [reading.value for reading in readings])
        found = [reading for reading in readings if reading.item is item and reading.run_id == run_id]
        return [(reading.epoch, reading.part, reading.value) for reading in found]

    return gather


def result(command, **fields):
    known = {"outcome": Outcome.APPLIED, "epoch": command.expects.epoch, "apply_ms": 4.0}
    return CommandResult(
        command_id=command.command_id,
        run_id=command.run_id,
        stages_before=STAGES,
        stages_after=STAGES,
        **(known | fields),
    )


def test_every_decision_is_told_also_the_one_that_could_not_be_written(controller, directory, of):
    run_id, commands = next(NAMES), []
    for epoch in range(6):
        with files_of_at_most(1) if epoch == 3 else nullcontext():
            commands.append(controller.evaluate_epoch(packet("none", epoch, run_id)))
            if epoch != 1:
                controller.report(result(commands[-1]))
                controller._disk.within(lambda: None, LONG)
    assert told(commands[3]) == (Kind.PAUSE, Reason.STORE_FAILED)
    kinds = of(items.COMMAND_KIND, run_id)
    assert kinds == [(epoch, "", "PAUSE" if epoch == 3 else "SEED") for epoch in range(6)]
    ((epoch, reason, words),) = of(items.DEGRADED, run_id)
    assert (epoch, reason) == (3, "store_failed")
    assert words.startswith("PAUSE: store_failed; ")
    assert [value for _, part, value in of(items.SIGNAL, run_id) if part == "store_failed"] == [
        *["silent"] * 3,
        "HIGH",
        *["silent"] * 2,
    ]
    assert [epoch for epoch, _, _ in of(items.APPLY_MS, run_id)] == [0, 2, 3, 4, 5]
    assert of(items.COMMAND_LOST, run_id) == [(4, "", str(commands[1].command_id))]
    assert {part: value for _, part, value in of(items.BREAKER_STATE)} == {"policy": "closed", "catalogue": "closed"}
    with Records.open(directory) as records:
        assert [record.decision.epoch for record in records.records(run_id)] == [0, 1, 2, 4, 5]


def test_what_happens_while_the_disk_does_not_answer_is_told_at_once(controller, of):
    run_id, release = next(NAMES), threading.Event()
    controller._disk.later(lambda: release.wait(LONG))
    controller._deciding.config = replace(PATIENT, return_ms=200.0)
    try:
        controller.evaluate_epoch(packet("none", 1, run_id))
        assert of(items.COMMAND_KIND, run_id) == [(1, "", "PAUSE")]
        assert of(items.SIGNAL, run_id) == [(1, "store_failed", "HIGH")]
    finally:
        controller._deciding.config = PATIENT
        release.set()


def test_what_was_no_packet_is_told(controller, of):
    controller.evaluate_epoch(b"packet")
    ((epoch, reason, words),) = of(items.DEGRADED, "unknown")
    assert (epoch, reason) == (0, "packet_refused")
    assert "a packet is needed, got a bytes" in words


def test_of_a_step_only_trouble_is_told(controller, of):
    run_id = next(NAMES)
    for latency in (10.0, 75.0):
        controller.evaluate_step(packet("none", 3, run_id, metrics={"hook_latency_ms": latency}))
    assert of(items.COMMAND_KIND, run_id) == [(3, "", "PAUSE")]


def test_a_refused_command_is_told(controller, of):
    command = controller.evaluate_epoch(packet("none", 1, run_id := next(NAMES)))
    told_why = {
        "outcome": Outcome.REFUSED,
        "reason": Refusal.EPOCH_CHANGED,
        "detail": "it is another",
        "apply_ms": None,
    }
    controller.report(result(command, **told_why))
    assert of(items.COMMAND_REFUSED, run_id) == [(1, "", "refused: epoch_changed: it is another")]


def test_a_worker_that_ends_is_told_with_how(controller, of):
    wait_for(lambda: controller._policy.pids)
    controller.evaluate_epoch(packet("exits", 1, next(NAMES)))
    wait_for(lambda: controller._policy.pids)
    assert (0, "", "the worker ended with exit code 3") in of(items.WORKER_LOST)
    assert of(items.COMPILE_ENABLED) == [], "a policy of Obs V3 has no network of graphs"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 2**63 - 1), min_size=3, max_size=5))
def test_a_clock_that_jumps_breaks_no_decision_no_order_and_no_record(controller, directory, clock, times):
    wait_for(lambda: controller._policy.pids)
    run_id, commands = next(NAMES), []
    for epoch, clock.ns in enumerate(times):
        if epoch > 0:
            give_order(directory, run_id, paused=epoch == 1)
        commands.append(controller.evaluate_epoch(packet("none", epoch, run_id)))
        controller.evaluate_step(packet("none", epoch, run_id))
        controller.report(result(commands[-1]))
        controller._disk.within(lambda: None, LONG)
    paused = (Kind.PAUSE, Reason.OPERATOR)
    assert [told(command) for command in commands] == [
        paused if epoch == 1 else (Kind.SEED, Reason.POLICY) for epoch in range(len(times))
    ]
    assert [command.issued_at_ns for command in commands] == times
    with Records.open(directory) as records:
        found = list(records.records(run_id))
    assert [AdaptationCommand.model_validate_json(record.decision.command) for record in found] == commands
    assert [record.decision.decided_at_ns for record in found] == times
    assert {record.fate for record in found} == {"answered"}
