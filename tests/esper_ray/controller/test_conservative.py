import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from envs.vocabulary import SeedStage
from esper_ray.controller.assessment import RiskConfig, RunState, assess
from esper_ray.controller.case import Case, Latencies
from esper_ray.controller.commands import Kind, Reason, Severity
from esper_ray.controller.conservative import Change, ConservativeConfig, ConservativeMode
from esper_ray.controller.levels import Level
from esper_ray.errors import UserError
from policies.strategic.messages import Budgets
from tests.esper_ray.controller.evaluations import GERMINATE, PRUNE, WAIT, Sheet, packet, seed

CONFIG = RiskConfig()
CALM, HIGH, CRITICAL, BREAKER, STARTING = "calm", "high", "critical", "breaker", "starting"


def evaluate(state, what, epoch, op=WAIT):
    """One evaluation of a run in which something happens, over a restart of the service."""
    state = RunState.model_validate_json(state.model_dump_json())
    case = Case(
        packet(epoch),
        None if what == STARTING else op,
        latencies=Latencies(hook=75.0 if what == HIGH else 1.0),
        coverage=0.05 if what == CRITICAL else 1.0,
        faults=frozenset({Reason.BREAKER_CATALOGUE} if what == BREAKER else ()),
    )
    return assess(state, case, CONFIG, Reason.WORKER_STARTING if what == STARTING else None)


def course(*happenings, state=None, epoch=0):
    """An evaluation an epoch."""
    found = None
    for at, what in enumerate(happenings):
        found = evaluate((state or RunState()) if found is None else found.state, what, epoch + at)
    return found


@pytest.mark.parametrize("what", [CRITICAL, BREAKER])
def test_one_critical_signal_or_open_breaker_begins_it_and_announces_it(what):
    found = course(CALM, what)
    assert (found.event.change, found.event.reason) == (Change.ENTERED, found.decision.reason)
    assert found.decision.kind is Kind.CIRCUIT_BREAKER
    after = evaluate(found.state, CALM, 2)
    assert (after.decision.kind, after.decision.reason) == (Kind.PAUSE, Reason.CONSERVATIVE_MODE)
    assert after.event is None


@given(st.lists(st.booleans(), min_size=1, max_size=25))
@example([epoch in (0, 5, 9) for epoch in range(10)])
@example([epoch in (0, 5, 10) for epoch in range(11)])
def test_three_high_among_ten_evaluations_begin_it(highs):
    found, began = None, None
    for epoch, high in enumerate(highs):
        state = RunState() if found is None else found.state
        found = evaluate(state, HIGH if high else CALM, epoch)
        if found.event is not None:
            began = epoch
            break
    expected = next((at for at in range(len(highs)) if sum(highs[max(at - 9, 0) : at + 1]) >= 3), None)
    assert began == expected
    assert found.state.mode.is_on == (expected is not None)


HAPPENINGS = st.lists(
    st.tuples(st.sampled_from([CALM, CALM, CALM, HIGH, CRITICAL, BREAKER, STARTING]), st.integers(0, 1)), max_size=40
)


@given(HAPPENINGS)
def test_it_is_left_only_by_its_rule(happenings):
    """Against the rule as it is written: epochs and evaluations are counted over the whole course."""
    found, epoch, since = None, 0, None
    for what, step in happenings:
        epoch += step
        was_on = found is not None and found.state.mode.is_on
        found = evaluate(RunState() if found is None else found.state, what, epoch)
        is_on = found.state.mode.is_on
        if what in (HIGH, CRITICAL, BREAKER):
            since = []
            unclean = epoch
        elif since is not None:
            since.append((epoch, what))
        if was_on:
            epochs = {seen for seen, _ in since if seen != unclean}
            rested = len(epochs) >= 5 and sum(what == CALM for _, what in since) >= 3
            assert is_on == (not rested)
            assert found.event is None or found.event.change is Change.LEFT
        else:
            assert found.event is None or found.event.change is Change.ENTERED
        assert (found.event is not None) == (was_on != is_on)
        if is_on and what == CALM:
            assert found.decision.kind is Kind.PAUSE
            assert found.decision.reason is Reason.CONSERVATIVE_MODE


def test_many_evaluations_of_one_epoch_are_no_cool_down():
    found = course(CRITICAL)
    for _ in range(20):
        found = evaluate(found.state, CALM, 1)
        assert found.state.mode.is_on
    assert not course(*[CALM] * 4, state=found.state, epoch=2).state.mode.is_on
    found = evaluate(evaluate(RunState(), CRITICAL, 7).state, CALM, 7)  # what is left of an epoch that was not clean
    found = course(*[CALM] * 4, state=found.state, epoch=8)
    assert found.state.mode.is_on
    assert not evaluate(found.state, CALM, 12).state.mode.is_on


