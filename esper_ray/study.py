"""Studies: several configurations, each trained with several seeds, compared on held-out hosts (docs/studies.md).

Whatever is finished stays: trainings are run directories, which go on from their latest checkpoint, and every
policy's episodes are a file. A study that is started again does only what is missing.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from rich.console import Console

from esper_ray.behaviour import BehaviourRecorder
from esper_ray.config import PRESETS, EnvConfig, TrainConfig, describe_problems, with_settings
from esper_ray.controls import CONTROLS, Trained
from esper_ray.episodes import held_out_seeds, run_episodes
from esper_ray.errors import UserError
from esper_ray.export import load_policy
from esper_ray.process import settle
from esper_ray.run_directory import RunDirectory, Which, replace_text
from policies.bundle import PolicyBundle, PolicySettings
from policies.factory import build_policy

MEASURES = ("score", "accuracy", "parameters")
"""What is kept of every episode, fields of :class:`esper_ray.episodes.EpisodeResults`."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
"""Of an arm or an evaluation: it becomes a file name."""


class Study(BaseModel):
    """What a study's YAML file says.

    Attributes:
        title: Heading of the report.
        preset: Settings to start from.
        settings: Replaced in all arms, named as on the command line.
        arms: What is compared: by name, the settings that are replaced in this arm.
        seeds: Training seeds of every arm; a number k stands for 0 … k − 1.
        evaluations: Worlds in which every arm and control plays: by name, the settings that differ from the study's.
            By default the study's own world.
        episodes: Held-out hosts per evaluation, the same for everybody.
        evaluation_seed: Of the held-out hosts.
        checkpoint: Which checkpoint of every run plays.
        controls: What the arms are compared with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = ""
    preset: str = "default"
    settings: dict[str, Any] = {}
    arms: dict[Name, dict[str, Any] | None] = Field({"learned": {}}, min_length=1)
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0, 1, 2], min_length=1)
    evaluations: dict[Name, dict[str, Any] | None] = {}
    episodes: int = Field(64, ge=2)
    evaluation_seed: int = Field(0, ge=0)
    checkpoint: Which = "best"
    controls: list[str] = list(CONTROLS)

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_seeds(cls, seeds: Any) -> Any:
        return list(range(seeds)) if type(seeds) is int else seeds

    @classmethod
    def read(cls, path: Path) -> Study:
        """Read and check a study: every config in it can be made, and every arm can play in every world.

        Raises:
            UserError: unreadable, an unknown key, or a value that cannot be used; names the file and the place.
        """
        try:
            study = cls.model_validate(yaml.safe_load(path.read_text()) or {})
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        except ValidationError as error:
            raise UserError(f"{path}: {describe_problems(error)}") from error
        try:
            study._check()
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return study

    def _check(self) -> None:
        if self.preset not in PRESETS:
            raise UserError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds must differ from each other, got {self.seeds}")
        if unknown := set(self.controls) - set(CONTROLS):
            raise UserError(f"controls must be among {', '.join(CONTROLS)}, got {', '.join(sorted(unknown))}")
        if clash := set(self.arms) & set(self.controls):
            raise UserError(f"an arm must not be called like a control: rename {', '.join(sorted(clash))}")
        for arm, config in self.configs.items():
            for name, world in self.worlds.items():
                trained_for, here = config.env.make_task().slots.heads, world.make_task().slots.heads
                if trained_for != here:
                    raise UserError(
                        f"arm {arm!r} cannot play evaluation {name!r}: the action heads of task {world.task!r} are not "
                        f"those of {config.env.task!r} (esper-ray inspect shows both)"
                    )

    @cached_property
    def base(self) -> TrainConfig:
        """The preset with the study's settings."""
        return self._config(PRESETS[self.preset], self.settings, "settings")

    @cached_property
    def configs(self) -> dict[str, TrainConfig]:
        """Config of every arm, with the seed still to be set."""
        return {arm: self._config(self.base, given or {}, f"arm {arm!r}") for arm, given in self.arms.items()}

    @cached_property
    def worlds(self) -> dict[str, EnvConfig]:
        """World of every evaluation."""
        evaluations = self.evaluations or {self.base.env.task: {}}
        return {
            name: self._config(self.base, given or {}, f"evaluation {name!r}").env
            for name, given in evaluations.items()
        }

    @staticmethod
    def _config(config: TrainConfig, settings: dict[str, Any], where: str) -> TrainConfig:
        if "seed" in settings:
            raise UserError(f"{where}: give the training seeds under seeds, not as a setting")
        try:
            return with_settings(config, settings)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error


