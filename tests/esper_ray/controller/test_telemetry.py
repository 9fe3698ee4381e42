"""What is told is declared once, and whoever takes it can neither stop nor break the one who tells."""

import logging
import math
import re
import threading
import urllib.error
import urllib.request
from collections import defaultdict
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from esper_ray.controller import emitting, telemetry
from esper_ray.controller.commands import Severity
from esper_ray.controller.emitting import CallingSink, Telemetry
from esper_ray.controller.prometheus import MOST_RUNS, PrometheusSink, metric_name
from esper_ray.controller.run_page import LAYOUT, MOST_OPEN, RunPages, directory_name, tag_of
from esper_ray.controller.telemetry import ITEMS, Form, Item, Reading, Route
from esper_ray.controller.telemetry_page import PAGE_FILE, page
from esper_ray.errors import UserError
from tests.places import ROOT

LOSS, LEVEL, MODE = telemetry.VALIDATION_LOSS, telemetry.RISK_LEVEL, telemetry.MODE_ENTERED
FOR_EVER = 1e6
OTHERS_RELY_ON = {
    *("tamiyo.validation_loss", "tamiyo.loss_delta", "tamiyo.gnn.inference.latency_ms", "tamiyo.gnn.compile_enabled"),
    *("tamiyo.gnn.compile_warm_ms", "tamiyo.gnn.feature_coverage", "tamiyo.blending.method"),
}


def gathered(route=Route.BUS):
    found = []
    return found, CallingSink(found.append, route)


# ------------------------------------------------------------------ what is declared
def test_every_item_is_declared_once_and_says_what_it_is():
    declared = [value for value in vars(telemetry).values() if isinstance(value, Item)]
    assert [item.name for item in declared] == list(ITEMS), "no name twice"
    assert set(ITEMS) >= OTHERS_RELY_ON
    for item in declared:
        assert item.meaning.endswith(".")
        assert "\n" not in item.meaning
        assert item.routes
        assert bool(item.choices) is (item.form is Form.CHOICE)
        assert not item.unit or item.form is Form.NUMBER
    assert len({metric_name(item) for item in declared}) == len(declared)
    assert {item for _, items in LAYOUT.values() for item in items} <= set(telemetry.of_route(Route.TENSORBOARD))


def test_the_page_is_what_is_declared():
    assert (ROOT / "docs" / PAGE_FILE).read_text() == page(), "run: python -m esper_ray.controller.telemetry_page docs"


def test_what_the_page_shows_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (shown,) = re.findall(r"```python\n(.*?)```", page(), flags=re.DOTALL)
    exec(shown.replace("9464", "0"), {})
    assert (tmp_path / "var" / "controller").is_dir()


@pytest.mark.parametrize(
    ("item", "value", "part", "said"),
    [
        (Item("tamiyo.unknown", "Nobody knows it."), 1.0, "", "not declared"),
        (Item(LOSS.name, "Another of that name."), 1.0, "", "not declared"),
        (LOSS, "high", "", "is a number, got 'high'"),
        (LEVEL, 1.0, "", "is a choice, got 1.0"),
        (LEVEL, "BLUE", "", "one of GREEN, YELLOW"),
        (LOSS, 1.0, "average", "by nothing"),
        (telemetry.FEATURE_COVERAGE, 1.0, "", "by type"),
    ],
)
def test_what_is_not_declared_is_the_callers_mistake(item, value, part, said):
    with Telemetry() as told, pytest.raises(ValueError, match=said):
        told.emit(item, value, part=part)


# ------------------------------------------------------------------ emitting
def test_readings_go_where_their_item_does_and_nothing_unmeasured_goes_anywhere():
    (on_bus, bus), (on_page, pages) = gathered(), gathered(Route.TENSORBOARD)
    with Telemetry([bus, pages], lambda: 7, FOR_EVER) as told:
        told.emit(LOSS, 0.5, "run", 3)
        told.emit(LOSS, None, "run", 4)
        told.emit(telemetry.POLICY_VERSION, "abc", "run", 3)
        told.emit(MODE, "entered", "run", 3, severity=Severity.CRITICAL)
        told.emit(MODE, "entered", "run", 3, severity=Severity.DEBUG)
    loss = Reading(LOSS, 0.5, "run", 3, severity=Severity.INFO, time_ns=7)
    assert on_bus[0] == on_page[0] == loss
    assert [reading.value for reading in on_bus] == [0.5, "abc", "entered", "entered"]
    assert [reading.value for reading in on_page] == [0.5, "entered", "entered"]
    assert [reading.severity for reading in on_page[1:]] == [Severity.CRITICAL, Severity.HIGH], "at least its own"


