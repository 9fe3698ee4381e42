import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.vocabulary import AlphaTarget, Blueprint, LifecycleOp, SeedStage
from esper_ray.controller.assessment import RiskConfig, RunState, assess
from esper_ray.controller.case import Case, Latencies
from esper_ray.controller.commands import Kind, Reason, Severity
from esper_ray.controller.levels import OF_SEVERITY
from esper_ray.controller.risk import Decision, forbidden
from esper_ray.controller.signals import FAULTS, TABLE
from esper_ray.controller.thresholds import Thresholds
from esper_ray.errors import UserError
from policies.strategic.messages import Budgets, SeedState
from tests.esper_ray.controller.evaluations import (
    EMPTY,
    GERMINATE,
    PRUNE,
    WAIT,
    Sheet,
    operation,
    packet,
    seed,
    seen_packets,
)

CONFIG = RiskConfig()
BUDGET = {"budgets": Budgets(living_seeds=0)}


def course(losses=(), training=(), rates=(), seeds=(EMPTY,), epochs=None):
    """What is remembered of a run after so many epochs."""
    state = RunState()
    for epoch, (loss, trained, rate) in enumerate(itertools.zip_longest(losses, training, rates)):
        metrics = {} if rate is None else {"samples_per_s": rate}
        seen = packet(epoch, seeds, validation_loss=loss, training_loss=trained, metrics=metrics)
        state = RunState(history=state.history.observe(seen))
    return state


ADVANCE = operation(LifecycleOp.ADVANCE)
ADDING = operation(LifecycleOp.GERMINATE, slot="head", blueprint=Blueprint.CONV_LIGHT)
ADDED = (seed(SeedStage.TRAINING),)
SWINGING = tuple(0.5 + 0.1 * (-1) ** epoch for epoch in range(10))

# Every row of the table: what makes it fire and how severe it is then. What is said of a packet, of the case beside
# it and of the run before are kept apart, so that any two can be put together.
FIRING = {
    (Reason.EXPECTED_RISK, Severity.CRITICAL): {"case": {"expected_risk": 0.99}},
    (Reason.EXPECTED_RISK, Severity.WARNING): {"case": {"expected_risk": 0.85}},
    (Reason.BLUEPRINT_QUARANTINED, Severity.CRITICAL): {"sheet": {"quarantined": "it broke a run"}},
    (Reason.QUARANTINED_SEED, Severity.CRITICAL): {"seed": {"quarantine_only": True}},
    (Reason.BLUEPRINT_HAZARD, Severity.CRITICAL): {"sheet": {"hazard": Severity.CRITICAL}},
    (Reason.BLUEPRINT_HAZARD, Severity.WARNING): {"sheet": {"hazard": Severity.HIGH}},
    (Reason.BLUEPRINT_RISK, Severity.CRITICAL): {"sheet": {"risk": 0.8}},
    (Reason.BLUEPRINT_RISK, Severity.WARNING): {"sheet": {"risk": 0.5}},
    (Reason.LOSS_DELTA, Severity.HIGH): {"packet": {"validation_loss": 0.5 + 0.18}},
    (Reason.LOSS_DELTA, Severity.WARNING): {"packet": {"validation_loss": 0.5 + 0.1}},
    (Reason.HOOK_LATENCY, Severity.HIGH): {"latencies": {"hook": 75.0}},
    (Reason.STEP_LATENCY, Severity.HIGH): {"latencies": {"step": 121.0}},
    (Reason.APPLY_LATENCY, Severity.WARNING): {"latencies": {"apply": 31.0}},
    (Reason.ISOLATION_VIOLATIONS, Severity.HIGH): {"metrics": {"isolation_violations": 1.0}},
    (Reason.GPU_EXHAUSTED, Severity.HIGH): {"metrics": {"gpu_util_percent": 95.0, "gpu_mem_free_gb": 0.2}},
    (Reason.CPU_SATURATED, Severity.WARNING): {"metrics": {"cpu_util_percent": 95.0, "samples_per_s": 75.0}},
    (Reason.OVER_BUDGET, Severity.HIGH): {"packet": BUDGET},
    (Reason.SEED_STUCK, Severity.WARNING): {"seed": {"age_epochs": 51}},
    (Reason.PROCESS_MEMORY, Severity.HIGH): {"metrics": {"process_memory_share": 0.95}},
    (Reason.PROCESS_MEMORY, Severity.WARNING): {"metrics": {"process_memory_share": 0.80}},
    (Reason.LOSS_VOLATILITY, Severity.WARNING): {"packet": {"training_loss": 1.5}},
    (Reason.GRADIENT_VARIANCE, Severity.WARNING): {"metrics": {"grad_var": 1.1}},
    (Reason.GRADIENT_CONFLICT, Severity.WARNING): {"metrics": {"grad_conflict_rate": 0.6}},
    (Reason.COVERAGE, Severity.CRITICAL): {"case": {"coverage": 0.05}},
    (Reason.COVERAGE, Severity.WARNING): {"case": {"coverage": 0.29}},
    **{(fault, Severity.HIGH): {"faults": {fault}} for fault in sorted(FAULTS)},
}
BEFORE = course(losses=(0.5,) * 10, training=SWINGING, rates=(100.0,) * 10)
ORDER = [row.reason for row in TABLE]


