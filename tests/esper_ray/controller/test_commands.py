import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from envs.vocabulary import (
    BLENDING_METHODS,
    HEADS_NEEDED,
    AlphaCurve,
    AlphaSpeed,
    AlphaTarget,
    Blueprint,
    GerminationStyle,
    LifecycleOp,
    SeedStage,
    Tempo,
)
from esper_ray.controller.commands import (
    BLENDED_BY,
    AdaptationCommand,
    Blending,
    CommandResult,
    CoverageReport,
    Expectation,
    Kind,
    OptimizerChange,
    Outcome,
    PolicyStamp,
    Reason,
    Refusal,
    RiskReport,
    SeedOperation,
    Selection,
    Severity,
    Signal,
)
from policies.strategic.coverage import Coverage
from tests.esper_ray.controller.evaluations import packet

HEADS = {
    "slot": st.text(min_size=1, max_size=5),
    "blueprint": st.sampled_from(Blueprint),
    "style": st.sampled_from(GerminationStyle),
    "tempo": st.sampled_from(Tempo),
    "alpha_target": st.sampled_from(AlphaTarget),
    "alpha_speed": st.sampled_from(AlphaSpeed),
    "alpha_curve": st.sampled_from(AlphaCurve),
}
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def blendings(draw):
    start, end = draw(st.tuples(FINITE, FINITE).filter(lambda ends: max(ends) > 0.0 and min(ends) < 1.0))
    method = draw(st.sampled_from(BLENDING_METHODS))
    if min(max(start, 0.0), 1.0) == min(max(end, 0.0), 1.0):
        start, end = 0.0, 1.0
    return Blending(method=method, schedule_start=start, schedule_end=end)


@st.composite
def operations(draw):
    op = draw(st.sampled_from(LifecycleOp))
    heads = {name: draw(HEADS[name]) for name in HEADS_NEEDED[op] if name != "op"}
    blending = draw(st.none() | blendings()) if op in BLENDED_BY else None
    return SeedOperation(op=op, blending=blending, **heads)


@st.composite
def commands(draw):
    kind = draw(st.sampled_from(Kind))
    proposed = draw(operations())
    operation = proposed if kind is Kind.SEED else None
    slot = None if operation is None else operation.slot
    stage = None if slot is None else draw(st.sampled_from(SeedStage))
    signal = Signal(reason=Reason.COVERAGE, severity=draw(st.sampled_from(Severity)), value=0.05, threshold=0.1)
    return AdaptationCommand(
        run_id="run",
        kind=kind,
        operation=operation,
        optimizer=OptimizerChange() if kind is Kind.OPTIMIZER else None,
        reason=draw(st.sampled_from(Reason)),
        issued_at_ns=draw(st.integers(0, 2**63 - 1)),
        expects=Expectation(epoch=3, slot=slot, stage=stage),
        policy=draw(st.none() | st.just(PolicyStamp(version="a1b2", architecture="gnn_v1"))),
        risk=RiskReport(severity=signal.severity, signals=(signal,), expected=0.25),
        coverage=draw(st.none() | st.just(CoverageReport(average=0.5, types={"layers": 0.5}))),
        selection=draw(st.none() | st.just(Selection(proposed=proposed, log_probability=-0.7, masked=("noop",)))),
    )


@given(commands())
def test_a_command_is_what_its_bytes_say(command):
    assert AdaptationCommand.model_validate_json(command.model_dump_json()) == command


def test_no_two_commands_have_one_id():
    made = [
        AdaptationCommand(
            run_id="r", kind=Kind.PAUSE, reason=Reason.OPERATOR, issued_at_ns=0, expects=Expectation(epoch=0)
        )
        for _ in range(2)
    ]
    assert made[0].command_id != made[1].command_id
    assert made[0].command_id.version == 4


def test_members_of_enumerations_are_written_by_name():
    operation = SeedOperation(op=LifecycleOp.ADVANCE, slot="body")
    written = operation.model_dump_json(exclude_none=True)
    assert written == '{"op":"ADVANCE","slot":"body"}'
    assert SeedOperation.model_validate_json(written) == operation
    with pytest.raises(ValidationError, match="op"):
        SeedOperation.model_validate_json('{"op":"EXPLODE","slot":"body"}')


@given(FINITE, FINITE)
def test_a_window_is_clamped_and_ordered(one, other):
    low, high = sorted(min(max(end, 0.0), 1.0) for end in (one, other))
    given_ends = {"method": "cosine", "schedule_start": one, "schedule_end": other}
    if low == high:
        with pytest.raises(ValidationError, match="schedule_start < schedule_end"):
            Blending(**given_ends)
    else:
        blending = Blending(**given_ends)
        assert (blending.schedule_start, blending.schedule_end) == (low, high)