@dataclass(frozen=True)
class Training:
    """One run of a study."""

    arm: str
    seed: int
    config: TrainConfig
    path: Path

    @property
    def iterations_done(self) -> int:
        """Of the latest checkpoint."""
        index = RunDirectory(self.path).index()
        return index["latest"].iteration if index else 0

    def is_finished(self) -> bool:
        """Whether all iterations are done."""
        return self.iterations_done >= self.config.run.iterations

    def open(self) -> RunDirectory:
        """Begin the run, or find what there is of it.

        Raises:
            UserError: it was begun with other settings.
        """
        run = RunDirectory(self.path)
        if not run.config_path.is_file():
            shutil.rmtree(self.path, ignore_errors=True)  # killed while the directory was made
            return RunDirectory.create(self.path, self.config)
        begun_with = dataclasses.replace(
            run.config(), run=dataclasses.replace(run.config().run, iterations=self.config.run.iterations)
        )
        if begun_with != self.config:
            raise UserError(f"{self.path} was trained with other settings: give another --output, or remove it")
        return run


@dataclass(frozen=True)
class Playing:
    """One policy's held-out episodes in one world.

    Attributes:
        policy: A control's name, or the arm's.
        seed: Of the training; None for a control.
        evaluation: Name of the world.
        env: The world.
        trained: What plays; None for a control.
        episodes: Hosts.
        evaluation_seed: Of the hosts.
        path: File of the results.
    """

    policy: str
    seed: int | None
    evaluation: str
    env: EnvConfig
    trained: Trained | None
    episodes: int
    evaluation_seed: int
    path: Path

    def settings(self) -> dict[str, Any]:
        """What the results depend on; results for anything else are not reused."""
        training = None if self.trained is None else {"seed": self.seed, "iteration": self.trained.iteration}
        world = self.env.keywords() | {"policy": self.policy, "training": training}
        return world | {"episodes": self.episodes, "evaluation_seed": self.evaluation_seed}

    def results(self) -> dict[str, Any]:
        """What :meth:`play` returned, from the file."""
        return json.loads(self.path.read_text())

    def is_finished(self) -> bool:
        """Whether the file holds these results."""
        return self.path.is_file() and self.results()["settings"] == self.settings()

    def play(self) -> dict[str, Any]:
        """Play all episodes.

        Returns:
            What the file holds: settings, seconds, the measures and fates per episode, what the policy did.
        """
        settle()
        began = time.perf_counter()
        recorder = BehaviourRecorder(self.env.make_task().slots, self.env.max_epochs)
        seeds = held_out_seeds(self.evaluation_seed, self.episodes)
        results = run_episodes(self._make_policy(), self.env, seeds, recorder.observe)
        return {
            "settings": self.settings(),
            "seconds": time.perf_counter() - began,
            "measures": {name: getattr(results, name).tolist() for name in MEASURES},
            "fates": {fate: counts.tolist() for fate, counts in results.fates.items()},
            "behaviour": {
                "ops": recorder.ops.tolist(),
                "germinated": recorder.germinated.tolist(),
                "fossilized": recorder.fossilized.tolist(),
            },
        }

    def _make_policy(self) -> PolicyBundle:
        settings = PolicySettings(self.env.make_task().slots, self.env.max_epochs)
        if self.trained is None:
            return build_policy(self.policy, settings)
        return load_policy(dataclasses.replace(settings, network=self.trained.network), self.trained.weights)