def case(*parts, op=ADDING):
    """Of all parts together, in the run's epoch 10."""
    merged = {name: {} for name in ("case", "packet", "metrics", "latencies", "seed", "sheet")}
    faults = set()
    for part in parts:
        for name, fields in part.items():
            if name == "faults":
                faults |= fields
            else:
                assert not merged[name].keys() & fields.keys()
                merged[name] |= fields
    stands = seed(**merged["seed"])
    merged["packet"]["metrics"] = merged["metrics"]
    seen = packet(10, (stands, SeedState(slot="head", stage=SeedStage.DORMANT)), **merged["packet"])
    return Case(
        seen,
        op,
        sheets={"conv_light": Sheet(**merged["sheet"])},
        latencies=Latencies(**merged["latencies"]),
        faults=frozenset(faults),
        **merged["case"],
    )


def paused(reason):
    return Decision(Kind.PAUSE, reason)


def fired(assessment):
    return {(signal.reason, signal.severity) for signal in assessment.verdict.signals}


def test_every_row_of_the_table_is_tried_and_reasons_are_in_its_order():
    for row in TABLE:
        limits = (row.critical, row.high, row.warning)
        severities = (Severity.CRITICAL, Severity.HIGH, Severity.WARNING)
        declared = {severity for severity, limit in zip(severities, limits, strict=True) if limit is not None}
        assert declared == {severity for reason, severity in FIRING if reason is row.reason}
    assert [reason for reason in Reason if reason in ORDER] == ORDER


def test_a_calm_run_does_what_the_policy_proposes():
    found = assess(BEFORE, case(op=ADVANCE), CONFIG)
    assert (found.decision.kind, found.decision.operation) == (Kind.SEED, ADVANCE)
    assert (found.decision.reason, found.verdict.severity) == (Reason.POLICY, Severity.INFO)
    assert found.event is None


@pytest.mark.parametrize(("what", "part"), FIRING.items(), ids=[f"{r}-{s.name}" for r, s in FIRING])
def test_each_signal_alone(what, part):
    found = assess(BEFORE, case(part, op=ADDING), CONFIG)
    assert fired(found) == {what}
    reason, severity = what
    kinds = {
        Severity.CRITICAL: Kind.CIRCUIT_BREAKER,
        Severity.HIGH: Kind.CIRCUIT_BREAKER if "breaker" in reason else Kind.PAUSE,
        Severity.WARNING: Kind.OPTIMIZER,
    }
    assert (found.decision.kind, found.decision.reason) == (kinds[severity], reason)
    assert found.decision.operation is None
    assert (found.decision.optimizer is not None) == (severity is Severity.WARNING)


PAIRS = [pair for pair in itertools.combinations(FIRING, 2) if pair[0][0] is not pair[1][0]]


def test_of_each_pair_the_more_severe_decides():
    for pair in PAIRS:
        found = assess(BEFORE, case(*(FIRING[what] for what in pair), op=ADDING), CONFIG)
        assert fired(found) == set(pair)
        reason, severity = max(pair, key=lambda what: (what[1], -ORDER.index(what[0])))
        assert (found.verdict.severity, found.decision.reason) == (severity, reason)
        if severity is Severity.WARNING:
            assert found.decision.kind is Kind.OPTIMIZER
        else:
            assert found.decision.kind in (Kind.PAUSE, Kind.CIRCUIT_BREAKER)


