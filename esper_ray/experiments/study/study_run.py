"""Does what is missing of a study."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from esper_ray.experiments.study.study_directory import StudyDirectory
from esper_ray.experiments.study.study_episodes import StudyPlaying
from esper_ray.experiments.study.study_parts import find_schedule, finish_training, play_missing
from esper_ray.measuring.controls import INDEPENDENT
from esper_ray.measuring.evaluation_report import clock
from esper_ray.measuring.search.schedule_files import read_trace


def run_study(directory: StudyDirectory, workers: int, console: Console) -> None:
    """Do whatever of the study is not done yet.

    Args:
        directory: Where everything goes.
        workers: Processes that share the evaluations; 0 plays them in this one.
        console: Where progress is printed.

    Raises:
        StudyInterruptedError: by Ctrl-C during a training, after its iteration was saved.
        KeyboardInterrupt: by Ctrl-C at any other time.
        UserError: the directory holds runs or searches with other settings.
    """
    for training in directory.trainings:
        if training.path.exists():
            training.open()  # what does not fit is found before any work is done
    for evaluation, path in directory.searches().items():
        read_trace(path, directory.study.worlds[evaluation], directory.study.search_settings)
    progress = _Progress(directory)
    console.print(progress.line())
    for evaluation, path in directory.searches().items():
        with progress.measured("searches"):
            find_schedule(directory.study.worlds[evaluation], directory.study.search_settings, path, workers, console)
    _play(directory.controls(), workers, progress, console)
    for seed in directory.study.seeds:  # round by round, so that every arm has a first result early
        trainings = [training for training in directory.trainings if training.seed == seed]
        for training in trainings:
            if not training.is_finished():
                with progress.measured("iterations"):
                    finish_training(training, console)
                console.print(progress.line())
        _play([p for training in trainings for p in directory.evaluations(training)], workers, progress, console)


def _play(playings: Sequence[StudyPlaying], workers: int, progress: _Progress, console: Console) -> None:
    if all(playing.is_finished() for playing in playings):
        return
    with progress.measured("evaluations"):
        play_missing(playings, workers, console)
    console.print(progress.line())


class _Progress:
    """What is done of a study, and how long the rest may take at the speed of what this session did.

    Args:
        directory: Of the study.
    """

    def __init__(self, directory: StudyDirectory) -> None:
        self._directory = directory
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._units: dict[str, int] = {}

    @contextmanager
    def measured(self, kind: str) -> Iterator[None]:
        """Measure work of one kind: searches, iterations or evaluations."""
        began, before = time.perf_counter(), self._counts()[kind][0]
        yield
        self._seconds[kind] = self._seconds.get(kind, 0.0) + time.perf_counter() - began
        self._units[kind] = self._units.get(kind, 0) + self._counts()[kind][0] - before

    def line(self) -> str:
        """One line for people."""
        counts = self._counts()
        parts = [f"{done:,}/{total:,} {kind}" for kind, (done, total) in counts.items() if total]
        left = {kind: total - done for kind, (done, total) in counts.items() if total > done}
        if all(self._units.get(kind) for kind in left):
            seconds = sum(self._seconds[kind] / self._units[kind] * units for kind, units in left.items())
            parts.append(f"about {clock(seconds)} left")
        else:
            parts.append("time left known once each kind of work has begun")
        return f"{', '.join(parts)}, {clock(time.perf_counter() - self._began)} spent"

    def _counts(self) -> dict[str, tuple[int, int]]:
        """Done and to be done in all."""
        directory, study = self._directory, self._directory.study
        searches, trainings = directory.searches(), directory.trainings
        iterations = [(training.iterations_done, training.config.run.iterations) for training in trainings]
        finished = [training for training in trainings if training.is_finished()]
        playings = directory.controls() + [p for training in finished for p in directory.evaluations(training)]
        independent = sum(control in INDEPENDENT for control in study.controls)
        return {
            "searches": (sum(path.is_file() for path in searches.values()), len(searches)),
            "iterations": (sum(min(pair) for pair in iterations), sum(total for _, total in iterations)),
            "evaluations": (
                sum(playing.is_finished() for playing in playings),
                len(study.worlds) * (independent + len(trainings)),
            ),
        }
