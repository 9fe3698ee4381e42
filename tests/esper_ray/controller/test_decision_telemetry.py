"""What is told of a decision is what was decided."""

from collections import defaultdict
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from envs.vocabulary import SeedStage
from esper_ray.controller import telemetry as items
from esper_ray.controller.assessment import RiskConfig, RunState, assess
from esper_ray.controller.breakers import BreakerConfig, CircuitBreaker
from esper_ray.controller.case import Case
from esper_ray.controller.commanding import bare_pause
from esper_ray.controller.commands import (
    AdaptationCommand,
    Blending,
    CommandResult,
    CoverageReport,
    Expectation,
    Kind,
    Outcome,
    PolicyStamp,
    Reason,
    Refusal,
    Severity,
)
from esper_ray.controller.decision_telemetry import DecisionTelemetry
from esper_ray.controller.emitting import CallingSink, Telemetry
from esper_ray.controller.evaluation import Evaluation
from esper_ray.controller.proposals import Proposal
from esper_ray.controller.signals import FAULTS, TABLE
from tests.esper_ray.controller.evaluations import GERMINATE, PRUNE, WAIT, Sheet, packet, seen_packets

CONFIG = RiskConfig()


class Told:
    """All that was told, by name."""

    def __init__(self, breakers=None):
        self.readings, self.breakers = defaultdict(list), breakers or {}
        sink = CallingSink(lambda reading: self.readings[reading.item.name].append(reading))
        self._telemetry = Telemetry([sink], patience_s=1e6)
        self.decisions = DecisionTelemetry(self._telemetry)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._telemetry.close()

    def values(self, item):
        return [reading.value for reading in self.readings[item.name]]

    def parts(self, item):
        return {reading.part: reading.value for reading in self.readings[item.name]}

    def decide(self, state, case, evaluate_ms=5.0, **fields):
        assessment = assess(state, case, CONFIG)
        decision, slot = assessment.decision, None
        if decision.operation is not None:
            slot = decision.operation.slot
        command = AdaptationCommand(
            run_id=case.packet.run_id,
            kind=decision.kind,
            operation=decision.operation,
            optimizer=decision.optimizer,
            reason=decision.reason,
            issued_at_ns=0,
            expects=Expectation(epoch=case.packet.epoch, slot=slot, stage=None if slot is None else SeedStage.DORMANT),
            risk=assessment.report,
            **fields,
        )
        proposal = Proposal(policy_version="v", action=(0,), log_prob=0.0, op_probs={}, inference_ms=3.0)
        evaluation = Evaluation(
            command,
            evaluate_ms,
            packet=case.packet,
            case=case,
            assessment=assessment,
            proposal=None if case.operation is None else proposal,
            event=assessment.event,
            breakers={name: breaker.state for name, breaker in self.breakers.items()},
            recorded=True,
        )
        self.decisions.decided(evaluation)
        self.decisions.decided(replace(evaluation, recorded=False))  # as of a step with nothing wrong: is not told
        return assessment


@settings(max_examples=60, deadline=None)
@given(
    packets=st.lists(seen_packets(), min_size=1, max_size=4),
    operation=st.sampled_from((GERMINATE, PRUNE, WAIT)),
    risk=st.none() | st.sampled_from((0.0, 0.9, 1.0)),
    faults=st.frozensets(st.sampled_from(sorted(FAULTS)), max_size=2),
)
def test_of_every_evaluation_the_level_the_signals_and_the_decision_are_told(packets, operation, risk, faults):
    state, decided = RunState(), []
    with Told() as told:
        for seen in packets:
            case = Case(seen, operation, expected_risk=risk, sheets={"norm": Sheet(risk=0.6)}, faults=faults)
            decided.append(told.decide(state, case))
            state = decided[-1].state
    assert told.values(items.RISK_LEVEL) == [each.state.dashboard.level.name for each in decided]
    assert told.values(items.COMMAND_KIND) == [each.decision.kind.value for each in decided]
    assert told.values(items.RISK_SEVERITY) == [each.verdict.severity.name for each in decided]
    last = {signal.reason: signal.severity.name for signal in decided[-1].verdict.signals}
    assert told.parts(items.SIGNAL) == {row.reason: last.get(row.reason, "silent") for row in TABLE}
    degraded = [reading.part for reading in told.readings[items.DEGRADED.name]]
    assert sorted(degraded) == sorted([*faults] * len(packets)), "an event for each fault of the controller's own"
    entered = [each.event for each in decided if each.event is not None]
    assert len(told.values(items.MODE_ENTERED)) + len(told.values(items.MODE_LEFT)) == len(entered)
    for reading in (reading for of in told.readings.values() for reading in of if reading.item is items.DECISION):
        assert "\n" not in reading.value


def test_what_could_not_be_judged_or_written_is_told_by_its_command():
    evaluation = Evaluation(bare_pause("run", 7, Reason.STORE_FAILED, 0), 9.0, "the disk is full", packet(7))
    with Told() as told:
        told.decide(RunState(), Case(packet(6), WAIT))
        told.decisions.decided(evaluation)
        told.decisions.decided(Evaluation(bare_pause("unknown", 0, Reason.PACKET_REFUSED, 0), 1.0, "it is none"))
    assert told.values(items.COMMAND_KIND) == ["SEED", "PAUSE", "PAUSE"]
    assert told.values(items.RISK_SEVERITY) == ["INFO", "HIGH", "HIGH"]
    assert told.parts(items.SIGNAL)["store_failed"] == "HIGH"
    degraded = [(each.run_id, each.epoch, each.part, each.value) for each in told.readings[items.DEGRADED.name]]
    assert degraded == [
        ("run", 7, "store_failed", "PAUSE: store_failed; the disk is full"),
        ("unknown", 0, "packet_refused", "PAUSE: packet_refused; it is none"),
    ]
    assert len(told.values(items.RISK_LEVEL)) == len(told.values(items.CONSERVATIVE)) == 1, "nobody knows of the others"
    assert told.values(items.EVALUATE_MS) == [5.0, 9.0, 1.0]


