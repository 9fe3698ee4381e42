"""Makes the units that are missing."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from esper_ray.config import EnvConfig
from esper_ray.errors import UserError
from esper_ray.experiments.results.code_hash import changed_since
from esper_ray.experiments.results.kept_units import ControlFigures, Figures, KeptUnits, Made, SearchFigures
from esper_ray.experiments.results.plan import Plan, Unit
from esper_ray.experiments.study.study_directory import StudyDirectory
from esper_ray.experiments.study.study_parts import find_schedule, finish_training, play_missing
from esper_ray.experiments.study.study_results import control_results, training_results
from esper_ray.keeping.revision import git_commit
from esper_ray.keeping.writing import make_directories, replace_text
from esper_ray.measuring.controls import TRAINING_SCHEDULE
from esper_ray.measuring.episodes import held_out_seeds
from esper_ray.measuring.search.host_pool import CANDIDATES, HostPool, train_pool
from esper_ray.measuring.search.schedule_files import read_schedule
from esper_ray.process import host_processes, processor
from esper_ray.reading import read_json


class UnitMaker:
    """Makes units one by one, and keeps their figures.

    Args:
        plan: Whose units.
        kept: Where figures are kept.
        runs: Directory for trainings under way and episodes; those of other code are never gone on with.
        workers: Processes that share what can be shared.
        console: Where progress is printed.
    """

    def __init__(self, plan: Plan, kept: KeptUnits, runs: Path, workers: int, console: Console) -> None:
        self._plan, self._kept, self._runs, self._workers, self._console = plan, kept, runs, workers, console

    def elsewhere(self, runs: Path) -> UnitMaker:
        """One that begins anew in another directory."""
        return UnitMaker(self._plan, self._kept, runs, self._workers, self._console)

    def missing(self) -> list[Unit]:
        """Units that were not made by this code, in order."""
        return [unit for unit in self._plan.units() if not self.is_made(unit)]

    def is_made(self, unit: Unit) -> bool:
        """Whether a unit's figures are there, made by the code and the study file as they are now."""
        made = self._kept.made(unit)
        return made is not None and made.code == self._plan.hashes[unit.study]

    def make(self, unit: Unit) -> None:
        """Make a unit, going on with what there is of it, and keep its figures.

        Raises:
            StudyInterruptedError: by Ctrl-C during a training, after its iteration was saved.
            UserError: the code was changed meanwhile, so that nobody can say whose the figures are.
        """
        code, started, began = self._plan.hashes[unit.study], time.perf_counter(), time.time()
        try:
            figures = self.figures(unit)
        finally:
            self._check_unchanged(unit, code, began)
        seconds = time.perf_counter() - started
        now = datetime.now(UTC).isoformat(timespec="seconds")
        command = f"esper-ray results --unit {unit}"
        made = Made(
            code=code,
            commit=git_commit(),
            date=now,
            command=command,
            processor=processor(),
            seconds=round(seconds, 1),
        )
        self._kept.keep(unit, made, figures)

    def _check_unchanged(self, unit: Unit, code: str, began: float) -> None:
        """Put aside what was made while the code was changed: nobody can say whose it is, nor go on with it."""
        changed = [str(path) for path in changed_since(began)]
        if Plan(self._plan.path).hashes[unit.study] == code and not changed:
            return
        directory = self._directory(unit.study).path.parent
        if directory.is_dir():
            directory.rename(directory.with_name(f"{directory.name}-changed-{time.time_ns()}"))
        what = ", ".join(changed) or "the study"
        raise UserError(f"{unit} is not kept, for {what} was changed while it was made: make it again")

    def figures(self, unit: Unit) -> Figures:
        """Of a unit; nothing is kept."""
        makers: dict[str, Callable[[Unit, StudyDirectory], Figures]] = {
            "controls": self._controls,
            "training": self._training,
            "search": self._search,
        }
        return makers[unit.kind](unit, self._directory(unit.study))

    def _directory(self, study: str) -> StudyDirectory:
        """Of a study's trainings and episodes; beside it is the one of the study that trains, of the same code."""
        trainer = self._plan.studies[study].trained_by or study
        of_code = self._plan.hashes[trainer][:16]
        return StudyDirectory(self._runs / of_code / study, self._plan.studies[study])

    def _controls(self, unit: Unit, directory: StudyDirectory) -> ControlFigures:
        study, schedule = directory.study, directory.searches().get(unit.of)
        if TRAINING_SCHEDULE in study.controls:
            self._restore_training_schedule(directory)
        if schedule is not None:
            find_schedule(study.worlds[unit.of], study.search_settings, schedule, self._workers, self._console)
        playings = [playing for playing in directory.controls() if playing.evaluation == unit.of]
        play_missing(playings, self._workers, self._console)
        found = None if schedule is None else read_schedule(schedule).to_json()
        return ControlFigures(control_results(playings, unit.of), found)

    def _restore_training_schedule(self, directory: StudyDirectory) -> None:
        """Put the schedule that another study has found where it would lie, had it been found here."""
        trainer, world = directory.study.trained_by, directory.study.training_evaluation()
        assert trainer is not None, "only a study that is trained by another one plays that one's schedule"
        before = Unit(trainer, "controls", world)
        if not self.is_made(before):
            raise UserError(f"the schedule of another study is played: first make {before}")
        path = directory.trainer.schedule_path(world)
        if not path.is_file():
            make_directories(path.parent)
            replace_text(path, json.dumps({"schedule": self._kept.figures(before).schedule}) + "\n")

    def _training(self, unit: Unit, directory: StudyDirectory) -> Figures:
        (training,) = (each for each in directory.trainings if (each.arm, each.seed) == (unit.of, unit.seed))
        finish_training(training, self._console)
        playings = directory.evaluations(training)
        play_missing(playings, self._workers, self._console)
        results = training_results(training, playings)
        self._check_weights(unit, directory, results.weights_sha256)
        return results

    def _check_weights(self, unit: Unit, directory: StudyDirectory, weights: str) -> None:
        """Refuse to play others than those that the study which trains has on its table."""
        trainer = directory.study.trained_by
        if trainer is None:
            return
        first = replace(unit, study=trainer)
        if self.is_made(first) and self._kept.figures(first).weights_sha256 != weights:
            raise UserError(f"{unit} is not kept: trained again, its policy is another one than that of {first}")

    def _search(self, unit: Unit, directory: StudyDirectory) -> SearchFigures:
        study = directory.study
        env = study.worlds[unit.of]
        seeds = held_out_seeds(study.evaluation_seed, study.episodes)[: study.host_search]
        of_code = self._plan.hashes[unit.study][:16]  # the directory's own is that of the study that trains
        files = {seed: directory.path / "pools" / of_code / unit.of / f"{seed}.json" for seed in seeds}
        missing = [seed for seed in seeds if not files[seed].is_file()]
        for seed, pool in track(
            _pools(env, missing, self._workers), f"{unit}: hosts", len(missing), console=self._console, transient=True
        ):
            make_directories(files[seed].parent)
            replace_text(files[seed], json.dumps(pool))
        pools = [HostPool.of_texts(read_json(files[seed])) for seed in seeds]
        return SearchFigures(HostPool.joined(pools).texts())