SPARED = {
    *(Reason.BLUEPRINT_QUARANTINED, Reason.QUARANTINED_SEED, Reason.BLUEPRINT_HAZARD, Reason.BLUEPRINT_RISK),
    *(Reason.GPU_EXHAUSTED, Reason.OVER_BUDGET, Reason.SEED_STUCK, Reason.PROCESS_MEMORY),
}


@pytest.mark.parametrize(("what", "part"), FIRING.items(), ids=[f"{r}-{s.name}" for r, s in FIRING])
def test_a_prune_passes_what_it_is_the_way_out_of(what, part):
    found = assess(BEFORE, case(part, op=PRUNE), CONFIG)
    passes = what[0] in SPARED or what[1] is Severity.WARNING
    assert (found.decision.operation == PRUNE) == passes
    assert (found.decision.kind is Kind.SEED) == passes


@pytest.mark.parametrize("what", [what for what in FIRING if what[1] is Severity.WARNING], ids=str)
@pytest.mark.parametrize("op", [WAIT, PRUNE, operation(LifecycleOp.SHRINK_INTERNAL)], ids=lambda op: op.op.name)
def test_a_warning_changes_nothing_that_does_not_add(what, op):
    decision = assess(BEFORE, case(FIRING[what], op=op), CONFIG).decision
    assert (decision.kind, decision.operation) == (Kind.SEED, op)


@pytest.mark.parametrize("op", [WAIT, operation(LifecycleOp.SHRINK_INTERNAL)], ids=lambda op: op.op.name)
def test_over_budget_what_adds_nothing_passes(op):
    found = assess(BEFORE, case({"packet": BUDGET}, op=op), CONFIG)
    assert (found.decision.kind, found.decision.operation) == (Kind.SEED, op)
    assert (found.decision.reason, found.verdict.severity) == (Reason.OVER_BUDGET, Severity.HIGH)


@pytest.mark.parametrize(
    ("stands", "target", "adds"),
    [
        ({"alpha": 0.3, "alpha_target": 1.0}, AlphaTarget.HALF, False),
        ({"alpha": 0.9, "alpha_target": 0.5}, AlphaTarget.SEVENTY, True),
        ({"alpha": 0.7, "alpha_target": 0.7}, AlphaTarget.SEVENTY, False),
        ({"alpha": 0.6}, AlphaTarget.SEVENTY, True),
        ({"alpha": 0.6}, AlphaTarget.HALF, False),
        ({}, AlphaTarget.HALF, True),
    ],
)
def test_a_new_alpha_target_adds_where_it_is_above_the_one_that_holds(stands, target, adds):
    found = Case(
        packet(seeds=(seed(SeedStage.BLENDING, **stands),)),
        operation(LifecycleOp.SET_ALPHA_TARGET, alpha_target=target),
    )
    assert found.adds == adds


@given(seen_packets(), st.sampled_from([WAIT, GERMINATE, PRUNE, ADVANCE]))
def test_what_is_not_measured_raises_nothing(seen, op):
    bare = packet(seen.epoch, tuple(SeedState(slot=seed.slot, stage=seed.stage) for seed in seen.seeds))
    found = assess(RunState(), Case(bare, op), CONFIG)
    assert found.verdict.signals == ()
    assert found.score is None
    assert (found.decision.kind, found.decision.operation) == (Kind.SEED, op)


@given(st.lists(seen_packets(), max_size=6), st.sampled_from([WAIT, GERMINATE, PRUNE]))
def test_a_state_is_what_its_bytes_say_and_nothing_changes_it(seen, op):
    state = RunState()
    for one in seen:
        before = state.model_dump_json()
        first, again = (assess(state, Case(one, op), CONFIG) for _ in range(2))
        assert first == again
        assert state.model_dump_json() == before
        restored = RunState.model_validate_json(before)
        assert restored == state
        assert assess(restored, Case(one, op), CONFIG) == first
        state = first.state


