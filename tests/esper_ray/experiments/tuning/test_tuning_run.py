"""A tuning does everything once, whatever interrupts it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from esper_ray.experiments.tuning.tuning_directory import TuningDirectory
from esper_ray.experiments.tuning.tuning_file import Tuning
from esper_ray.keeping.run_directory import RunDirectory
from tests.esper_ray.experiments.tuning.small import SMALL, written

pytestmark = pytest.mark.cluster

WAITS, GROWS = {"WAIT": 9.0}, {"WAIT": -2.0, "GERMINATE": 9.0, "ADVANCE": 9.0, "FOSSILIZE": 9.0, "PRUNE": -9.0}
SETTINGS = SMALL["settings"] | {"max_epochs": 20}  # long enough for a seed to be kept
KILLED_AFTER = 5  # iterations: the first trial has all of its four
STEPS = SETTINGS["max_epochs"] * SETTINGS["hosts_per_runner"]


def command(file, output):
    return [sys.executable, "-m", "esper_ray", "tune", str(file), "--output", str(output)]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Of three trials, the third like the first: whichever of the two kinds is worse, its last one is stopped early."""
    file = written(
        tmp_path_factory.mktemp("tuning"), settings=SETTINGS, space={"op_bias": {"choice": [WAITS, GROWS]}}, seed=1
    )
    first, second, third = (drawn["op_bias"] for drawn in Tuning.read(file).draws)
    assert first == third != second
    return file


def recorded(file, output):
    return TuningDirectory(output, Tuning.read(file)).open()


def times_trained(run):
    """By iteration, how often it was written to TensorBoard, also where that is hidden."""
    steps = Counter()
    for path in run.path.glob("events*"):
        for event in EventFileLoader(str(path)).Load():
            steps.update(event.step // STEPS for value in event.summary.value if value.tag == "World/score")
    return steps


@pytest.fixture(scope="module")
def uninterrupted(file):
    output = file.parent / "uninterrupted"
    result = subprocess.run(command(file, output), capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "stopped" in result.stdout
    assert "best.yaml" in result.stdout
    return output


def test_trials_are_runs_and_the_worse_ones_are_stopped_where_the_rule_says(file, uninterrupted):
    results = recorded(file, uninterrupted)
    assert any(result.stopped for result in results)
    rungs = {1: [], 2: []}
    for result in results:
        if result.iteration in rungs:
            before = sorted(rungs[result.iteration])
            median = (before[(len(before) - 1) // 2] + before[len(before) // 2]) / 2 if before else -float("inf")
            assert result.stopped == (result.score < median)
            rungs[result.iteration].append(result.score)
    for trial in TuningDirectory(uninterrupted, Tuning.read(file)).trials:
        run = RunDirectory.open(trial.path)
        iterations = [result.iteration for result in results if result.trial == trial.name]
        assert iterations == list(range(1, run.checkpoint("latest")[0].iteration + 1))
        assert times_trained(run) == Counter(iterations)
    report = json.loads((uninterrupted / "tune.json").read_text())
    assert {trial["state"] for trial in report["trials"]} == {"finished", "stopped"}


def test_a_killed_tuning_goes_on_to_the_same_end_and_trains_nothing_twice(file, uninterrupted, tmp_path):
    output = tmp_path / "killed"
    process = subprocess.Popen(command(file, output), stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    record = output / "results.jsonl"
    while process.poll() is None and (not record.is_file() or record.read_text().count("\n") <= KILLED_AFTER):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(5)  # until Ray has ended the trial's process too
    before = recorded(file, output)
    assert len(before) >= KILLED_AFTER
    runs = [RunDirectory(trial.path) for trial in TuningDirectory(output, Tuning.read(file)).trials]
    saved = [run.index()["latest"].iteration if run.index() else 0 for run in runs]
    result = subprocess.run(command(file, output), capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert recorded(file, output)[: len(before)] == before
    assert recorded(file, output) == recorded(file, uninterrupted)
    for run, done in zip(runs, saved, strict=True):
        trained = times_trained(run)
        assert all(trained[iteration] == 1 for iteration in range(1, done + 1))
    again = subprocess.run(command(file, output), capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert "to train" not in again.stdout
    assert recorded(file, output) == recorded(file, uninterrupted)
