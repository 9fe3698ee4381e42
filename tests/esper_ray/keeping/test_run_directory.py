"""A run's files: nothing is lost, and what is not a run is refused."""

import itertools
import json
import math
import os
import signal
import sys

import pytest

from esper_ray.config import TrainConfig, load_config
from esper_ray.errors import UserError
from esper_ray.keeping.lock import held
from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.presets import DEBUG, PRESETS


def _touch(path):
    (path / "weights").write_text("w")


def test_a_stored_config_comes_back_equal(tmp_path):
    run = RunDirectory.create(tmp_path / "run", DEBUG)
    assert RunDirectory.open(tmp_path / "run").config() == DEBUG
    assert json.loads(run.config_path.read_text())["env"]["max_epochs"] == DEBUG.env.max_epochs


def test_a_run_plays_at_the_temperature_of_its_config_and_one_from_before_there_was_any_at_one(tmp_path):
    assert {preset.network.play_temperature for preset in PRESETS.values()} == {0.4}
    run = RunDirectory.create(tmp_path / "run", DEBUG)
    stored = json.loads(run.config_path.read_text())
    del stored["network"]["play_temperature"]
    run.config_path.write_text(json.dumps(stored))
    assert run.config() == DEBUG.playing_at(1.0)
    assert RunDirectory.begun(run.path, DEBUG).config() == DEBUG  # noted anew, for it has no part in training
    with pytest.raises(UserError, match="other settings"):
        RunDirectory.begun(run.path, TrainConfig())
    assert run.config() == DEBUG


def test_a_run_that_another_process_has_is_not_begun_nor_noted_anew_and_what_it_is_can_be_found(tmp_path):
    with held(tmp_path / "new"), pytest.raises(UserError, match="is in use by process"):
        RunDirectory.begun(tmp_path / "new", DEBUG)
    assert not (tmp_path / "new").exists()
    run = RunDirectory.begun(tmp_path / "new", DEBUG)
    with held(run.path):
        assert RunDirectory.begun(run.path, DEBUG).config() == DEBUG
        with pytest.raises(UserError, match="is in use by process"):
            RunDirectory.begun(run.path, DEBUG.playing_at(0.1))
    assert run.config() == DEBUG


def test_an_existing_directory_is_never_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        RunDirectory.create(tmp_path, DEBUG)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"run": {"iteration": 3}}', "run.iteration"),
        ('{"learner": {"clip": -1}}', "clip"),
        ('{"env": {"max_epochs": "many"}}', "max_epochs"),
        ('{"weather": 1}', "weather"),
        ("{", "not JSON"),
    ],
)
def test_a_config_with_an_unknown_or_wrong_field_is_refused_by_name(tmp_path, text, says):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        load_config(path)


def test_latest_and_best_are_kept_and_the_rest_is_deleted(tmp_path):
    run = RunDirectory.create(tmp_path / "run", TrainConfig())
    for iteration, score in ((1, 0.2), (2, 0.9), (3, 0.1), (4, 0.3)):
        run.save(iteration, score, _touch)
    assert run.checkpoint("latest")[0].iteration == 4
    assert run.checkpoint("best")[0].iteration == 2
    assert {path.name for path in run.checkpoints.glob("iteration-*")} == {"iteration-000002", "iteration-000004"}


def test_the_best_is_the_highest_average_not_one_lucky_iteration(tmp_path):
    run = RunDirectory.create(tmp_path / "run", TrainConfig())
    for iteration, score in enumerate((0.3, 0.8, *(0.7,) * 6, math.nan, 0.2), start=1):
        run.save(iteration, score, _touch)
    best, _ = run.checkpoint("best")
    assert (best.iteration, best.score) == (8, 0.7)
    assert 0.6 < best.average < 0.7


def test_a_save_that_fails_leaves_the_checkpoint_before_it(tmp_path):
    run = RunDirectory.create(tmp_path / "run", TrainConfig())
    run.save(1, 0.2, _touch)

    def fail(path):
        _touch(path)
        raise OSError("disk full")

    with pytest.raises(UserError, match="disk full"):
        run.save(2, 0.9, fail)
    found, path = run.checkpoint("latest")
    assert found.iteration == 1
    assert (path / "weights").read_text() == "w"
    run.save(2, 0.9, _touch)
    assert run.checkpoint("best")[0].iteration == 2


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        RunDirectory.open(tmp_path)
    run = RunDirectory.create(tmp_path / "run", TrainConfig())
    with pytest.raises(UserError, match="no checkpoint yet"):
        run.checkpoint("best")


def _save_until_killed(run, operations):
    """Save iteration 2 in a child that is killed at its n-th file operation in the run; whether it got that far."""
    child = os.fork()
    if child == 0:
        done = itertools.count(1)

        def watch(event, arguments):
            touched = event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir"}
            if touched and str(run.path) in str(arguments[0]) and next(done) == operations:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        run.save(2, 0.9, _touch)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_save_killed_at_any_file_operation_leaves_a_whole_checkpoint_and_can_be_done_again(tmp_path):
    for operations in itertools.count(1):
        run = RunDirectory.create(tmp_path / str(operations), TrainConfig())
        run.save(1, 0.2, _touch)
        killed = _save_until_killed(run, operations)
        found, path = run.checkpoint("latest")
        assert found.iteration in ((1, 2) if killed else (2,))
        assert (path / "weights").read_text() == "w"
        run.save(found.iteration + 1, 0.95, _touch)
        assert {entry.name for entry in run.checkpoints.iterdir()} == {
            "index.json",
            *(checkpoint.name for checkpoint in run.index().values()),
        }
        if not killed:
            break
    assert operations > 8
