"""Each command once, small, as a user's shell would run it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from envs.reward import COMPONENTS
from envs.slot_states import Fate
from envs.vocabulary import Blueprint, LifecycleOp
from esper_ray.cli import parse
from esper_ray.errors import UserError
from esper_ray.keeping.run_directory import RunDirectory
from tests.esper_ray.keeping.places import read_only
from tests.esper_ray.learning.masked_toy_env import HEADS
from tests.places import ROOT

SMALLEST = ["--debug", "--hosts-per-runner", "2", "--minibatches", "2"]
SMALL = [*SMALLEST, "--max-epochs", "8"]


def esper_ray(*arguments, cwd=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "esper_ray", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "small"
    result = esper_ray("train", *SMALL, "--run-dir", path, "--seed", 3)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1/2" in result.stdout
    assert "2/2" in result.stdout
    return path


@pytest.fixture(scope="module")
def turns_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "turns"
    drawn = ["--max-epochs", "7..8", "--tasks", "digits_impaired,digits"]
    result = esper_ray("train", *SMALLEST, *drawn, "--run-dir", path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "digits_impaired, digits: 2 iterations" in result.stdout
    assert re.search(r"episodes of [78] epochs", result.stdout)
    assert "(digits_impaired 0." in result.stdout
    assert "(digits 0." in result.stdout
    return path


@pytest.fixture(scope="module")
def impala_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "impala"
    result = esper_ray("train", *SMALL, "--algorithm", "impala", "--iterations", 1, "--run-dir", path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1/1" in result.stdout
    return path


def tags(run_dir):
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return events


def test_train_leaves_config_checkpoints_and_readable_tensorboard_tags(run_dir):
    assert json.loads((run_dir / "config.json").read_text())["run"]["seed"] == 3
    index = json.loads((run_dir / "checkpoints" / "index.json").read_text())
    assert index["latest"]["iteration"] == 2
    events = tags(run_dir)
    scalars = events.Tags()["scalars"]
    for tag in (
        "World/score",
        "World/reward/accuracy",
        "World/seeds/fossilized",
        "Policy/op_share/WAIT",
        "Policy/entropy/op",
        "Critic/explained_variance",
        "LSTM/lstm_hidden_norm",
        "Alarm/non_finite",
        "Optimiser/gradient_norm/all",
        "Speed/epochs_per_second",
    ):
        assert tag in scalars
    assert "Policy/op_share/GROW_INTERNAL" not in scalars
    assert "Replay/held_out_episode" in events.Tags()["images"]
    assert any("config" in tag for tag in events.Tags()["tensors"])
    assert max(event.value for event in events.Scalars("Optimiser/replay_error")) < 1e-5


def test_a_run_resumes_where_it_stopped_with_its_own_settings(run_dir):
    steps_before = tags(run_dir).Scalars("World/score")[-1].step
    result = esper_ray("train", "--run-dir", run_dir, "--resume", "--iterations", 3)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "resumed after iteration 2" in result.stdout
    assert "3/3" in result.stdout
    assert "2/3" not in result.stdout
    index = json.loads((run_dir / "checkpoints" / "index.json").read_text())
    assert index["latest"]["iteration"] == 3
    assert tags(run_dir).Scalars("World/score")[-1].step == steps_before * 3 // 2
    config = json.loads((run_dir / "config.json").read_text())
    assert config["env"]["max_epochs"] == 8
    assert config["run"]["seed"] == 3


def explained():
    """Every metric of the page: its name as a pattern → the cells that explain it."""
    placeholders = {
        "HEAD": [head.name for head in HEADS],
        "OP": [op.name for op in LifecycleOp],
        "KIND": [blueprint.name for blueprint in Blueprint],
        "COMPONENT": COMPONENTS,
        "FATE": [fate.name.lower() for fate in Fate],
        "PART": ["[a-z_]+"],
        "HORIZONS": ["[0-9]+[.][.][0-9]+"],
        "TASK": ["digits", "digits_impaired"],
    }
    rows = {}
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines():
        if line.startswith("| `"):
            names, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            for name in re.findall("`([^`]+)`", names):
                for placeholder, values in placeholders.items():
                    name = re.sub(rf"/{placeholder}$", f"/({'|'.join(values)})", name)
                rows[name] = cells
    return rows


def test_every_metric_that_is_written_is_explained_and_the_other_way_round(run_dir, impala_dir, turns_dir):
    page = explained()
    written = {tag for path in (run_dir, impala_dir, turns_dir) for tag in tags(path).Tags()["scalars"]}
    assert {tag for tag in written if not any(re.fullmatch(name, tag) for name in page)} == set()
    assert {name for name in page if not any(re.fullmatch(name, tag) for tag in written)} == set()
    for name, cells in page.items():
        assert len(cells) == 3, name
        assert all(cells), name


def test_the_asynchronous_algorithm_trains_and_its_run_stays_with_it(impala_dir, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(impala_dir, path)
    scalars = tags(path).Tags()["scalars"]
    assert {"World/score", "Critic/q_spread", "Policy/kl", "Optimiser/gradient_norm/all", "Alarm/non_finite"} <= {
        *scalars
    }
    result = esper_ray("train", "--run-dir", path, "--resume", "--iterations", 2, "--algorithm", "ppo")
    assert result.returncode == 2, result.stdout + result.stderr
    assert "algorithm from 'impala' to 'ppo'" in result.stderr
    result = esper_ray("train", "--run-dir", path, "--resume", "--iterations", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2/2" in result.stdout
    assert [event.step for event in tags(path).Scalars("World/score")] == [16, 32]


def test_the_asynchronous_algorithms_run_is_evaluated_and_replayed_like_any_other(impala_dir):
    result = esper_ray("evaluate", impala_dir, "--episodes", 2, "--workers", 1, "--policies", "learned", "never_grow")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((impala_dir / "evaluation.json").read_text())
    assert report["checkpoint"]["iteration"] == 1
    assert report["policies"]["learned"]["accuracy"]["mean"] > 0
    result = esper_ray("replay", impala_dir)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (impala_dir / "replay-learned-0.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_in_training_is_read_by_others_trained_by_none_and_ctrl_c_saves_it(tmp_path):
    command = [sys.executable, "-m", "esper_ray", "train", *SMALL, "--iterations", "500", "--run-dir", "run"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, start_new_session=True
    )
    lines, told = [], False
    for line in process.stdout:
        lines.append(line)
        if "2/500" in line and not told:
            told = True
            second = esper_ray("train", "--resume", "--run-dir", tmp_path / "run")
            played = esper_ray("evaluate", tmp_path / "run", "--episodes", 2, "--workers", 1, "--policies", "learned")
            done = RunDirectory(tmp_path / "run").iterations_done()
            # To the whole group, as a terminal does: the workers must survive it until the iteration is saved.
            os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 0, "".join(lines)
    assert (second.returncode, second.stderr.count("\n")) == (2, 1), second.stderr
    assert f"run is in use by process {process.pid} on " in second.stderr
    assert played.returncode == 0, played.stdout + played.stderr
    last = json.loads((tmp_path / "run" / "checkpoints" / "index.json").read_text())["latest"]["iteration"]
    assert done <= last <= done + 2
    assert not (tmp_path / "run" / ".lock").exists()
    assert "stopped and saved; go on with: esper-ray train --run-dir" in "".join(lines)


PLAYING = {"never_grow", "random_valid", "heuristic", "fixed_schedule", "periodic", "gradient"}
CONTROLS = PLAYING | {"static_final", "static_big"}


def test_evaluate_writes_every_policy_with_intervals(run_dir):
    schedule = run_dir / "schedule.json"
    schedule.write_text('{"schedule": [{"slot": 1, "blueprint": "NORM", "epoch": 0}]}')
    result = esper_ray("evaluate", run_dir, "--episodes", 3, "--workers", 1, "--greedy", "--schedule", schedule)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "never grow" in result.stdout
    report = json.loads((run_dir / "evaluation.json").read_text())
    assert (report["task"], report["episodes"], len(report["host_seeds"])) == ("digits_impaired", 3, 3)
    assert set(report["policies"]) == CONTROLS | {"learned", "learned_greedy", "best_schedule"}
    for policy in report["policies"].values():
        for measure in ("score", "accuracy", "parameters", "training_flops"):
            low, high = policy[measure]["ci95"]
            assert low <= policy[measure]["iqm"] <= high
            assert policy[measure]["mean"] == pytest.approx(sum(policy["episodes"][measure]) / 3)
        assert set(policy["fates"]) == {"fossilized", "pruned", "unfinished", "rolled_back"}
    learned, final, big = (report["policies"][name]["episodes"] for name in ("learned", "static_final", "static_big"))
    assert final["parameters"] == learned["parameters"]
    assert big["parameters"] == [1090 + 664 + 2608 + 10336] * 3
    assert big["fossilized"] == [3.0] * 3
    alone = report["policies"]["never_grow"]["episodes"]["training_flops"]
    assert max(alone) < min(big["training_flops"])
    assert (run_dir / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_plays_other_worlds_where_the_heads_fit_and_says_where_they_do_not(run_dir):
    few = ("--episodes", 2, "--workers", 1, "--policies", "learned", "never_grow")
    result = esper_ray("evaluate", run_dir, *few, "--task", "tabular", "--seed", 4)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((run_dir / "evaluation-tabular.json").read_text())
    assert (report["task"], report["seed"], list(report["policies"])) == ("tabular", 4, ["learned", "never_grow"])
    colder = run_dir / "colder.json"
    result = esper_ray(
        "evaluate", run_dir, *few, "--task", "tabular", "--seed", 4, "--temperature", 0.02, "--output", colder
    )
    assert result.returncode == 0, result.stdout + result.stderr
    other = json.loads(colder.read_text())
    played = f"iteration {other['checkpoint']['iteration']}, temperature 0.02"
    assert played in " ".join(result.stdout.split())
    assert (report["temperature"], other["temperature"]) == (0.4, 0.02)
    spent = [one["policies"]["learned"]["episodes"]["training_flops"] for one in (report, other)]
    assert spent[0] != spent[1]
    result = esper_ray("evaluate", run_dir, "--task", "digits_scale")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "cannot play task 'digits_scale': its heads are for the slots r0c0, r0c1, r0c2" in result.stderr
    for wrong, reason in (
        (("--task-arg", "a=b"), "takes no argument a"),
        (("--policies", "static_final"), "add learned to --policies"),
        (("--policies", "magic"), "unknown policy 'magic'"),
        (("--temperature", "0"), "temperature must be a number from 0.01"),
        (("--schedule", "nowhere.json"), "cannot read nowhere.json"),
    ):
        with pytest.raises(UserError, match=reason):
            parse(["evaluate", str(run_dir), *wrong]).run(Console(quiet=True))


@pytest.mark.parametrize(
    ("command", "work", "name"),
    [
        ("evaluate", "measuring.evaluation.evaluate", "report.json"),
        ("search", "measuring.search.halving.search_schedule", "schedule.json"),
        ("replay", "measuring.replay.draw_replay", "picture.png"),
        ("compare", "experiments.compare.compare", ""),
    ],
)
def test_where_nothing_can_be_written_is_said_before_the_work(run_dir, tmp_path, monkeypatch, command, work, name):
    def begin(*_, **__):
        raise InterruptedError("the work begins")

    def run(output):
        runs = [str(run_dir)] * (2 if command == "compare" else 1)
        parse([command, *runs, "--output", str(output)]).run(Console(quiet=True))

    monkeypatch.setattr(f"esper_ray.{work}", begin)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="a file is in the way"):
        run(tmp_path / "file" / "deeper" / name)
    if name:
        with pytest.raises(UserError, match=r"it is a directory|names no picture"):
            run(tmp_path)
    with pytest.raises(InterruptedError):
        run(tmp_path / "new" / "deeper" / name)
    assert (tmp_path / "new" / "deeper").is_dir()
    assert (tmp_path / "file").read_text() == "kept"
    if command == "evaluate":
        with pytest.raises(UserError, match="its picture is put beside it"):
            run(tmp_path / "report.png")
    if command == "replay":
        with pytest.raises(UserError, match="names no picture"):
            run(tmp_path / "picture.txt")
    with read_only(tmp_path / "disk") as disk, pytest.raises(UserError, match=f"cannot write {disk}"):
        run(disk / (name or "."))


def test_a_policy_of_several_tasks_resumes_and_plays_each_of_them(turns_dir, tmp_path):
    result = esper_ray("train", "--run-dir", turns_dir, "--resume", "--iterations", 3)
    assert result.returncode == 0, result.stdout + result.stderr
    out = tmp_path / "out"
    assert esper_ray("export", turns_dir, out).returncode == 0
    few = ["--episodes", 2, "--workers", 1, "--policies", "learned"]
    for place in (turns_dir, out):
        result = esper_ray("evaluate", place, *few)
        assert result.returncode == 0, result.stderr
        for name, task in (("evaluation", "digits_impaired"), ("evaluation-digits", "digits")):
            assert json.loads((place / f"{name}.json").read_text())["task"] == task
        assert esper_ray("replay", place, "--task", "digits").returncode == 0
        assert (place / "replay-learned-0-digits.png").is_file()
    result = esper_ray("evaluate", turns_dir, *few, "--output", tmp_path / "one.json")
    assert result.returncode == 2
    assert "name one with --task" in result.stderr


def test_search_spends_what_a_run_has_trained_for_and_writes_a_schedule_that_evaluate_plays(run_dir):
    for wrong, reason in ((run_dir, "[468] episodes are too few"), ("digits_impaired", "give --host-epochs")):
        with pytest.raises(UserError, match=reason):
            parse(["search", str(wrong)]).run(Console(quiet=True))
    result = esper_ray("search", run_dir, "--workers", 1, "--host-epochs", 320, "--max-epochs", 4)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((run_dir / "best_schedule.json").read_text())
    assert found["host_epochs"] <= 320
    assert found["host_epochs"] == 4 * found["episodes"]
    assert found["described"] in " ".join(result.stdout.split())  # a table breaks long lines
    trace = json.loads((run_dir / "best_schedule-trace.json").read_text())
    assert sum(len(rung["scores"]) * len(rung["host_seeds"]) for rung in trace["rungs"]) == found["episodes"]


def test_five_slots_with_internal_levels_train_and_their_replay_is_drawn(tmp_path):
    result = esper_ray("train", *SMALL, "--task", "digits_scale", "--run-dir", tmp_path / "run")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "grow" in result.stdout
    scalars = tags(tmp_path / "run").Tags()["scalars"]
    assert {"Policy/op_share/GROW_INTERNAL", "Policy/op_share/SHRINK_INTERNAL"} <= set(scalars)
    result = esper_ray("replay", tmp_path / "run")
    assert result.returncode == 0, result.stdout + result.stderr


def test_replay_draws_a_picture(run_dir):
    result = esper_ray("replay", run_dir, "--seed", 1)
    assert result.returncode == 0, result.stdout + result.stderr
    picture = (run_dir / "replay-learned-1.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_an_export_is_evaluated_and_replayed_without_its_run(run_dir, tmp_path):
    out = tmp_path / "handed-on" / "policy"
    result = esper_ray("export", run_dir, out, "--checkpoint", "latest")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "parameters, iteration " in result.stdout
    assert {path.name for path in out.iterdir()} == {"policy.safetensors", "card.json"}
    for command in (["evaluate", out, "--episodes", 2, "--workers", 1], ["replay", out]):
        result = esper_ray(*command)
        assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((out / "evaluation.json").read_text())["checkpoint"]["which"] == "export"
    assert (out / "replay-learned-0.png").read_bytes().startswith(b"\x89PNG")


def test_a_corrupt_export_is_refused_in_one_clear_line(run_dir, tmp_path):
    out = tmp_path / "policy"
    assert esper_ray("export", run_dir, out).returncode == 0
    result = esper_ray("export", run_dir, out)
    assert result.returncode == 2
    assert "is not empty" in result.stderr
    (out / "policy.safetensors").write_bytes(b"\x80\x04corrupt")
    for command in (["evaluate", out], ["replay", out]):
        result = esper_ray(*command)
        assert result.returncode == 2, result.stdout + result.stderr
        assert result.stderr.startswith("esper-ray: error: ")
        assert result.stderr.count("\n") == 1
        assert "SHA-256 differs" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--task", "digit"], "digit"),
        (["train", "--task", "cifar10", "--data-dir", "nowhere"], "nowhere/cifar-10-batches-py"),
        (["train", "--task-args", "samples"], "NAME=VALUE"),
        (["inspect", "digit"], "digits_impaired"),
        (["train", "--max-epochs", "0"], "max_epochs"),
        (["train", "--hosts-per-runner", "0"], "hosts_per_runner"),
        (["train", "--debug", "--hosts-per-runner", "3"], "multiple of"),
        (["train", "--clip", "-1"], "clip"),
        (["train", "--debug", "--algorithm", "impala", "--minibatches", "3"], "hosts_per_runner"),
        (["train", "--debug", "--algorithm", "impala", "--num-learners", "2"], "num_learners = 2"),
        (["train", "--debug", "--algorithm", "impala", "--critic-baseline", "op"], "no meaning with impala"),
        (["train", "--no-such-flag"], "no-such-flag"),
        (["train", "--resume"], "--run-dir"),
        (["train", "--resume", "--run-dir", "nowhere"], "not a run directory"),
        (["evaluate", "nowhere"], "not a run directory"),
        (["replay", "nowhere"], "not a run directory"),
        (["export", "nowhere", "out"], "not a run directory"),
    ],
)
def test_bad_input_ends_with_one_clear_line_and_code_2(arguments, says, tmp_path):
    result = esper_ray(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stdout + result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert not list(tmp_path.iterdir())


def test_resuming_with_other_sizes_is_refused_and_changes_nothing(run_dir):
    before = (run_dir / "config.json").read_text()
    result = esper_ray("train", "--run-dir", run_dir, "--resume", "--iterations", 9, "--hidden-dim", 24)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "hidden_dim from 32 to 24" in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert (run_dir / "config.json").read_text() == before


def test_a_damaged_run_is_refused_and_left_as_it_is(run_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    _, latest = RunDirectory.open(copy).checkpoint("latest")
    state = next(latest.glob("rllib/**/module_state.pkl"))
    content = state.read_bytes()
    state.write_bytes(b"")
    result = esper_ray("train", "--run-dir", copy, "--resume", "--iterations", 9)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "module_state.pkl is not what was written" in result.stderr
    state.write_bytes(content)
    config = json.loads((copy / "config.json").read_text())
    config["network"]["hidden_dim"] = 48
    (copy / "config.json").write_text(json.dumps(config))
    for command in (["evaluate", copy, "--episodes", "2"], ["replay", copy]):
        result = esper_ray(*command)
        assert result.returncode == 2, result.stdout + result.stderr
        assert "does not hold a policy" in result.stderr
        assert "Traceback" not in result.stderr
    config["network"]["colour"] = "red"
    (copy / "config.json").write_text(json.dumps(config))
    result = esper_ray("train", "--run-dir", copy, "--resume")
    assert result.returncode == 2
    assert "network.colour" in result.stderr
    assert json.loads((copy / "config.json").read_text()) == config
