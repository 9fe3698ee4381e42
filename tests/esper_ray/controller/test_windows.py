"""What a decision led to is judged by the epochs after it, beside those before, once for each decision."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.vocabulary import Blueprint, LifecycleOp, SeedStage
from esper_ray.controller.commands import Reason
from esper_ray.controller.evaluation import read_config
from esper_ray.controller.reports.field_report import ReportOutcome
from esper_ray.controller.reports.synthesis import course_of, report_id_of, synthesise
from esper_ray.controller.reports.windows import Closing, Observation, WindowConfig, end, observe
from esper_ray.errors import UserError
from tests.esper_ray.controller.evaluations import GERMINATE, PRUNE, seed
from tests.esper_ray.controller.reporting import CONFIG, FALLING, followed, seen

LOSSES = st.none() | st.floats(0.0, 5.0)
CRITICAL = st.sampled_from(((), (Reason.COVERAGE,), (Reason.COVERAGE, Reason.EXPECTED_RISK)))
ANY = st.lists(st.tuples(st.integers(0, 12), LOSSES, CRITICAL, st.booleans(), st.booleans()), max_size=25)
"""Evaluations in any order: epoch, loss, what is CRITICAL, whether a window opens, whether it is of a step."""


def evaluations(drawn):
    return [
        seen(epoch, loss, critical=critical, opens=opens and not step, is_step=step)
        for epoch, loss, critical, opens, step in drawn
    ]


def after(*losses, before=FALLING, **more):
    """The report of a decision on the epoch of the last loss before, once these losses came."""
    at = len(before) - 1
    prelude = [seen(epoch, loss, opens=False) for epoch, loss in enumerate(before[:-1])]
    decided = seen(at, before[-1], **more)
    rest = [seen(at + 1 + epoch, loss, opens=False) for epoch, loss in enumerate(losses)]
    (closed,), _ = followed(*prelude, decided, *rest, ends=len(losses) < CONFIG.window_epochs)
    return synthesise(closed, "run")


# ------------------------------------------------------------------ by hand
NOISE = 2 * math.sqrt(0.012) * math.sqrt(3)  # 0.3795


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        (1.4 - 0.36 - NOISE - 0.01, ReportOutcome.SUCCESS),
        (1.4 - 0.36 - NOISE + 0.01, ReportOutcome.NEUTRAL),
        (1.4 - 0.36, ReportOutcome.NEUTRAL),
        (1.4 - 0.36 + NOISE - 0.01, ReportOutcome.NEUTRAL),
        (1.4 - 0.36 + NOISE + 0.01, ReportOutcome.REGRESSION),
    ],
)
def test_an_outcome_is_what_is_beyond_the_noise_of_the_epochs_before(last, outcome):
    report = after(1.3, 1.5, last)
    assert report.outcome is outcome
    assert report.noise == pytest.approx(NOISE)
    assert report.loss_delta_sum == pytest.approx(last - 1.4)
    assert report.excess == pytest.approx(last - 1.4 + 3 * 0.12)
    assert report.loss_delta_max == pytest.approx(0.2)
    assert report.loss_delta_min == pytest.approx(min(-0.1, last - 1.5))
    assert (report.seen_epochs, report.window_epochs, report.notes) == (3, 3, ())


def test_a_steady_course_that_goes_on_is_neutral_though_its_noise_is_none():
    report = after(0.7, 0.6, 0.5, before=(1.3, 1.2, 1.1, 1.0, 0.9, 0.8))
    assert report.noise == pytest.approx(0.0, abs=1e-12)
    assert report.outcome is ReportOutcome.NEUTRAL
    assert after(0.7, 0.6, 0.49, before=(1.3, 1.2, 1.1, 1.0, 0.9, 0.8)).outcome is ReportOutcome.SUCCESS


@pytest.mark.parametrize(
    ("before", "excess", "noise", "note"),
    [
        ((None,), None, None, "no noise is known: 0 differences of losses before it, and it takes 2"),
        ((1.0,), None, None, "no noise is known: 0 differences of losses before it, and it takes 2"),
        ((1.1, 1.0), -2.7 + 0.3, None, "no noise is known: 1 differences of losses before it, and it takes 2"),
        ((1.3, 1.1, 1.0), -2.7 + 0.45, 0.1 * math.sqrt(6), "compared with 2 differences of losses before it"),
    ],
)
def test_where_too_little_is_known_nothing_is_invented(before, excess, noise, note):
    report = after(0.1, 0.2, -1.7, before=before)
    assert report.excess == (None if excess is None else pytest.approx(excess))
    assert report.noise == (None if noise is None else pytest.approx(noise))
    assert report.outcome is (ReportOutcome.NEUTRAL if noise is None else ReportOutcome.SUCCESS)
    assert report.notes[0].startswith(note)


def test_what_is_critical_after_it_is_a_regression_and_what_was_before_it_is_not():
    for critical, outcome in (((), ReportOutcome.REGRESSION), ((Reason.COVERAGE,), ReportOutcome.NEUTRAL)):
        before = [seen(epoch, loss, opens=False) for epoch, loss in enumerate(FALLING[:-1])]
        decided = seen(5, 1.4, critical=critical)
        step = seen(5, None, critical=(Reason.COVERAGE,), opens=False, is_step=True)
        rest = [seen(6 + at, loss, opens=False) for at, loss in enumerate((1.28, 1.16, 1.04))]
        (closed,), _ = followed(*before, decided, step, *rest)
        report = synthesise(closed, "run")
        assert report.outcome is outcome
        assert ("CRITICAL since: coverage" in report.notes) is (outcome is ReportOutcome.REGRESSION)


def test_a_report_says_what_was_commanded_and_of_which_seed():
    planted = seed(SeedStage.GERMINATED)
    report = after(1.0, 1.0, 1.0)
    assert (report.op, report.slot, report.seed_id, report.blueprint) == (LifecycleOp.WAIT, None, None, None)
    assert after(1.0, 1.0, 1.0, operation=None).op is None
    pruned = after(1.0, 1.0, 1.0, operation=PRUNE, seeds=(planted,))
    assert (pruned.op, pruned.seed_id, pruned.blueprint) == (LifecycleOp.PRUNE, "norm 1", Blueprint.NORM)
    for blueprint, seed_id in (("norm", "norm 1"), ("lora", None)):
        later = seed(SeedStage.GERMINATED, blueprint)
        evaluated = [seen(0, 1.0, GERMINATE), *(seen(at, 1.0, seeds=(later,), opens=False) for at in (1, 2, 3))]
        (closed,), _ = followed(*evaluated)
        germinated = synthesise(closed, "run", notes=["first"])
        assert (germinated.slot, germinated.blueprint, germinated.seed_id) == ("stem", Blueprint.NORM, seed_id)
        assert germinated.notes[0] == "first"


def test_numbers_that_no_report_can_say_are_left_out_and_it_says_so():
    report = after(-1e30, 1e30, -1e30, before=(1e30, -1e30, 1e30))
    assert report.loss_delta_max is report.excess is None
    assert any("left out" in note for note in report.notes)


# ------------------------------------------------------------------ when windows close
def test_epochs_count_and_neither_calls_nor_epochs_without_a_loss():
    calls = [seen(epoch, loss, opens=False) for epoch in (1, 2, 3, 4) for loss in (None, 0.5 - epoch / 10, None)]
    empty = [seen(epoch, None, opens=False) for epoch in (5, 6)]
    half, _ = followed(seen(0, 1.0), *calls[:6], *calls[9:10], ends=False)
    assert half == [], "two epochs have losses"
    (closed,), _ = followed(seen(0, 1.0), *calls[:6], *empty, seen(7, 0.1, opens=False))
    assert closed.how is Closing.WATCHED
    assert course_of(closed.losses, 0, 3).within == pytest.approx((-0.6, -0.1, -0.2))


@pytest.mark.parametrize(
    ("rest", "how"),
    [
        ([seen(50, None, opens=False)], Closing.TOO_LONG),
        ([seen(1, 1.0, opens=False), seen(2, 1.0, opens=False, max_epochs=2)], Closing.RUN_ENDED),
        ([seen(0, 1.0, opens=False)], None),
        ([seen(49, None, opens=False)], None),
    ],
)
def test_a_window_that_does_not_close_is_aborted(rest, how):
    closed, observation = followed(seen(0, 1.0), *rest)
    assert [each.how for each in closed] == [how] * (how is not None)
    assert len(observation.windows) == (how is None)
    for each in closed:
        report = synthesise(each, "run")
        assert report.outcome is ReportOutcome.ABORTED
        assert report.notes[0] == f"aborted: {how}"


def test_a_run_that_goes_back_before_a_decision_aborts_it_with_what_was_seen():
    closed, observation = followed(seen(4, 1.0), seen(5, 0.8, opens=False), seen(2, 2.0))
    assert [(each.how, each.window.epoch) for each in closed] == [(Closing.WENT_BACK, 4)]
    assert course_of(closed[0].losses, 4, 3).within == pytest.approx((-0.2,))
    assert observation.losses == ((2, 2.0),)
    assert [window.epoch for window in observation.windows] == [2]


def test_the_last_decision_of_a_run_has_its_report_too():
    closed, observation = followed(seen(0, 1.0, max_epochs=2), seen(1, 1.0, max_epochs=2), seen(2, 1.0, max_epochs=2))
    assert [(each.window.epoch, each.how) for each in closed] == [(at, Closing.RUN_ENDED) for at in (0, 1, 2)]
    assert observation.windows == ()


def test_the_oldest_of_too_many_windows_gives_way():
    config = WindowConfig(most_windows=3)
    closed, observation = followed(*(seen(epoch) for epoch in range(5)), config=config)
    assert [(each.window.epoch, each.how) for each in closed] == [(0, Closing.TOO_MANY), (1, Closing.TOO_MANY)]
    assert len(observation.windows) == 3
    with pytest.raises(UserError, match="window_epochs must be a whole number from 1 to 50, got 0"):
        WindowConfig(window_epochs=0)


def test_the_length_of_windows_can_be_set(tmp_path):
    (tmp_path / "settings.json").write_text('{"windows": {"window_epochs": 5}}')
    config = read_config(tmp_path / "settings.json").windows
    closed, _ = followed(seen(0, 1.0), *(seen(at, 1.0, opens=False) for at in range(1, 6)), config=config)
    assert [each.window.epochs for each in closed] == [5]


# ------------------------------------------------------------------ whatever comes
@given(ANY)
def test_every_decision_that_is_followed_is_reported_on_once_and_what_is_remembered_is_bounded(drawn):
    given_ = evaluations(drawn)
    closed, observation = followed(*given_)
    assert len(observation.losses) <= 9
    assert {window.command_id for window in observation.windows} <= {each.command_id for each in observation.companions}
    assert Observation.model_validate_json(observation.model_dump_json(exclude_defaults=True)) == observation
    closed, observation = followed(*given_, ends=True)
    assert observation.windows == observation.companions == ()
    opened = [each.command.command_id for each in given_ if each.opens]
    assert Counter(each.window.command_id for each in closed) == Counter(opened)
    reports = [synthesise(each, "run") for each in closed]
    assert len({report.report_id for report in reports}) == len(opened)
    assert [report.report_id for report in reports] == [report_id_of(report.command_id) for report in reports]
    for report in reports:
        assert (report.outcome is ReportOutcome.ABORTED) is any(note.startswith("aborted") for note in report.notes)


@given(ANY)
def test_two_windows_overlap_both_or_neither_and_just_those_that_were_open_at_once(drawn):
    opened, closed_at, order = {}, {}, {}
    observation = Observation()
    for at, each in enumerate(evaluations(drawn)):
        observation, closed = observe(observation, each, CONFIG)
        for one in closed:
            closed_at[one.window.command_id], order[one.window.command_id] = at, one
        if each.opens:
            opened[each.command.command_id] = at
    for one in end(observation)[1]:
        closed_at[one.window.command_id], order[one.window.command_id] = len(drawn), one
    for name, one in order.items():
        others = {
            other
            for other in opened
            if other != name and opened[other] < closed_at[name] and opened[name] < closed_at[other]
        }
        assert set(one.overlaps) == others
        assert len(one.overlaps) == len(others)


@given(st.lists(LOSSES, min_size=1, max_size=12), st.integers(1, 5), st.data())
@settings(max_examples=50)
def test_a_window_closes_with_the_epoch_that_it_waits_for_however_often_that_is_told(losses, epochs, data):
    config = WindowConfig(window_epochs=epochs)
    calls = [
        seen(epoch, loss, opens=epoch == 0 and call == 0)
        for epoch, loss in enumerate(losses)
        for call in range(data.draw(st.integers(1, 3)))
    ]
    closed, _ = followed(*calls, config=config)
    known = [loss for loss in losses[1:] if loss is not None]
    assert len(closed) == (len(known) >= epochs)
    if closed:
        report = synthesise(closed[0], "run")
        assert report.seen_epochs == epochs
        base = [] if losses[0] is None else losses[:1]
        total = known[epochs - 1] - (base or known)[0]
        if base or epochs > 1:
            assert report.loss_delta_sum == pytest.approx(total, abs=1e-9)
        else:
            assert report.loss_delta_sum is None
