"""The record of a tuning, and what is reported from it."""

import json

import pytest
from rich.console import Console

from esper_ray.errors import UserError
from esper_ray.experiments.study.study_file import Study
from esper_ray.experiments.tuning.tuning_directory import Result, TuningDirectory
from esper_ray.experiments.tuning.tuning_file import Tuning
from esper_ray.experiments.tuning.tuning_report import tuning_table, write_report
from tests.esper_ray.experiments.tuning.small import written

RECORDED = [
    Result("000", 1, 0.9, stopped=False),
    Result("001", 1, 0.8, stopped=True),
    Result("000", 2, 0.5, stopped=False),
    Result("003", 1, 0.85, stopped=False),
    Result("000", 3, 0.6, stopped=False),
    Result("003", 2, 0.4, stopped=True),
    Result("000", 4, 0.7, stopped=False),
]


@pytest.fixture
def directory(tmp_path):
    directory = TuningDirectory(tmp_path / "out", Tuning.read(written(tmp_path, samples=5)))
    assert directory.open() == []
    for result in RECORDED:
        directory.append(result)
    return directory


def test_a_half_written_line_is_forgotten_and_what_follows_is_read(directory):
    with directory.record.open("a") as file:
        file.write('{"trial": "004", "iter')
    assert directory.open() == RECORDED
    late = Result("004", 1, float("nan"), stopped=True)
    directory.append(late)
    *before, last = directory.open()
    assert before == RECORDED
    assert (last.trial, str(last.score)) == ("004", "nan")


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [],
        lambda lines: [lines[0], "{", *lines[1:]],
        lambda lines: [lines[0], "[3]", *lines[1:]],
        lambda lines: ["null", *lines[1:]],
        lambda lines: [lines[0], lines[1].replace('"score": 0.9', '"score": "good"'), *lines[2:]],
        lambda lines: [lines[0], lines[1].replace('"stopped"', '"over"')],
    ],
)
def test_a_damaged_record_is_refused_and_left_as_it_is(directory, damage):
    content = "".join(f"{line}\n" for line in damage(directory.record.read_text().splitlines()))
    directory.record.write_text(content)
    (directory.path / "trials" / "000").mkdir(parents=True)
    with pytest.raises(UserError, match=r"results\.jsonl is damaged, restore it") as refused:
        directory.open()
    assert "\n" not in str(refused.value)
    assert directory.record.read_text() == content
    directory.record.unlink()
    with pytest.raises(UserError, match=r"cannot read .*results\.jsonl"):
        directory.open()
    assert not directory.record.exists()


def test_only_what_changes_no_decision_may_change(directory, tmp_path):
    more = written(tmp_path, samples=9, concurrent_trials=4, title="Larger")
    assert TuningDirectory(directory.path, Tuning.read(more)).open() == RECORDED
    for change in ({"reduction_factor": 3}, {"seed": 1}, {"space": {"lr": {"uniform": [0.1, 0.2]}}}):
        other = TuningDirectory(directory.path, Tuning.read(written(tmp_path, **change)))
        with pytest.raises(UserError, match=f"begun with another {next(iter(change))}"):
            other.open()


def test_the_longer_a_trial_was_let_train_the_better_and_then_its_score_decides(directory):
    found = write_report(directory, {"002": "it fell over"})
    shown = [(outcome.trial.name, outcome.state, len(outcome.scores)) for outcome in found]
    assert shown == [
        ("000", "finished", 4),
        ("003", "stopped", 2),
        ("001", "stopped", 1),
        ("002", "failed", 0),
        ("004", "unfinished", 0),
    ]
    report = json.loads((directory.path / "tune.json").read_text())
    assert [trial["score"] for trial in report["trials"]] == [0.7, 0.4, 0.8, None, None]
    assert report["trials"][0]["scores"] == [0.9, 0.5, 0.6, 0.7]
    assert report["trials"][3]["failure"] == "it fell over"
    page = (directory.path / "tune.md").read_text()
    assert page.index("| 000 | 0.700 | 4 | finished") < page.index("| 003 | 0.400 | 2 | stopped")
    assert "7 iterations trained; all trials to their ends would have been 20" in page
    console = Console(width=120)
    with console.capture() as captured:
        console.print(tuning_table(directory, found))
    assert "finished" in captured.get()


def test_the_best_trials_settings_are_a_study(directory):
    write_report(directory, {})
    study = Study.read(directory.path / "best.yaml")
    (best,) = (trial.config for trial in directory.trials if trial.name == "000")
    assert study.configs["tuned"] == best
    assert study.configs["before"] == study.base
    assert study.seeds == [0, 1, 2]