def test_a_sink_that_fails_is_told_of_once_and_the_others_go_on(caplog):
    found, sink = gathered()
    calls = []

    def fail(reading):
        calls.append(reading)
        raise OSError("the disk\nis full")

    with Telemetry([CallingSink(fail), sink], patience_s=FOR_EVER) as told:
        for epoch in range(50):
            told.emit(LOSS, 1.0, "run", epoch)
    assert [reading.epoch for reading in found] == list(range(50))
    assert len(calls) == 1, "it gets no more"
    assert [record.message for record in caplog.records] == [
        "telemetry: CallingSink gets no more: OSError: the disk is full"
    ]


def test_a_sink_that_is_stuck_holds_nobody_up(caplog, monkeypatch):
    monkeypatch.setattr(emitting, "WAITING", 8)
    found, sink = gathered()
    held, entered = threading.Event(), threading.Event()

    def wait(_):
        entered.set()
        held.wait()

    told = Telemetry([CallingSink(wait), sink], patience_s=0.2)
    try:
        told.emit(LOSS, 1.0)
        entered.wait()
        for epoch in range(1, 30):
            told.emit(LOSS, 1.0, "run", epoch)
            while len(found) <= epoch:  # the one that keeps up has it
                threading.Event().wait(0.001)
        told.close()
    finally:
        held.set()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "does not keep up" in caplog.text


def test_after_the_end_nothing_is_taken_and_nothing_raises():
    found, sink = gathered()
    told = Telemetry([sink])
    told.close()
    told.emit(LOSS, 1.0)
    told.close()
    assert found == []


# ------------------------------------------------------------------ Prometheus
def scraped(sink):
    """Name → labels → value."""
    with urllib.request.urlopen(sink.url) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        values = defaultdict(dict)
        for family in families:
            for sample in family.samples:
                values[sample.name][frozenset(sample.labels.items())] = sample.value
    return values


def labels(**given):
    return frozenset(given.items())


def test_prometheus_has_the_latest_values_and_counts_events():
    sink = PrometheusSink()
    with Telemetry([sink], patience_s=FOR_EVER) as told:
        for epoch, loss in enumerate((0.9, 0.5)):
            told.emit(LOSS, loss, "one", epoch)
            told.emit(MODE, "entered", "one", epoch)
        told.emit(LOSS, 0.7, "two", 1)
        told.emit(LEVEL, "RED", "one", 1)
        told.emit(telemetry.POLICY_VERSION, "old", "one", 1)
        told.emit(telemetry.POLICY_VERSION, 'a "new" one', "one", 1)
        told.emit(telemetry.BREAKER_STATE, "half_open", part="inference")
        told.emit(telemetry.EVALUATE_P50, math.nan)
        while "tamiyo_breaker_state" not in (values := scraped(sink)):
            pass
        assert values["tamiyo_validation_loss"] == {labels(run_id="one"): 0.5, labels(run_id="two"): 0.7}
        assert values["tamiyo_conservative_mode_entered_total"] == {labels(run_id="one"): 2.0}
        assert values["tamiyo_risk_level"] == {labels(run_id="one"): 3.0}
        assert values["tamiyo_policy_version"] == {labels(run_id="one", value='a "new" one'): 1.0}
        assert values["tamiyo_breaker_state"] == {labels(run_id="", breaker="inference"): 2.0}
        assert "tamiyo_evaluate_p50_ms" not in values, "what is not finite is not known"
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(sink.url)


def test_prometheus_forgets_runs_that_it_has_not_heard_of_for_long():
    sink = PrometheusSink()
    try:
        sink.take(Reading(telemetry.EVALUATE_P50, 1.0))
        for run in range(MOST_RUNS + 5):
            sink.take(Reading(LOSS, 1.0, str(run)))
            sink.take(Reading(LOSS, 1.0, "0"))
        runs = {dict(of)["run_id"] for of in scraped(sink)["tamiyo_validation_loss"]}
        assert runs == {"0", *map(str, range(6, MOST_RUNS + 5))}
        assert scraped(sink)["tamiyo_evaluate_p50_ms"], "what is the service's own stays"
    finally:
        sink.close()


