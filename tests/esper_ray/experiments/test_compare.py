"""Runs side by side."""

import dataclasses
import json
from pathlib import Path

import pytest
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from esper_ray.cli import parse
from esper_ray.errors import UserError
from esper_ray.experiments.compare import CURVES, compare, comparison_markdown
from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.measuring.curves import read_curves
from esper_ray.presets import DEBUG


@pytest.fixture
def runs(tmp_path):
    learners = {"a": DEBUG.learner, "b": dataclasses.replace(DEBUG.learner, lr=0.5)}
    for name, learner in learners.items():
        run = RunDirectory.create(tmp_path / name / "run", dataclasses.replace(DEBUG, learner=learner))
        run.save(1, 0.5, lambda path: None)
        with SummaryWriter(str(run.path)) as writer:
            for tag in CURVES:
                writer.add_scalar(tag, learner.lr, 48)
    score = {"score": {"iqm": 0.75, "ci95": [0.7, 0.8]}}
    played = {"checkpoint": {"which": "latest", "iteration": 1}, "temperature": 0.4}
    policies = {"learned": score, "never_grow": score}
    report = {"task": "digits", "max_epochs": 60, "episodes": 4, "seed": 0, **played, "policies": policies}
    (tmp_path / "a" / "run" / "evaluation.json").write_text(json.dumps(report))
    return [tmp_path / name / "run" for name in learners]


def test_the_command_prints_and_writes_what_differs_and_what_came_out(runs, tmp_path, capsys):
    out = tmp_path / "out"
    parse(["compare", *map(str, runs), "--output", str(out)]).run(Console(width=120))
    printed, page = capsys.readouterr().out, (out / "comparison.md").read_text()
    for text in (printed, page):
        assert "a/run" in text
        assert "b/run" in text
        assert "learner/lr" in text
        assert "learner/gamma" not in text
        assert "0.750 [0.700, 0.800]" in text
    assert "| learner/lr | 0.0003 | 0.5 |" in page
    assert "4 of digits, 60 epochs, seed 0, iteration 1 at temperature 0.4" in page
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"task": "digits"}', '{"policies": {"learned": {"score": 1}}}'])
def test_a_damaged_evaluation_is_refused_in_one_line(runs, content):
    report = runs[0] / "evaluation.json"
    report.write_text(content)
    with pytest.raises(UserError, match=r"evaluation\.json is (damaged, evaluate the run again|not JSON)") as refused:
        compare(runs)
    assert "\n" not in str(refused.value)
    assert report.read_text() == content


def test_a_name_is_as_short_as_tells_the_runs_apart(runs, tmp_path):
    RunDirectory.create(tmp_path / "third", DEBUG)
    compared = compare([*runs, tmp_path / "third", runs[0]])
    assert [run.name for run in compared] == ["a/run", "b/run", "third"]
    assert compared[2].iterations == 0
    assert "| – |" in comparison_markdown(compared)


def test_a_run_is_compared_with_another_one():
    with pytest.raises(UserError, match="two or more"):
        parse(["compare", "runs/a"]).run(Console())
    with pytest.raises(UserError, match="not a run directory"):
        compare([Path("nowhere"), Path("neither")])


def test_epochs_that_were_written_twice_count_as_they_were_written_last(tmp_path):
    for second, steps in ((1, (10, 20)), (2, (20, 30))):  # killed after step 20, gone on from step 10
        with SummaryWriter(str(tmp_path), filename_suffix=".new") as writer:
            for step in steps:
                writer.add_scalar("score", float(second), step)
        (file,) = tmp_path.glob("*.new")
        file.rename(tmp_path / f"events.out.tfevents.{second:010d}")
    curves = read_curves(tmp_path, ["score", "absent"])
    assert curves["score"].epochs.tolist() == [10, 20, 30]
    assert curves["score"].values.tolist() == [1, 2, 2]
    assert len(curves["absent"].values) == 0
