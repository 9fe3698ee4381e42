"""A run that is stopped, killed or rolled back goes on as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from esper_ray.errors import UserError
from esper_ray.keeping.run_directory import POLICY_FILE, RunDirectory
from esper_ray.learning.impala import EsperImpalaConfig
from esper_ray.learning.ppo import EsperPPOConfig
from esper_ray.learning.training import train
from esper_ray.presets import DEBUG
from tests.esper_ray.learning.test_impala import config_of
from tests.esper_ray.learning.test_learner import EPISODE, MODULE

torch.set_num_threads(1)

EPOCHS, HOSTS = 6, 2


def train_to(iterations, path):
    config = replace(
        DEBUG,
        run=replace(
            DEBUG.run,
            iterations=iterations,
            hosts_per_runner=HOSTS,
            seed=3,
            replay_interval=iterations,
            first_iterations=3,
            first_task_args={"variants": "narrow_first"},
        ),
        env=replace(DEBUG.env, task="digits_mixed", max_epochs=EPOCHS),
    )
    run = RunDirectory.open(path) if path.exists() else RunDirectory.create(path, config)
    train(run, config, Console(quiet=True))
    return run


def scalars(path):
    """All of TensorBoard's curves but times: tag → [(step, value)]."""
    events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("Speed/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Four iterations at once; two; the two and two more; the latter again, as after a kill before any checkpoint."""
    root = tmp_path_factory.mktemp("runs")
    train_to(4, root / "uninterrupted")
    train_to(2, root / "stopped")
    shutil.copytree(root / "stopped", root / "resumed")
    train_to(4, root / "resumed")
    shutil.copytree(root / "resumed", root / "killed")
    shutil.rmtree(root / "killed" / "checkpoints")
    shutil.copytree(root / "stopped" / "checkpoints", root / "killed" / "checkpoints")
    train_to(4, root / "killed")
    return root


def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(runs):
    expected = scalars(runs / "uninterrupted")
    assert len(expected) > 50
    # The killed run wrote its last curves twice, of which the first are hidden.
    for name in ("resumed", "killed"):
        assert scalars(runs / name) == expected
    latest = [RunDirectory.open(runs / name).checkpoint("latest") for name in ("uninterrupted", "resumed", "killed")]
    assert [checkpoint.iteration for checkpoint, _ in latest] == [4, 4, 4]
    assert len({checkpoint.score for checkpoint, _ in latest}) == 1
    assert len({(path / POLICY_FILE).read_bytes() for _, path in latest}) == 1


def test_steps_go_on_without_gap_or_overlap_and_no_iteration_plays_what_another_played(runs):
    curves = scalars(runs / "resumed")
    assert [step for step, _ in curves["World/score"]] == [(1 + done) * HOSTS * EPOCHS for done in range(4)]
    played = [curves[tag] for tag in sorted(curves) if tag.startswith(("Policy/op_share", "Policy/decided_share"))]
    assert len({tuple(value for _, value in shares) for shares in zip(*played, strict=True)}) == 4
    assert len({value for _, value in curves["World/score"]}) == 4


# ---------------------------------------------------------------------- rollback
@pytest.fixture(scope="module")
def ray_session():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def numbers(state):
    """Every array of a nested state by its path."""
    if isinstance(state, dict):
        return {f"{name}/{inner}": value for name, part in state.items() for inner, value in numbers(part).items()}
    return {"": np.asarray(state)} if isinstance(state, np.ndarray | torch.Tensor) else {}


def equal(left, right):
    left, right = numbers(left), numbers(right)
    assert left
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def learnt(algorithm):
    """A copy of weights, return scale and optimiser."""
    state = algorithm.learner_group.get_state()["learner"]
    return {
        name: {key: value.copy() for key, value in numbers(state[name]).items()} for name in ("rl_module", "optimizer")
    }


@pytest.mark.parametrize(
    ("algorithm_config", "runners"), [(EsperPPOConfig, 0), (EsperPPOConfig, 1), (EsperImpalaConfig, 1)]
)
def test_a_rollback_in_place_leaves_no_runner_with_newer_weights(algorithm_config, runners, ray_session, tmp_path):
    algorithm = config_of(algorithm_config, num_env_runners=runners, fresh_rollouts=True).build_algo()

    def held():
        each = algorithm.env_runner_group.foreach_env_runner(
            lambda runner: (runner.get_state()["rl_module"], runner._weights_seq_no), local_env_runner=runners == 0
        )
        assert len(each) == 1
        return each[0]

    algorithm.train()
    algorithm.save_to_path(str(tmp_path / "state"))
    then = learnt(algorithm)
    algorithm.train()
    later = learnt(algorithm)
    algorithm.train()
    _, newest = held()
    algorithm.restore_from_path(str(tmp_path / "state"))
    assert algorithm.iteration == 1
    assert equal(learnt(algorithm), then)
    weights, number = held()
    assert number > newest
    assert equal({MODULE: weights}, algorithm.learner_group.get_weights())
    result = algorithm.train()
    assert result["training_iteration"] == 2
    if algorithm_config is EsperPPOConfig:
        assert result["num_env_steps_sampled_lifetime"] == 2 * 4 * EPISODE
        assert equal(learnt(algorithm), later)
    algorithm.stop()


# ---------------------------------------------------------------------- lost runners
@pytest.mark.parametrize("algorithm_config", [EsperPPOConfig, EsperImpalaConfig])
def test_a_run_without_runners_ends_with_one_clear_line(algorithm_config, ray_session, monkeypatch):
    monkeypatch.setattr("esper_ray.learning.algorithm.RESTART_SECONDS", 2.0)
    config = config_of(algorithm_config, num_env_runners=1)
    config.fault_tolerance(max_num_env_runner_restarts=0)
    algorithm = config.build_algo()
    algorithm.train()
    kill_runners(algorithm)
    with pytest.raises(UserError, match="all 1 env runners are dead") as raised:
        algorithm.train()
    assert "\n" not in str(raised.value)
    algorithm.stop()


def test_an_iteration_whose_only_runner_died_is_done_by_its_successor(ray_session):
    algorithm = config_of(EsperPPOConfig, num_env_runners=1).build_algo()
    algorithm.train()
    kill_runners(algorithm)
    result = algorithm.train()
    assert result["num_env_steps_sampled_lifetime"] == 2 * 4 * EPISODE
    assert result["fault_tolerance"]["num_remote_worker_restarts"] == 1
    algorithm.stop()


def kill_runners(algorithm):
    algorithm.env_runner_group.foreach_env_runner(
        lambda runner: os.kill(os.getpid(), signal.SIGKILL), local_env_runner=False
    )


# ---------------------------------------------------------------------- SIGKILL
def command(*arguments):
    return [sys.executable, "-m", "esper_ray", "train", *map(str, arguments)]


def descendants(pid):
    """Processes below one, with their start times, which tell a process from a later one of the same number."""
    found, parents = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        parents[int(stat.parent.name)] = (int(fields[1]), fields[19])
    todo = [pid]
    while todo:
        parent = todo.pop()
        for child, (above, started) in parents.items():
            if above == parent:
                found[child] = started
                todo.append(child)
    return found


def alive(processes):
    """Those of :func:`descendants` that still run."""
    left = []
    for pid, started in processes.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[19] == started and fields[0] != "Z":
            left.append(pid)
    return left


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_run_killed_in_mid_iteration_resumes_and_leaves_no_process_behind(tmp_path):
    path = tmp_path / "run"
    sizes = ["--debug", "--max-epochs", 12, "--hosts-per-runner", 2, "--num-env-runners", 1, "--iterations", 3]
    process = subprocess.Popen(
        command(*sizes, "--replay-interval", 9, "--run-dir", path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    line = next((line for line in process.stdout if "1/3" in line), None)
    assert line is not None, "ended before its first iteration"
    workers = descendants(process.pid)
    assert len(workers) >= 3  # Ray's own, and the runner
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    killed = json.loads((path / "checkpoints" / "index.json").read_text())["latest"]["iteration"]
    assert killed in (1, 2)  # whatever had time to end
    deadline = time.monotonic() + 120
    while alive(workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive(workers)
    result = subprocess.run(
        command("--run-dir", path, "--resume"), capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"resumed after iteration {killed}" in result.stdout
    found, checkpoint = RunDirectory.open(path).checkpoint("latest")
    assert found.iteration == 3
    assert (checkpoint / POLICY_FILE).is_file()
    kept = {entry["name"] for entry in json.loads((path / "checkpoints" / "index.json").read_text()).values()}
    assert {entry.name for entry in (path / "checkpoints").iterdir()} == {"index.json", *kept}
    assert [step for step, _ in scalars(path)["World/score"]] == [24, 48, 72]