class StudyDirectory:
    """``runs/ARM/seed-K`` with the trainings, ``episodes/EVALUATION/POLICY.json`` and the report.

    Args:
        path: Made if absent.
        study: What is studied.
    """

    def __init__(self, path: Path, study: Study) -> None:
        self.path, self.study = path.resolve(), study

    @property
    def trainings(self) -> list[Training]:
        """All of them, seed by seed."""
        return [
            Training(
                arm,
                seed,
                dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed)),
                self.path / "runs" / arm / f"seed-{seed}",
            )
            for seed in self.study.seeds
            for arm, config in self.study.configs.items()
        ]

    def controls(self) -> list[Playing]:
        """The controls' episodes in all worlds."""
        return [
            self._playing(control, None, evaluation, None)
            for evaluation in self.study.worlds
            for control in self.study.controls
        ]

    def evaluations(self, training: Training) -> list[Playing]:
        """A trained policy's episodes in all worlds.

        Raises:
            UserError: it has no checkpoint.
        """
        trained = Trained.open(training.path, self.study.checkpoint)
        return [self._playing(training.arm, training.seed, evaluation, trained) for evaluation in self.study.worlds]

    def _playing(self, policy: str, seed: int | None, evaluation: str, trained: Trained | None) -> Playing:
        name = policy if seed is None else f"{policy}.seed-{seed}"
        return Playing(
            policy,
            seed,
            evaluation,
            self.study.worlds[evaluation],
            trained,
            self.study.episodes,
            self.study.evaluation_seed,
            self.path / "episodes" / evaluation / f"{name}.json",
        )


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
        UserError: the directory holds runs with other settings.
    """
    from esper_ray.training import train  # Ray takes seconds to import, and reading a study does without

    # Each training registers RLlib's name for its environment anew.
    warnings.filterwarnings("ignore", message=".*Overriding environment")
    for training in directory.trainings:
        if training.path.exists():
            training.open()  # what does not fit is found before any work is done
    progress = _Progress(directory)
    console.print(progress.line(), highlight=False)
    _play(directory.controls(), workers, progress, console)
    for seed in directory.study.seeds:  # round by round, so that every arm has a first result early
        trainings = [training for training in directory.trainings if training.seed == seed]
        for training in trainings:
            if not training.is_finished():
                console.print(f"[bold]training {training.arm}, seed {seed}[/]", highlight=False)
                with progress.training(training):
                    train(training.open(), training.config, console)
                if not training.is_finished():
                    raise StudyInterruptedError
                console.print(progress.line(), highlight=False)
        _play([p for training in trainings for p in directory.evaluations(training)], workers, progress, console)


def _play(playings: Iterable[Playing], workers: int, progress: _Progress, console: Console) -> None:
    waiting = [playing for playing in playings if not playing.is_finished()]
    if not waiting:
        return
    with progress.playing(len(waiting)):
        for playing, results in _played(waiting, workers):
            playing.path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(playing.path, json.dumps(results) + "\n")
            console.print(f"played {playing.evaluation}: {playing.path.stem}", highlight=False)
    console.print(progress.line(), highlight=False)


def _played(playings: Sequence[Playing], workers: int) -> Iterator[tuple[Playing, dict[str, Any]]]:
    """Results as they come."""
    if not workers:
        yield from ((playing, playing.play()) for playing in playings)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        jobs = {pool.submit(playing.play): playing for playing in playings}
        try:
            yield from ((jobs[job], job.result()) for job in as_completed(jobs))
        finally:
            pool.shutdown(cancel_futures=True)


class _Progress:
    """What is done of a study, and how long the rest may take at the speed of what this session did.

    Args:
        directory: Of the study.
    """

    def __init__(self, directory: StudyDirectory) -> None:
        self._directory = directory
        self._began = time.perf_counter()
        self._train_seconds, self._iterations = 0.0, 0
        self._play_seconds, self._played = 0.0, 0

    @contextmanager
    def training(self, training: Training) -> Iterator[None]:
        """Measure a training."""
        began, before = time.perf_counter(), training.iterations_done
        yield
        self._train_seconds += time.perf_counter() - began
        self._iterations += training.iterations_done - before

    @contextmanager
    def playing(self, count: int) -> Iterator[None]:
        """Measure ``count`` policies' episodes."""
        began = time.perf_counter()
        yield
        self._play_seconds += time.perf_counter() - began
        self._played += count

    def line(self) -> str:
        """One line for people."""
        trainings = self._directory.trainings
        done = [training for training in trainings if training.is_finished()]
        playings = self._directory.controls() + [p for training in done for p in self._directory.evaluations(training)]
        played = sum(playing.is_finished() for playing in playings)
        study = self._directory.study
        to_play = len(study.worlds) * (len(study.controls) + len(trainings)) - played
        to_train = sum(max(t.config.run.iterations - t.iterations_done, 0) for t in trainings)
        return (
            f"{len(done)}/{len(trainings)} trainings, {played}/{played + to_play} evaluations, "
            f"{clock(time.perf_counter() - self._began)} spent, {self._left(to_train, to_play)}"
        )

    def _left(self, to_train: int, to_play: int) -> str:
        if (to_train and not self._iterations) or (to_play and not self._played):
            return "time left known after the first training and evaluation"
        seconds = to_train * self._train_seconds / max(self._iterations, 1)
        seconds += to_play * self._play_seconds / max(self._played, 1)
        return f"about {clock(seconds)} left"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