def test_epochs_in_which_no_policy_answered_are_no_clean_evaluations():
    found = course(CRITICAL, *[STARTING] * 50, CALM, CALM)
    assert found.state.mode.is_on
    found = evaluate(found.state, CALM, 60)
    assert found.event.change is Change.LEFT
    assert found.decision.kind is Kind.SEED


def test_what_the_policy_proposes_keeps_nobody_in_it_but_it_is_not_left_into_the_next():
    """A policy that never stops proposing what is CRITICAL."""
    found = course(CRITICAL)
    harmful = {"sheets": {"norm": Sheet(risk=0.9)}}
    for epoch in range(1, 20):
        found = assess(found.state, Case(packet(epoch), GERMINATE, **harmful), CONFIG)
        assert (found.event, found.decision.kind) == (None, Kind.PAUSE)
    assert evaluate(found.state, CALM, 20).event.change is Change.LEFT


def test_somebody_can_end_it_by_hand():
    mode, event = course(CRITICAL).state.mode.release()
    assert (mode, event.change, event.reason) == (ConservativeMode(), Change.RELEASED, Reason.COVERAGE)
    assert mode.release() == (mode, None)
    assert course(CALM, state=RunState(mode=mode), epoch=2).decision.kind is Kind.SEED
    assert course(CRITICAL, state=RunState(mode=mode), epoch=2).event.change is Change.ENTERED


def test_a_prune_passes():
    found = evaluate(course(CRITICAL).state, CALM, 1, op=PRUNE)
    assert (found.decision.kind, found.decision.operation) == (Kind.SEED, PRUNE)
    assert found.state.mode.is_on
    assert evaluate(found.state, HIGH, 2, op=PRUNE).decision.kind is Kind.PAUSE


def play(packets, sheets, epochs=60):
    """A run whose policy proposes to grow, and every seventh epoch to prune what grows; events and what was done."""
    state, living, events, done = RunState(), True, [], []
    for epoch in range(epochs):
        op = PRUNE if living and epoch % 7 == 6 else GERMINATE if not living else WAIT
        found = assess(state, Case(packets(epoch, living), op, sheets=sheets, coverage=1.0), CONFIG)
        state = found.state
        events += [] if found.event is None else [(epoch, found.event.change)]
        done.append(found.decision)
        if found.decision.operation == PRUNE:
            living = False
        elif found.decision.operation == GERMINATE:
            living = True
    return events, done


def test_a_run_with_a_quarantined_seed_gets_out_by_itself():
    def packets(epoch, living):
        return packet(epoch, (seed(SeedStage.TRAINING, "attention"),)) if living and epoch < 7 else packet(epoch)

    events, done = play(packets, {"attention": Sheet(quarantined="it broke a run")})
    assert events == [(0, Change.ENTERED), (11, Change.LEFT)]
    assert (done[0].kind, done[0].reason) == (Kind.CIRCUIT_BREAKER, Reason.QUARANTINED_SEED)
    assert done[6].operation == PRUNE
    assert done[11].operation == GERMINATE


def test_a_run_over_budget_gets_out_by_itself():
    def packets(epoch, living):
        other = seed(SeedStage.FOSSILIZED, slot="head")
        seeds = (seed(SeedStage.TRAINING), other) if living else (other,)
        return packet(epoch, seeds, budgets=Budgets(living_seeds=1))

    events, done = play(packets, {})
    assert events == []
    assert done[6].operation == PRUNE
    assert done[7].operation == GERMINATE  # back within the budget; the host's own rules admit it or not


def test_over_budget_neither_begins_it_nor_keeps_it_on():
    def over(epoch, op=WAIT, coverage=1.0):
        seen = packet(epoch, (seed(SeedStage.FOSSILIZED),), budgets=Budgets(living_seeds=0))
        return Case(seen, op, coverage=coverage)

    state = RunState()
    for epoch in range(30):
        found = assess(state, over(epoch), CONFIG)
        state = found.state
        assert (found.event, found.verdict.severity) == (None, Severity.HIGH)
    assert state.dashboard.level is Level.RED  # but it is told
    state = assess(state, over(30, coverage=0.0), CONFIG).state
    changes = []
    for epoch in range(31, 40):
        found = assess(state, over(epoch), CONFIG)
        state = found.state
        changes.append(found.event and found.event.change)
    assert changes == [None] * 4 + [Change.LEFT] + [None] * 4
    assert assess(state, over(41, GERMINATE), CONFIG).decision.kind is Kind.PAUSE


def test_a_mode_that_could_never_begin_is_refused():
    with pytest.raises(UserError, match="high_evaluations must be at most within_evaluations, 2, got 3"):
        ConservativeConfig(within_evaluations=2)
