"""What a run may go on with, and how one finds its place beside others."""

import copy
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest

from esper_ray.cli import parse
from esper_ray.commands.training import _new_directories
from esper_ray.config import CHANGEABLE, _spelled, check_resumable
from esper_ray.errors import UserError
from esper_ray.keeping.lock import held
from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.keeping.storage import Mirror
from esper_ray.presets import DEBUG

OTHERS = {
    "task": "tabular",
    "task_args": {"noise": "3"},
    "reward_mode": "sparse",
    "op_bias": {"WAIT": 1.0},
    "deep_heads": (),
    "memory": False,
    "algorithm": "impala",
    "first_task_args": {"variants": "narrow_first"},
    "critic_baseline": "state",
    "storage": "elsewhere",
    "data_dir": "elsewhere",
    "entropy_multipliers": {"op": 2.0},
    "centre_advantages": True,
    "bf16": True,
    "kind": "graph",
}
"""Values that settings which are no numbers do not have in DEBUG."""


def with_another(name):
    """DEBUG but for one setting, whether or not a training could have it."""
    config = copy.deepcopy(DEBUG)
    parts = (getattr(config, part.name) for part in dataclasses.fields(config))
    part = next(part for part in parts if hasattr(part, name))
    object.__setattr__(part, name, OTHERS[name] if name in OTHERS else (getattr(part, name) or 0) + 1)
    return config


SETTINGS = [field.name for part in dataclasses.fields(DEBUG) for field in dataclasses.fields(getattr(DEBUG, part.name))]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_may_change_or_is_named(name):
    check_resumable(DEBUG, DEBUG)
    if name in CHANGEABLE:
        check_resumable(DEBUG, with_another(name))
        return
    with pytest.raises(
        UserError, match=f"cannot go on with another world or network, got {_spelled(name)} from "
    ) as refused:
        check_resumable(DEBUG, with_another(name))
    assert "\n" not in str(refused.value)


def test_the_world_and_the_network_cannot_change_and_how_it_is_learnt_can():
    fixed = {*SETTINGS} - CHANGEABLE
    assert {"task", "task_args", "max_epochs", "hidden_dim", "algorithm", "seed", "parameter_rent"} <= fixed
    assert {"lr", "iterations", "num_env_runners", "data_dir", "play_temperature"} <= CHANGEABLE <= {*SETTINGS}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--task", "tabular"], "task from 'digits_impaired' to 'tabular'"),
        (["--max-epochs", "13"], "max_epochs from 12 to 13"),
        (["--hidden-dim", "24"], "hidden_dim from 32 to 24"),
        (["--preset", "quickstart"], "leave out --preset and --debug"),
        (["--preset", "default"], "leave out --preset and --debug"),
        (["--debug"], "leave out --preset and --debug"),
    ],
)
def test_a_run_goes_on_as_the_run_that_it_is(tmp_path, flags, says):
    run = RunDirectory.create(tmp_path / "run", DEBUG)
    run.save(1, 0.5, lambda path: None)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=says):
        parse(["train", "--run-dir", str(run.path), "--resume", "--iterations", "9", *flags]).run(Silent())
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


class Silent:
    def print(self, *arguments, **keywords):
        pass


def test_a_run_that_another_command_trains_is_refused(tmp_path):
    run = RunDirectory.create(tmp_path / "run", DEBUG)
    with held(run.path), pytest.raises(UserError, match="run is in use by process"):
        parse(["train", "--run-dir", str(run.path), "--resume"]).run(Silent())
    study = tmp_path / "small.yaml"
    study.write_text("preset: debug\nspace: {lr: {choice: [0.1]}}\ngrace_iterations: 1\n")
    with held(tmp_path / "out"), pytest.raises(UserError, match="out is in use by process"):
        parse(["tune", str(study), "--output", str(tmp_path / "out")]).run(Silent())
    study.write_text("preset: debug\n")
    with held(tmp_path / "out"), pytest.raises(UserError, match="out is in use by process"):
        parse(["study", str(study), "--output", str(tmp_path / "out")]).run(Silent())


def test_runs_that_were_given_no_directory_never_meet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(_new_directories, ["digits"] * 24))
    assert len({directories[-1] for directories in made}) == 24
    assert len(list((tmp_path / "runs").iterdir())) == 24


@pytest.mark.parametrize("place", ["run", "run/copy", "."])
def test_a_copy_is_not_put_into_what_it_is_a_copy_of(tmp_path, place):
    run = RunDirectory.create(tmp_path / "run", DEBUG)
    with pytest.raises(UserError, match="overlap"):
        Mirror(f"{tmp_path}/{place}").check_apart(run)
    Mirror(f"{tmp_path}/runs").check_apart(run)
