"""Does what is missing of a study."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from esper_ray.config import EnvConfig
from esper_ray.experiments.study.study_directory import StudyDirectory
from esper_ray.experiments.study.study_episodes import StudyPlaying
from esper_ray.keeping.lock import held
from esper_ray.keeping.writing import make_directories
from esper_ray.measuring.controls import INDEPENDENT
from esper_ray.measuring.evaluation_report import clock
from esper_ray.measuring.playing import play_all
from esper_ray.measuring.search.halving import FINAL, SearchSettings, search_schedule
from esper_ray.measuring.search.schedule_files import read_trace, write_schedule, write_trace
from esper_ray.measuring.search.search_report import search_progress, search_table
from esper_ray.terminal import under_way


class StudyInterruptedError(Exception):
    """The study was asked to stop; what is done is kept."""


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
    from esper_ray.learning.training import train  # Ray takes seconds to import, and reading a study does without

    # Each training registers RLlib's name for its environment anew.
    warnings.filterwarnings("ignore", message=".*Overriding environment")
    for training in directory.trainings:
        if training.path.exists():
            training.open()  # what does not fit is found before any work is done
    for evaluation, path in directory.searches().items():
        read_trace(path, directory.study.worlds[evaluation], directory.study.search_settings)
    progress = _Progress(directory)
    console.print(progress.line())
    for evaluation, path in directory.searches().items():
        with progress.measured("searches"):
            _search(directory.study.worlds[evaluation], directory.study.search_settings, path, max(workers, 1), console)
    _play(directory.controls(), workers, progress, console)
    for seed in directory.study.seeds:  # round by round, so that every arm has a first result early
        trainings = [training for training in directory.trainings if training.seed == seed]
        for training in trainings:
            if not training.is_finished():
                console.print(Text(f"training {training.arm}, seed {seed}", "bold"))
                run = training.open()
                with progress.measured("iterations"), held(run.path):
                    train(run, training.config, console)
                if not training.is_finished():
                    raise StudyInterruptedError
                console.print(progress.line())
        _play([p for training in trainings for p in directory.evaluations(training)], workers, progress, console)


def _search(env: EnvConfig, settings: SearchSettings, path: Path, workers: int, console: Console) -> None:
    """Find the best schedule of a world; nothing that the trace knows is played again."""
    make_directories(path.parent)
    settings = dataclasses.replace(settings, workers=workers)
    known = read_trace(path, env, settings)
    if known and known[-1].name == FINAL and path.is_file():
        return
    with search_progress(console) as on_progress:
        result = search_schedule(
            env, settings, on_progress, lambda rungs: write_trace(path, env, settings, rungs), known
        )
    write_schedule(path, env, settings, result)
    console.print(search_table(env, result))


def _play(playings: Iterable[StudyPlaying], workers: int, progress: _Progress, console: Console) -> None:
    waiting = [playing for playing in playings if not playing.is_finished()]
    if not waiting:
        return
    with progress.measured("evaluations"), under_way(console, "held-out hosts train"):
        for playing, played in play_all(waiting, workers):
            playing.keep(played)
            console.print(f"played {playing.evaluation}: {playing.path.stem}")
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
