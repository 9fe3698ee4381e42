"""``esper-ray control``: a host under a controller, and what can be asked and said of it afterwards."""

import os
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from esper_ray.cli import parse
from esper_ray.controller import telemetry
from esper_ray.controller.records import FILE
from esper_ray.controller.run_page import tag_of
from esper_ray.controller.store import Store
from esper_ray.errors import UserError
from esper_ray.process import TRAINER_NICENESS
from esper_ray.terminal import output
from tests.esper_ray.controller.test_store import CALM, decision
from tests.esper_ray.controller.test_telemetry import read


def said(capsys, *words):
    parse(["control", *map(str, words)]).run(output())
    return capsys.readouterr().out


def test_a_host_is_trained_and_every_decision_can_be_explained(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    given = ("--directory", tmp_path / "state")
    with ThreadPoolExecutor(1) as threads:  # what it does to its niceness stays with it
        niceness = threads.submit(lambda: os.getpriority(os.PRIO_PROCESS, 0))
        trained = threads.submit(said, capsys, "--max-epochs", 12, "--prometheus-port", 0, *given)
        after = threads.submit(lambda: os.getpriority(os.PRIO_PROCESS, 0))
    assert after.result() == max(niceness.result(), TRAINER_NICENESS)
    run_id, pages = "digits_impaired-0-1", tmp_path / "state" / "tensorboard"
    assert f"run {run_id} by heuristic" in trained.result()
    assert f"page: tensorboard --logdir {pages}" in trained.result()
    assert "metrics: http://127.0.0.1:" in trained.result()
    assert [f"epoch {at}/12: " in trained.result() for at in range(13)] == [True] * 13
    explained = said(capsys, "--explain", run_id, *given)
    assert [f" {at:>5}  " in explained for at in range(12)] == [True] * 12
    page = read(pages / run_id)
    for item in (telemetry.RISK_LEVEL, telemetry.COMMAND_KIND, telemetry.APPLY_MS):
        assert [event.step for event in page.Scalars(tag_of(item))] == list(range(12))
    assert [event.step for event in page.Tensors(f"{tag_of(telemetry.DECISION)}/text_summary")] == list(range(12))
    assert re.search(r"policy +closed", said(capsys, "status", *given))
    assert "from its next decision on" in said(capsys, "pause", run_id, *given)
    assert "paused" in said(capsys, "status", *given)
    assert "from its next decision on" in said(capsys, "release", run_id, *given)
    assert "paused, to be released" in said(capsys, "status", *given)
    said(capsys, "resume", run_id, *given)
    assert "paused" not in said(capsys, "status", *given)


@pytest.mark.parametrize(
    ("recorded", "shown"), [(b'{"policy": "open"}', r"policy +open"), (b'{"policy": "ajar"}', "cannot be read")]
)
def test_breakers_are_shown_as_they_were_at_the_last_decision_of_any_run(tmp_path, capsys, recorded, shown):
    with Store(tmp_path) as store:
        store.record(decision(1, "one", breakers=b'{"policy": "half_open"}'), CALM)
        store.record(decision(0, "another", breakers=recorded), CALM)
    assert re.search(shown, said(capsys, "status", "--directory", tmp_path))


def test_what_is_not_as_it_was_written_is_said_loudly(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with Store(tmp_path) as store:
        for at in range(3):
            store.record(decision(at), CALM)
    asked = (("status",), ("--explain", "run"))
    for words in asked:
        assert "not as it was written" not in said(capsys, *words, "--directory", tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
        connection.execute("UPDATE decisions SET level = 'Blue' WHERE sequence = 2")
    for words in asked:
        assert "not as it was written: row 2 of decisions is not" in said(capsys, *words, "--directory", tmp_path)
    assert "row 2 cannot be read: " in said(capsys, "--explain", "run", "--directory", tmp_path)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("pause",), "pause which run?"),
        (("resume", "x"), "holds no decisions"),
        (("--explain", "x"), "holds no decisions"),
        (("train", "x"), "a new run has a name of its own"),
        (("--policy", "nobody"), "no policy 'nobody'"),
        (("--max-epochs", "3"), "max_epochs"),
        (("--prometheus-port", "70000"), "prometheus_port must be a whole number from 0 to 65,535"),
    ],
)
def test_what_cannot_be_done_is_a_line(tmp_path, capsys, words, why):
    with pytest.raises(UserError, match=why) as refused:
        said(capsys, *words, "--directory", tmp_path / "state")
    assert "\n" not in str(refused.value)
