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

from envs.grown import GrownSeeds
from esper_ray.behaviour import BehaviourRecorder
from esper_ray.config import PRESETS, EnvConfig, TrainConfig, describe_problems, with_settings
from esper_ray.controls import (
    BEST_SCHEDULE,
    CONTROLS,
    LEARNED_GREEDY,
    STATIC,
    STATIC_BIG,
    STATIC_FINAL,
    Trained,
    static_big,
)
from esper_ray.episodes import held_out_seeds, run_episodes
from esper_ray.errors import UserError
from esper_ray.evaluation import MEASURES
from esper_ray.export import file_sha256, load_policy
from esper_ray.process import settle
from esper_ray.run_directory import RunDirectory, Which, replace_text
from esper_ray.search import (
    FINAL,
    Brackets,
    SearchSettings,
    read_schedule,
    read_trace,
    search_schedule,
    write_schedule,
    write_trace,
)
from policies.bundle import PolicyBundle, PolicySettings
from policies.factory import build_policy
from policies.learned import LEARNED
from policies.schedule import GrowthSchedule
from policies.scripted import FixedSchedule, NeverGrow

INDEPENDENT = (*CONTROLS, STATIC_BIG, BEST_SCHEDULE)
"""Controls that play once per world."""

FOLLOWING = (LEARNED_GREEDY, STATIC_FINAL)
"""Controls that play once per training, for they come from its policy."""

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
        controls: What the arms are compared with. ``best_schedule`` is searched for in every world.
        search_epochs: Host epochs that each search may spend; by default as many as the longest training.
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
    controls: list[str] = [*CONTROLS, *STATIC]
    search_epochs: Annotated[int, Field(ge=1)] | None = None

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
        except (yaml.YAMLError, UnicodeDecodeError) as error:
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
        if unknown := set(self.controls) - {*INDEPENDENT, *FOLLOWING}:
            raise UserError(
                f"controls must be among {', '.join((*INDEPENDENT, *FOLLOWING))}, got {', '.join(sorted(unknown))}"
            )
        if clash := set(self.arms) & set(self.controls):
            raise UserError(f"an arm must not be called like a control: rename {', '.join(sorted(clash))}")
        if BEST_SCHEDULE in self.controls:
            for world in self.worlds.values():
                episodes = self.search_settings.host_epochs // world.max_epochs
                Brackets.of(episodes, len(world.make_task().variants))  # refuses what is too little
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
        changed = {
            name: self._config(self.base, given or {}, f"evaluation {name!r}") for name, given in evaluations.items()
        }
        for name, config in changed.items():
            if dataclasses.replace(config, env=self.base.env) != self.base:
                known = ", ".join(field.name for field in dataclasses.fields(EnvConfig))
                raise UserError(f"evaluation {name!r}: the settings of a world are {known}; others belong to an arm")
        return {name: config.env for name, config in changed.items()}

    @cached_property
    def search_settings(self) -> SearchSettings:
        """Of the searches for the best schedule."""
        if self.search_epochs is not None:
            return SearchSettings(self.search_epochs)
        runs = [(config.run, config.env) for config in self.configs.values()]
        return SearchSettings(
            max(
                run.iterations * max(1, run.num_env_runners) * run.hosts_per_runner * env.max_epochs
                for run, env in runs
            )
        )

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
        if run.config() != self.config:
            raise UserError(f"{self.path} was trained with other settings: give another --output, or remove it")
        return run