def _pools(env: EnvConfig, seeds: Sequence[int], workers: int) -> Iterator[tuple[int, dict[str, str]]]:
    """Train all candidates of hosts, each host's as one population in one process; as they come."""
    if not workers:
        yield from ((seed, train_pool(env, seed, CANDIDATES).texts()) for seed in seeds)
        return
    with host_processes(workers) as processes:
        jobs = {processes.submit(train_pool, env, seed, CANDIDATES): seed for seed in seeds}
        yield from ((jobs[job], job.result().texts()) for job in as_completed(jobs))


def differing(one: Figures, other: Figures) -> list[str]:
    """Where figures of the same unit differ, times left out: they depend on the machine."""
    first, second = (_without_times(dataclasses.asdict(figures)) for figures in (one, other))
    return [name for name in first if first[name] != second[name]]


def mean_scores(figures: Figures) -> dict[str, float]:
    """Mean committed scores of a unit's figures, by world and policy; a search's has none."""
    if isinstance(figures, SearchFigures):
        return {}
    by_world = {"": figures.played} if isinstance(figures, ControlFigures) else figures.played
    return {
        f"{world} {name}".strip(): float(np.mean(played.measures["score"]))
        for world, by_name in by_world.items()
        for name, played in by_name.items()
    }


def _without_times(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {name: _without_times(value) for name, value in plain.items() if name != "seconds"}
    return plain
