"""Trains what is missing of a tuning, on Ray Tune."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from rich.console import Console

from esper_ray.cluster import connected, demand
from esper_ray.config import RunConfig
from esper_ray.errors import UserError
from esper_ray.experiments.tuning.tuning_directory import Result, TuningDirectory, last_results
from esper_ray.experiments.tuning.tuning_file import Tuning
from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.learning.training import build, trained_iterations
from esper_ray.process import settle
from esper_ray.terminal import silent, under_way

RUN, ITERATION, SCORE, FAILURE = "run", "iteration", "score", "failure"

RESTARTS = 3
"""Times that a trial goes on from its latest checkpoint after its process died, with a node for instance."""

SETTINGS = {
    # Each run writes its own TensorBoard files, and the results are recorded here: Ray's would be second copies.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C is to end a tuning at once; whatever it interrupts goes on from the record.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the other one prints boxes even where it is told to be silent
}


class RecordedHalving(FIFOScheduler):
    """Ray's ASHA, told first what is recorded, which records what it is told from then on.

    Ray's own restore of an experiment forgets what its schedulers knew.

    Args:
        directory: Whose tuning, and where results are recorded.
        recorded: In the order of the decisions.
        console: Where a line is printed per result.
    """

    def __init__(self, directory: TuningDirectory, recorded: list[Result], console: Console) -> None:
        super().__init__()
        self._directory, self._console = directory, console
        self._iterations = directory.tuning.base.run.iterations
        self._asha = asha(directory.tuning)
        self._last: dict[str, Result] = {}
        self.failures: dict[str, str] = {}
        for result in recorded:
            self._stops(result.trial, result.iteration, result.score)
            self._last[result.trial] = result

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        """Let the trial go on, or stop it."""
        name, iteration, score = name_of(trial), int(result[ITERATION]), float(result[SCORE])
        if FAILURE in result:
            self._failed(name, result[FAILURE])
            return TrialScheduler.STOP
        if name in self._last and iteration <= self._last[name].iteration:
            return TrialScheduler.CONTINUE  # it was let go on then
        stops = self._stops(name, iteration, score)
        self._last[name] = Result(name, iteration, score, stops and iteration < self._iterations)
        self._directory.append(self._last[name])
        end = ", stopped" if self._last[name].stopped else ""
        self._console.print(f"trial {name}: {iteration}/{self._iterations} score {score:.3f}{end}")
        return TrialScheduler.STOP if stops else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: RayTrial) -> None:
        """A trial's process died too often."""
        lines = Path(trial.error_file).read_text().split("\n") if trial.error_file else []
        self._failed(name_of(trial), next((line for line in reversed(lines) if line.strip()), "its process died"))

    def _failed(self, name: str, reason: str) -> None:
        self.failures[name] = reason
        self._console.print(f"trial {name} failed: {reason}")

    def _stops(self, name: str, iteration: int, score: float) -> bool:
        known = SimpleNamespace(trial_id=name)  # Ray's own ids are others each time
        if name not in self._last:
            self._asha.on_trial_add(None, known)
        decision = self._asha.on_trial_result(None, known, {ITERATION: iteration, SCORE: score})
        return bool(decision == TrialScheduler.STOP)


def asha(tuning: Tuning) -> ASHAScheduler:
    """The scheduler as the tuning wants it."""
    return ASHAScheduler(
        time_attr=ITERATION,
        metric=SCORE,
        mode="max",
        max_t=tuning.base.run.iterations,
        grace_period=tuning.grace_iterations,
        reduction_factor=tuning.reduction_factor,
    )


def name_of(trial: RayTrial) -> str:
    """Under which this package knows one of Ray's trials."""
    return Path(trial.config[RUN]).name


def run_tuning(directory: TuningDirectory, address: str | None, console: Console) -> dict[str, str]:
    """Train whatever of the tuning is not done yet.

    Args:
        directory: Where everything goes.
        address: Ray cluster (see :func:`esper_ray.cluster.connected`).
        console: Where progress is printed.

    Returns:
        Why trials failed, by name.

    Raises:
        UserError: the directory holds trials with other settings, or the cluster is not there or too small.
        KeyboardInterrupt: by Ctrl-C; iterations under way are lost.
    """
    recorded = directory.open()
    last, tuning = last_results(recorded), directory.tuning
    for trial in directory.trials:
        RunDirectory.begun(trial.path, trial.config)
    waiting = [str(trial.path) for trial in directory.trials if not trial.is_over(last.get(trial.name))]
    if not waiting:
        return {}
    console.print(f"{len(waiting)} of {tuning.samples} trials to train, {len(recorded)} iterations are done")
    os.environ.update(SETTINGS)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial is told below
    scheduler = RecordedHalving(directory, recorded, console)
    at_once = min(tuning.concurrent_trials, len(waiting))
    with (
        connected(tuning.base.run, address, console, at_once),
        tempfile.TemporaryDirectory(prefix="esper-tuning-") as scratch,
        under_way(console, "trials train"),
    ):
        tune.run(
            train_trial,
            config={RUN: tune.grid_search(waiting)},
            resources_per_trial=places(tuning.base.run),
            max_concurrent_trials=at_once,
            scheduler=scheduler,
            max_failures=RESTARTS,
            raise_on_failed_trial=False,
            storage_path=scratch,
            verbose=0,
        )
    return scheduler.failures


def places(run: RunConfig) -> tune.PlacementGroupFactory:
    """Where a trial's processes live: its own beside this one, as the driver of a run, the others where there is room.

    Files are thus written on this machine, and no other one needs to see them.
    """
    here = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    name = next(name for name in here["Resources"] if name.startswith("node:") and "__" not in name)
    own_gpu = 0.0 if run.num_learners else float(run.gpus_per_learner)
    return tune.PlacementGroupFactory([{name: 0.001, "GPU": own_gpu}, *demand(run)])


def train_trial(settings: dict[str, Any]) -> None:
    """Train a trial, in a process of its own, and tell every iteration's score; Ray Tune ends it where it is told to.

    Args:
        settings: ``run`` is the path of its run directory.
    """
    settle()
    run = RunDirectory(Path(settings[RUN]))
    config, quiet = run.config(), silent()
    try:
        if latest := run.index().get("latest"):  # nobody may have been told of it before a kill
            tune.report({ITERATION: latest.iteration, SCORE: latest.average})
        algorithm = build(run, config, quiet)
        for saved in trained_iterations(algorithm, run, config, quiet):
            tune.report({ITERATION: saved.iteration, SCORE: saved.average})
    except UserError as error:  # would come back at every restart
        tune.report({ITERATION: 0, SCORE: math.nan, FAILURE: str(error)})