def test_two_services_are_apart_and_a_port_is_had_once():
    one, two = PrometheusSink(), PrometheusSink()
    try:
        one.take(Reading(LOSS, 1.0, "run"))
        assert "tamiyo_validation_loss" in scraped(one)
        assert "tamiyo_validation_loss" not in scraped(two)
        with pytest.raises(UserError, match=rf"^cannot serve metrics on 127.0.0.1:{one.port}: .*: give another port"):
            PrometheusSink(one.port)
    finally:
        one.close()
        two.close()
    PrometheusSink(one.port).close()  # it is free again


# ------------------------------------------------------------------ TensorBoard
def read(directory):
    found = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def values(page, tag):
    return [(event.step, event.value) for event in page.Scalars(tag)]


def test_a_page_per_run_shows_level_signals_and_decisions_over_epochs(tmp_path):
    with Telemetry([RunPages(tmp_path)], patience_s=FOR_EVER) as told:
        for epoch, level in enumerate(("GREEN", "RED", "YELLOW")):
            told.emit(LEVEL, level, "one", epoch)
            told.emit(telemetry.SIGNAL, "HIGH", "one", epoch, part="loss_delta")
            told.emit(telemetry.DECISION, f"PAUSE: loss_delta in {epoch}", "one", epoch)
        told.emit(LOSS, math.inf, "two", 0)
    page = read(tmp_path / "one")
    assert values(page, "tamiyo/risk/level") == [(0, 0.0), (1, 3.0), (2, 1.0)]
    assert values(page, "tamiyo/signal/loss_delta") == [(0, 2.0), (1, 2.0), (2, 2.0)]
    texts = [event.tensor_proto.string_val[0] for event in page.Tensors("tamiyo/decision/text_summary")]
    assert texts == [f"INFO: PAUSE: loss_delta in {epoch}".encode() for epoch in range(3)]
    assert "custom_scalars__config__" in page.Tags()["tensors"]
    assert tag_of(LOSS) not in read(tmp_path / "two").Tags()["scalars"]


def test_a_run_that_went_back_is_shown_as_it_went_on(tmp_path):
    for epochs in ((0, 1, 2), (1, 2)):  # a service that was started anew
        pages = RunPages(tmp_path)
        for epoch in epochs:
            pages.take(Reading(LOSS, float(len(epochs)), "run", epoch))
        pages.close()
    assert values(read(tmp_path / "run"), "tamiyo/validation_loss") == [(0, 3.0), (1, 2.0), (2, 2.0)]


def test_ids_of_runs_become_directories_of_their_own(tmp_path):
    ids = (
        "run",
        "",
        "service",
        "service.own",
        "a/b",
        "a_b",
        "..",
        ".",
        "../../x",
        "ü",
        "a b",
        "ü" * 200,
        "a" * 200,
        "a" * 199,
    )
    names = [directory_name(run_id) for run_id in ids]
    assert len(set(names)) == len(ids)
    assert all((tmp_path / name).resolve().parent == tmp_path.resolve() for name in names)
    assert names[0] == "run"
    assert max(len(name.encode()) for name in names) < 200


def test_of_many_runs_few_files_are_open_and_all_are_written(tmp_path):
    pages, runs = RunPages(tmp_path), [f"run{at}" for at in range(MOST_OPEN + 3)]
    for epoch in range(2):
        for run in runs:
            pages.take(Reading(LOSS, 1.0, run, epoch))
            pages.take(Reading(LOSS, 1.0, runs[0], epoch))
    held = {Path(file.path).parent for file in psutil.Process().open_files()}
    assert held & set(tmp_path.iterdir()) == {tmp_path / run for run in [*runs[-MOST_OPEN + 1 :], runs[0]]}
    pages.close()
    for run in runs:
        assert [step for step, _ in values(read(tmp_path / run), "tamiyo/validation_loss")][-1] == 1


def test_a_page_that_cannot_be_written_stops_the_page_alone(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    found, sink = gathered()
    with Telemetry([RunPages(tmp_path / "file"), sink], patience_s=FOR_EVER) as told:
        told.emit(LOSS, 1.0, "run", 1)
    assert len(found) == 1
    assert "RunPages gets no more: NotADirectoryError" in caplog.text
