"""The three kinds of work that a study consists of; what of each is done is not done again."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from esper_ray.config import EnvConfig
from esper_ray.experiments.study.study_directory import Training
from esper_ray.experiments.study.study_episodes import StudyPlaying
from esper_ray.keeping.lock import held
from esper_ray.keeping.writing import make_directories
from esper_ray.measuring.playing import play_all
from esper_ray.measuring.search.halving import FINAL, SearchSettings, search_schedule
from esper_ray.measuring.search.schedule_files import read_trace, write_schedule, write_trace
from esper_ray.measuring.search.search_report import search_progress, search_table
from esper_ray.terminal import under_way


class StudyInterruptedError(Exception):
    """The study was asked to stop; what is done is kept."""


def finish_training(training: Training, console: Console) -> None:
    """Train to the end, from the latest checkpoint on if there is one.

    Raises:
        StudyInterruptedError: by Ctrl-C, after the iteration was saved.
        UserError: the run was begun with other settings.
    """
    from esper_ray.learning.training import train  # Ray takes seconds to import, and reading a study does without

    if training.is_finished():
        return
    # Each training registers RLlib's name for its environment anew.
    warnings.filterwarnings("ignore", message=".*Overriding environment")
    console.print(Text(f"training {training.arm}, seed {training.seed}", "bold"))
    run = training.open()
    with held(run.path):
        train(run, training.config, console)
    if not training.is_finished():
        raise StudyInterruptedError


def find_schedule(env: EnvConfig, settings: SearchSettings, path: Path, workers: int, console: Console) -> None:
    """Find the best schedule of a world; nothing that the trace knows is played again.

    Raises:
        UserError: the trace is of another search.
    """
    make_directories(path.parent)
    settings = dataclasses.replace(settings, workers=max(workers, 1))
    known = read_trace(path, env, settings)
    if known and known[-1].name == FINAL and path.is_file():
        return
    with search_progress(console) as on_progress:
        result = search_schedule(
            env, settings, on_progress, lambda rungs: write_trace(path, env, settings, rungs), known
        )
    write_schedule(path, env, settings, result)
    console.print(search_table(env, result))


def play_missing(playings: Iterable[StudyPlaying], workers: int, console: Console) -> None:
    """Play what has not been played.

    Args:
        playings: What is wanted.
        workers: Processes that share them; 0 plays in this one.
        console: Where progress is printed.
    """
    waiting = [playing for playing in playings if not playing.is_finished()]
    if not waiting:
        return
    with under_way(console, "held-out hosts train"):
        for playing, played in play_all(waiting, workers):
            playing.keep(played)
            console.print(f"played {playing.evaluation}: {playing.path.stem}")