def test_without_a_proposal_somebody_must_say_why():
    with pytest.raises(ValueError, match="nothing is proposed"):
        assess(RunState(), Case(packet()), CONFIG)
    assert assess(RunState(), Case(packet()), CONFIG, Reason.WORKER_STARTING).decision == paused(Reason.WORKER_STARTING)
    slow = Case(packet(), faults=frozenset({Reason.TIMEOUT_INFERENCE}))
    assert assess(RunState(), slow, CONFIG).decision == paused(Reason.TIMEOUT_INFERENCE)
    with pytest.raises(ValueError, match="faults must be of"):
        assess(RunState(), Case(packet(), WAIT, faults=frozenset({Reason.COVERAGE})), CONFIG)


@given(seen_packets(), st.sampled_from([WAIT, GERMINATE, PRUNE, ADVANCE]), st.sampled_from([None, 0.1, 0.9, 1.0]))
def test_what_is_told_is_what_was_judged(seen, op, risk):
    found = assess(RunState(), Case(seen, op, expected_risk=risk), CONFIG)
    report, signals = found.report, found.verdict.signals
    assert (report.signals, report.expected, report.conservative) == (signals, risk, found.state.mode.is_on)
    severities = [signal.severity for signal in signals]
    assert report.severity == max(severities, default=Severity.INFO)
    assert found.state.dashboard.window >= OF_SEVERITY[report.severity]
    assert [ORDER.index(signal.reason) for signal in signals] == sorted({ORDER.index(s.reason) for s in signals})


@pytest.mark.parametrize("op", [WAIT, PRUNE, GERMINATE], ids=lambda op: op.op.name)
def test_what_somebody_paused_by_hand_stayspaused(op):
    assert assess(BEFORE, case(op=op), CONFIG, Reason.OPERATOR).decision == paused(Reason.OPERATOR)


def test_blueprints_that_would_be_critical_are_not_offered():
    sheets = {
        "calm": Sheet(risk=None),
        "risky": Sheet(risk=0.79, hazard=Severity.HIGH),
        "harmful": Sheet(risk=0.8),
        "hazardous": Sheet(hazard=Severity.CRITICAL),
        "quarantined": Sheet(quarantined="it broke a run"),
    }
    assert forbidden(sheets, CONFIG.thresholds) == ("harmful", "hazardous", "quarantined")


def test_the_seeds_own_blueprint_counts_where_it_is_committed_to():
    harmful = {"norm": Sheet(risk=0.9)}
    for op, seeds in ((ADVANCE, ADDED), (GERMINATE, (EMPTY,)), (operation(LifecycleOp.FOSSILIZE), ADDED)):
        assert assess(RunState(), Case(packet(seeds=seeds), op, sheets=harmful), CONFIG).verdict.severity is (
            Severity.CRITICAL
        )
    for op in (WAIT, PRUNE):
        assert assess(RunState(), Case(packet(seeds=ADDED), op, sheets=harmful), CONFIG).verdict.signals == ()


@pytest.mark.parametrize("stage", SeedStage)
def test_a_quarantined_seed_counts_as_long_as_it_can_be_pruned(stage):
    living = stage in (SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING)
    stands = seed(stage) if living or stage is SeedStage.FOSSILIZED else EMPTY.model_copy(update={"stage": stage})
    sheets = {"norm": Sheet(quarantined="it broke a run")}
    found = assess(RunState(), Case(packet(seeds=(stands,)), WAIT, sheets=sheets), CONFIG)
    assert bool(found.verdict.signals) == living


def test_a_packets_own_latencies_count_besides():
    for own, told in ((75.0, 1.0), (1.0, 75.0)):
        seen = packet(metrics={"hook_latency_ms": told})
        found = assess(RunState(), Case(seen, WAIT, latencies=Latencies(hook=own)), CONFIG)
        assert fired(found) == {(Reason.HOOK_LATENCY, Severity.HIGH)}
        assert found.verdict.signals[0].value == 75.0


@pytest.mark.parametrize(
    "wrong",
    [{"loss_delta_slows": 0.2}, {"coverage_pauses": 0.4}, {"expected_risk_pauses": 1.1}, {"rate_factor": 0.01}],
    ids=str,
)
def test_thresholds_that_contradict_each_other_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).rpartition("_")[0]):
        Thresholds(**wrong)