@dataclass(frozen=True)
class Playing:
    """Held-out episodes in one world, of a control, or of a trained policy and what follows from it.

    Attributes:
        policy: A control's name, or the arm's.
        seed: Of the training; None for a control.
        evaluation: Name of the world.
        env: The world.
        trained: What plays; None for a control.
        weights_sha256: Of its file.
        following: Which of ``FOLLOWING`` play after the trained policy.
        schedule: What ``BEST_SCHEDULE`` plays.
        episodes: Hosts.
        evaluation_seed: Of the hosts.
        path: File of the results.
    """

    policy: str
    seed: int | None
    evaluation: str
    env: EnvConfig
    trained: Trained | None
    weights_sha256: str | None
    following: tuple[str, ...]
    schedule: GrowthSchedule | None
    episodes: int
    evaluation_seed: int
    path: Path

    def settings(self) -> dict[str, Any]:
        """What the results depend on, as JSON reads it back; results for anything else are not reused."""
        settings = {
            "policy": self.policy,
            "world": self.env.keywords(),
            "weights_sha256": self.weights_sha256,
            "following": self.following,
            "schedule": None if self.schedule is None else self.schedule.to_json(),
            "episodes": self.episodes,
            "evaluation_seed": self.evaluation_seed,
        }
        return json.loads(json.dumps(settings))

    def results(self) -> dict[str, Any]:
        """What :meth:`play` returned, from the file."""
        return json.loads(self.path.read_text())

    def is_finished(self) -> bool:
        """Whether the file holds these results."""
        return self.path.is_file() and self.results()["settings"] == self.settings()

    def play(self) -> dict[str, Any]:
        """Play all episodes.

        Returns:
            What the file holds: settings, seconds, and per policy the measures and fates of every episode, and what
            the policy did in all of them. A trained policy is called ``LEARNED``.
        """
        settle()
        began = time.perf_counter()
        slots, max_epochs = self.env.make_task().slots, self.env.max_epochs
        if self.trained is None:
            grown = static_big(self.env, self.episodes) if self.policy == STATIC_BIG else None
            policies = {self.policy: self._played(self._control(), grown=grown)[0]}
        else:
            settings = PolicySettings(slots, max_epochs, self.trained.network)
            learned = load_policy(settings, self.trained.weights)
            policies = {}
            policies[LEARNED], final = self._played(learned)
            if LEARNED_GREEDY in self.following:
                policies[LEARNED_GREEDY], _ = self._played(learned, deterministic=True)
            if STATIC_FINAL in self.following:
                policies[STATIC_FINAL], _ = self._played(NeverGrow(slots), grown=final)
        return {"settings": self.settings(), "seconds": time.perf_counter() - began, "policies": policies}

    def _control(self) -> PolicyBundle:
        slots, max_epochs = self.env.make_task().slots, self.env.max_epochs
        if self.policy == STATIC_BIG:
            return NeverGrow(slots)
        if self.policy == BEST_SCHEDULE:
            assert self.schedule is not None
            return FixedSchedule(slots, max_epochs, self.schedule)
        return build_policy(self.policy, PolicySettings(slots, max_epochs))

    def _played(
        self, policy: PolicyBundle, deterministic: bool = False, grown: GrownSeeds | None = None
    ) -> tuple[dict[str, Any], GrownSeeds]:
        """A policy's results, and the seeds that its hosts end with."""
        recorder = BehaviourRecorder(policy.slot_config, self.env.max_epochs)
        seeds = held_out_seeds(self.evaluation_seed, self.episodes)
        results = run_episodes(policy, self.env, seeds, recorder.observe, deterministic=deterministic, grown=grown)
        played = {
            "measures": {name: getattr(results, name).tolist() for name in MEASURES},
            "fates": {fate: counts.tolist() for fate, counts in results.fates.items()},
            "behaviour": {
                "ops": recorder.ops.tolist(),
                "germinated": recorder.germinated.tolist(),
                "fossilized": recorder.fossilized.tolist(),
            },
        }
        return played, results.grown


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

    def schedule_path(self, evaluation: str) -> Path:
        """File of the best schedule for a world."""
        return self.path / "schedules" / f"{evaluation}.json"

    def searches(self) -> dict[str, Path]:
        """By world the file of its best schedule, if the study asks for it."""
        wanted = self.study.worlds if BEST_SCHEDULE in self.study.controls else {}
        return {evaluation: self.schedule_path(evaluation) for evaluation in wanted}

    def controls(self) -> list[Playing]:
        """The independent controls' episodes in all worlds, but for schedules that are yet to be found."""
        return [
            self._playing(control, None, evaluation, None)
            for evaluation in self.study.worlds
            for control in self.study.controls
            if control in INDEPENDENT and (control != BEST_SCHEDULE or self.schedule_path(evaluation).is_file())
        ]

    def evaluations(self, training: Training) -> list[Playing]:
        """A trained policy's episodes in all worlds.

        Raises:
            UserError: it has no checkpoint.
        """
        trained = Trained.open(training.path, self.study.checkpoint)
        digest = file_sha256(trained.weights)
        return [
            self._playing(training.arm, training.seed, evaluation, trained, digest) for evaluation in self.study.worlds
        ]

    def _playing(
        self,
        policy: str,
        seed: int | None,
        evaluation: str,
        trained: Trained | None,
        weights_sha256: str | None = None,
    ) -> Playing:
        study = self.study
        name = policy if seed is None else f"{policy}.seed-{seed}"
        return Playing(
            policy,
            seed,
            evaluation,
            study.worlds[evaluation],
            trained,
            weights_sha256,
            () if trained is None else tuple(control for control in FOLLOWING if control in study.controls),
            read_schedule(self.schedule_path(evaluation)) if policy == BEST_SCHEDULE else None,
            study.episodes,
            study.evaluation_seed,
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
    for evaluation, path in directory.searches().items():
        with progress.measured("searches"):
            _search(directory.study.worlds[evaluation], directory.study.search_settings, path, max(workers, 1), console)
    _play(directory.controls(), workers, progress, console)
    for seed in directory.study.seeds:  # round by round, so that every arm has a first result early
        trainings = [training for training in directory.trainings if training.seed == seed]
        for training in trainings:
            if not training.is_finished():
                console.print(f"[bold]training {training.arm}, seed {seed}[/]", highlight=False)
                with progress.measured("iterations"):
                    train(training.open(), training.config, console)
                if not training.is_finished():
                    raise StudyInterruptedError
                console.print(progress.line(), highlight=False)
        _play([p for training in trainings for p in directory.evaluations(training)], workers, progress, console)


def _search(env: EnvConfig, settings: SearchSettings, path: Path, workers: int, console: Console) -> None:
    """Find the best schedule of a world; nothing that the trace knows is played again."""
    from esper_ray.report import search_progress, search_table

    path.parent.mkdir(parents=True, exist_ok=True)
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


def _play(playings: Iterable[Playing], workers: int, progress: _Progress, console: Console) -> None:
    waiting = [playing for playing in playings if not playing.is_finished()]
    if not waiting:
        return
    with progress.measured("evaluations"):
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


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
