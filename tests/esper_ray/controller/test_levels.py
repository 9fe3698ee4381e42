import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_ray.controller.case import Case, Latencies
from esper_ray.controller.commands import Severity
from esper_ray.controller.history import History
from esper_ray.controller.levels import Dashboard, Level, LevelConfig, combined_score, level_of
from esper_ray.controller.signals import Situation
from esper_ray.controller.thresholds import Thresholds
from esper_ray.errors import UserError
from tests.esper_ray.controller.evaluations import packet


def score(latency=None, swing=None, **metrics):
    history = History()
    for epoch in range(11):
        loss = None if swing is None else swing * (-1.0) ** epoch
        seen = packet(epoch, training_loss=loss, metrics=metrics)
        history = history.observe(seen)
    return combined_score(
        Situation(Case(seen, latencies=Latencies(step=latency)), history, Thresholds()), LevelConfig()
    )


def test_nothing_measured_has_no_score():
    assert score() is None
    assert level_of(None, Severity.INFO) is Level.GREEN


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({"gradient_norm": 5.0}, 0.0),
        ({"gradient_norm": 12.5}, 0.5),
        ({"gradient_norm": 1e30}, 1.0),
        ({"process_memory_share": 0.875}, 0.5),
        ({"latency": 300.0}, 0.5),
        ({"swing": 0.15}, 0.5),
        ({"gradient_norm": 20.0, "process_memory_share": 0.0}, 0.30 / 0.55),
        ({"gradient_norm": 20.0, "process_memory_share": 0.0, "latency": 0.0, "swing": 0.0}, 0.30),
        ({"gradient_norm": 0.0, "process_memory_share": 1.0, "latency": 0.0, "swing": 0.0}, 0.25),
        ({"gradient_norm": 0.0, "process_memory_share": 0.0, "latency": 900.0, "swing": 0.0}, 0.25),
        ({"gradient_norm": 0.0, "process_memory_share": 0.0, "latency": 0.0, "swing": 1.0}, 0.20),
        ({"gradient_norm": 99.0, "process_memory_share": 1.0, "latency": 999.0, "swing": 9.0}, 1.0),
    ],
)
def test_the_score_is_the_weighted_mean_of_what_was_measured(measured, expected):
    assert score(**measured) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("found", "level"),
    [(0.0, Level.GREEN), (0.2, Level.YELLOW), (0.4, Level.ORANGE), (0.6, Level.RED), (0.8, Level.CRITICAL)],
)
def test_levels_begin_where_the_one_before_ends(found, level):
    assert level_of(found, Severity.INFO) is level
    assert level_of(found + 0.1999, Severity.INFO) is level


def test_a_signal_lifts_the_level_and_never_lowers_it():
    for severity in Severity:
        for found in (None, 0.0, 0.5, 1.0):
            assert level_of(found, severity) >= level_of(found, Severity.INFO)
    assert level_of(None, Severity.CRITICAL) is Level.CRITICAL


@given(st.lists(st.sampled_from(Level), max_size=20))
def test_it_rises_after_three_windows_in_a_row_and_falls_at_once(found):
    dashboard, shown = Dashboard(), Level.GREEN
    for epoch, level in enumerate(found):
        dashboard = Dashboard.model_validate_json(dashboard.show(epoch, level).model_dump_json())
        last = found[max(epoch - 2, 0) : epoch + 1]
        if level <= shown:
            shown = level
        elif len(last) == 3 and min(last) > shown:
            shown = min(last)
        assert dashboard.level is shown


@given(st.lists(st.lists(st.sampled_from(Level), min_size=1, max_size=4), max_size=8))
def test_a_window_is_an_epoch_and_as_bad_as_its_worst(windows):
    by_packet, by_window = Dashboard(), Dashboard()
    for epoch, window in enumerate(windows):
        for level in window:
            by_packet = by_packet.show(epoch, level)
        by_window = by_window.show(epoch, max(window))
        assert by_packet == by_window


def test_a_base_must_be_below_its_emergency():
    with pytest.raises(UserError, match=r"memory_base must be below memory_emergency, 0\.95, got 0\.95"):
        LevelConfig(memory_base=0.95)