@pytest.mark.parametrize("end", [float("nan"), float("inf"), "1", None, True])
def test_what_is_no_number_is_no_end_of_a_window(end):
    with pytest.raises(ValidationError, match="schedule_end"):
        Blending(method="linear", schedule_end=end)


@pytest.mark.parametrize("op", LifecycleOp)
@pytest.mark.parametrize("head", HEADS)
def test_an_operation_has_what_its_op_needs_and_nothing_else(op, head):
    sample = {
        "slot": "body",
        "blueprint": Blueprint.NORM,
        "style": GerminationStyle.LINEAR_ADD,
        "tempo": Tempo.FAST,
        "alpha_target": AlphaTarget.FULL,
        "alpha_speed": AlphaSpeed.FAST,
        "alpha_curve": AlphaCurve.LINEAR,
    }
    right = {name: sample[name] for name in HEADS_NEEDED[op] if name != "op"}
    SeedOperation(op=op, **right)
    wrong = {**right, head: None if head in right else sample[head]}
    with pytest.raises(ValidationError, match=rf"{op.name} needs .*{head} is wrong"):
        SeedOperation(op=op, **wrong)


def test_only_what_blends_a_seed_in_says_how():
    with pytest.raises(ValidationError, match="PRUNE blends no seed in"):
        SeedOperation(
            op=LifecycleOp.PRUNE,
            slot="body",
            alpha_speed=AlphaSpeed.FAST,
            alpha_curve=AlphaCurve.LINEAR,
            blending=Blending(method="linear"),
        )


@given(commands(), st.sampled_from(Kind))
def test_each_kind_has_its_own_part_and_no_other(command, kind):
    parts = {Kind.SEED: command.operation, Kind.OPTIMIZER: command.optimizer}
    assert {name for name, part in parts.items() if part is not None} == {command.kind} & set(parts)
    if kind is not command.kind and {kind, command.kind} & set(parts):
        with pytest.raises(ValidationError, match="no other kind has"):
            AdaptationCommand(**{**dict(command), "kind": kind})


@given(commands())
def test_an_expectation_is_of_the_operations_slot(command):
    other = Expectation(epoch=3, slot="another slot", stage=SeedStage.DORMANT)
    with pytest.raises(ValidationError, match="operation's slot"):
        AdaptationCommand(**{**dict(command), "expects": other})
    with pytest.raises(ValidationError, match="in a stage"):
        Expectation(epoch=3, slot="body")
    with pytest.raises(ValidationError, match="in a stage"):
        Expectation(epoch=3, seed_id="norm 3")


@given(commands())
def test_only_what_the_policy_chose_with_nothing_against_it_is_clean(command):
    assert command.is_clean == (command.kind is Kind.SEED and command.risk.severity in (Severity.DEBUG, Severity.INFO))


def test_a_report_of_coverage_says_what_was_counted():
    counted = Coverage.of(packet(metrics={"loss": 0.5}))
    report = CoverageReport.of(counted)
    assert (report.average, report.types, report.keys) == (counted.average, counted.types, counted.keys)


def test_unknown_fields_are_refused_and_known_ones_do_not_change():
    operation = SeedOperation(op=LifecycleOp.WAIT)
    with pytest.raises(ValidationError, match="colour"):
        SeedOperation(op=LifecycleOp.WAIT, colour="red")
    with pytest.raises(ValidationError, match="frozen"):
        operation.slot = "body"


@given(st.sampled_from(Outcome), st.none() | st.sampled_from(Refusal))
def test_a_result_says_why_exactly_where_nothing_was_applied(outcome, reason):
    late = reason is Refusal.TOO_LATE
    told = {Outcome.APPLIED: reason is None, Outcome.EXPIRED: late, Outcome.REFUSED: reason is not None and not late}
    command = AdaptationCommand(
        run_id="r", kind=Kind.PAUSE, reason=Reason.COVERAGE, issued_at_ns=0, expects=Expectation(epoch=0)
    )
    parts = {
        "command_id": command.command_id,
        "run_id": "r",
        "outcome": outcome,
        "reason": reason,
        "epoch": 4,
        "stages_before": {"body": SeedStage.TRAINING},
        "stages_after": {"body": SeedStage.TRAINING},
    }
    if told[outcome]:
        result = CommandResult(**parts)
        assert CommandResult.model_validate_json(result.model_dump_json()) == result
    else:
        with pytest.raises(ValidationError):
            CommandResult(**parts)
