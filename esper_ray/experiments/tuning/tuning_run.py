"""Trains what is missing of a tuning, on Ray Tune."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from rich.console import Console

from esper_ray.cluster import connected, demand
from esper_ray.config import RunConfig
from esper_ray.errors import UserError
from esper_ray.experiments.tuning.halving_rule import is_stopped
from esper_ray.experiments.tuning.tuning_directory import Result, TuningDirectory, last_results
from esper_ray.keeping.lock import held
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
    """Stops trials by what is recorded, and records what it is told.

    Args:
        directory: Whose tuning, and where results are recorded.
        recorded: In the order of the decisions.
        console: Where a line is printed per result.

    Attributes:
        failures: Why trials failed, by name.
    """

    def __init__(self, directory: TuningDirectory, recorded: list[Result], console: Console) -> None:
        super().__init__()
        self._directory, self._recorded, self._console = directory, list(recorded), console
        self._last = last_results(recorded)
        self.failures: dict[str, str] = {}

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        """Let the trial go on, or stop it."""
        name, iteration, score = name_of(trial), int(result[ITERATION]), float(result[SCORE])
        if FAILURE in result:
            self._failed(name, result[FAILURE])
            return TrialScheduler.STOP
        if name in self._last and iteration <= self._last[name].iteration:
            return TrialScheduler.CONTINUE  # it was let go on then
        tuning, iterations = self._directory.tuning, self._directory.tuning.base.run.iterations
        told = Result(name, iteration, score, is_stopped(tuning, self._recorded, iteration, score))
        self._directory.append(told)
        self._recorded.append(told)
        self._last[name] = told
        end = ", stopped" if told.stopped else ""
        self._console.print(f"trial {name}: {iteration}/{iterations} score {score:.3f}{end}")
        return TrialScheduler.STOP if told.stopped or iteration >= iterations else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: RayTrial) -> None:
        """A trial's process died too often."""
        lines = Path(trial.error_file).read_text().split("\n") if trial.error_file else []
        self._failed(name_of(trial), next((line for line in reversed(lines) if line.strip()), "its process died"))

    def _failed(self, name: str, reason: str) -> None:
        self.failures[name] = reason
        self._console.print(f"trial {name} failed: {reason}")


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
    run, quiet = RunDirectory(Path(settings[RUN])), silent()
    try:
        with held(run.path):
            config = run.config()
            if latest := run.index().get("latest"):  # nobody may have been told of it before a kill
                tune.report({ITERATION: latest.iteration, SCORE: latest.average})
            algorithm = build(run, config, quiet)
            for saved in trained_iterations(algorithm, run, config, quiet):
                tune.report({ITERATION: saved.iteration, SCORE: saved.average})
    except UserError as error:  # would come back at every restart
        tune.report({ITERATION: 0, SCORE: math.nan, FAILURE: str(error)})