def test_what_was_not_measured_is_not_told():
    with Told() as told:
        told.decide(RunState(), Case(packet(), WAIT))
    for item in (items.VALIDATION_LOSS, items.LOSS_DELTA, items.EXPECTED_RISK, items.RISK_SCORE, items.BLUEPRINT_RISK):
        assert told.values(item) == []
    assert told.values(items.INFERENCE_MS) == [3.0]


def test_numbers_versions_and_shares_are_told_as_they_are():
    blended = GERMINATE.model_copy(update={"blending": Blending(method="cosine")})
    case = Case(packet(2, validation_loss=0.7), blended, expected_risk=0.25, sheets={"norm": Sheet(risk=0.4)})
    state = RunState(history=RunState().history.observe(packet(1, validation_loss=0.6875)))
    with Told() as told:
        told.decide(
            state,
            case,
            policy=PolicyStamp(version="v1", architecture="a2"),
            coverage=CoverageReport(average=0.9, types={"layers": 1.0, "seeds": 0.5}),
        )
    assert told.values(items.VALIDATION_LOSS) == [0.7]
    assert told.values(items.LOSS_DELTA) == [0.7 - 0.6875]
    assert told.values(items.EXPECTED_RISK) == [0.25]
    assert told.values(items.BLUEPRINT_RISK) == [0.4]
    assert told.values(items.BLENDING_METHOD) == ["cosine"]
    assert told.values(items.COMMAND_OP) == ["GERMINATE"]
    assert told.parts(items.FEATURE_COVERAGE) == {"average": 0.9, "layers": 1.0, "seeds": 0.5}
    assert (told.values(items.POLICY_VERSION), told.values(items.ARCHITECTURE_VERSION)) == (["v1"], ["a2"])
    assert told.values(items.DECISION) == ["GERMINATE stem NORM: policy"]


def test_percentiles_are_those_of_the_times_so_far():
    with Told() as told:
        for at in range(1, 102):
            told.decide(RunState(), Case(packet(at), WAIT), evaluate_ms=float(at))
    assert told.values(items.EVALUATE_MS) == list(map(float, range(1, 102)))
    assert (told.values(items.EVALUATE_P50)[-1], told.values(items.EVALUATE_P95)[-1]) == (51.0, 96.0)


def test_a_breaker_that_changes_is_an_event_and_its_state_is_always_told():
    now = [0.0]
    breaker = CircuitBreaker("inference", BreakerConfig(failures=1), now=lambda: now[0])
    with Told({"inference": breaker}) as told:
        told.decide(RunState(), Case(packet(1), WAIT))
        breaker.record(breaker.try_acquire(), succeeded=False)
        for epoch in (2, 3):
            told.decide(RunState(), Case(packet(epoch), WAIT))
        now[0] = 31.0
        told.decide(RunState(), Case(packet(4), WAIT))
    assert told.values(items.BREAKER_STATE) == ["closed", "open", "open", "half_open"]
    assert told.values(items.BREAKER_CHANGED) == ["from closed to open", "from open to half_open"]


def test_levels_that_change_are_events_of_each_run_by_itself():
    bad = {"expected_risk": 0.99}
    with Told() as told:
        for run in ("one", "two"):
            state = RunState()
            for epoch in range(4):
                seen = packet(epoch).model_copy(update={"run_id": run})
                state = told.decide(state, Case(seen, WAIT, **(bad if run == "two" else {}))).state
    changes = [(reading.run_id, reading.value) for reading in told.readings[items.LEVEL_CHANGED.name]]
    assert changes == [("two", "from GREEN to CRITICAL")]
    assert told.readings[items.LEVEL_CHANGED.name][0].severity is Severity.WARNING


def test_results_that_were_lost_or_refused_and_lost_workers_are_events():
    with Told() as told:
        stages = {"stem": SeedStage.DORMANT}
        common = {"run_id": "run", "epoch": 3, "stages_before": stages, "stages_after": stages}
        command_id = AdaptationCommand(
            run_id="run", kind=Kind.PAUSE, reason=Reason.OPERATOR, issued_at_ns=0, expects=Expectation(epoch=3)
        ).command_id
        told.decisions.answered(CommandResult(command_id=command_id, outcome=Outcome.APPLIED, apply_ms=4.0, **common))
        told.decisions.answered(
            CommandResult(
                command_id=command_id,
                outcome=Outcome.REFUSED,
                reason=Refusal.SEED_CHANGED,
                detail="another lives there",
                **common,
            )
        )
        told.decisions.lost("run", 6, [str(command_id)])
        told.decisions.worker_lost("killed by signal 9")
        told.decisions.policy_ready()
        told.decisions.policy_ready(compiled=False, compile_warm_ms=12.0)
    assert told.values(items.APPLY_MS) == [4.0]
    assert told.values(items.COMMAND_REFUSED) == ["refused: seed_changed: another lives there"]
    assert told.values(items.COMMAND_LOST) == [str(command_id)]
    assert told.values(items.WORKER_LOST) == ["killed by signal 9"]
    assert (told.values(items.COMPILE_ENABLED), told.values(items.COMPILE_WARM_MS)) == (["no"], [12.0])
