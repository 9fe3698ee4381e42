"""A run's files: nothing is lost, and what is not a run is refused."""

import json

import pytest

from esper_ray.config import DEBUG, TrainConfig, load_config
from esper_ray.errors import UserError
from esper_ray.run_directory import RunDirectory


def _touch(path):
    (path / "weights").write_text("w")


def test_a_stored_config_comes_back_equal(tmp_path):
    run = RunDirectory.create(tmp_path / "run", DEBUG)
    assert RunDirectory.open(tmp_path / "run").config() == DEBUG
    assert json.loads(run.config_path.read_text())["env"]["max_epochs"] == DEBUG.env.max_epochs


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
    for iteration, score in ((1, 0.2), (2, 0.9), (3, 0.4), (4, 0.5)):
        run.save(iteration, score, _touch)
    assert run.checkpoint("latest")[0].iteration == 4
    assert run.checkpoint("best")[0].iteration == 2
    assert {path.name for path in run.checkpoints.glob("iteration-*")} == {"iteration-000002", "iteration-000004"}


def test_a_save_that_fails_leaves_the_checkpoint_before_it(tmp_path):
    run = RunDirectory.create(tmp_path / "run", TrainConfig())
    run.save(1, 0.2, _touch)

    def fail(path):
        _touch(path)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
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
