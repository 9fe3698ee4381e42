"""What a study's YAML file says."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from esper_ray.config import EnvConfig, TrainConfig, with_settings
from esper_ray.errors import UserError
from esper_ray.keeping.run_directory import Which
from esper_ray.measuring.controls import BEST_SCHEDULE, CONTROLS, FOLLOWING, INDEPENDENT, STATIC, TRAINING_SCHEDULE
from esper_ray.measuring.search.halving import Brackets, SearchSettings
from esper_ray.presets import PRESETS
from esper_ray.reading import read_yaml
from policies.schedule import GrowthSchedule
from policies.scripted import FixedSchedule

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=50)]
"""Of an arm or an evaluation: it becomes a part of file names, which have at most 255 bytes, a letter up to 4."""


OF_TRAINING = ("preset", "settings", "arms", "seeds")
"""Keys that say what is trained, and how."""


class Study(BaseModel):
    """What a study's YAML file says.

    Attributes:
        title: Heading of the report.
        trained_by: Another study, by the name of its file beside this one, whose trainings are evaluated here; its
            ``OF_TRAINING`` are then this study's too.
        preset: Settings to start from.
        settings: Replaced in all arms, named as on the command line.
        arms: What is compared: by name, the settings that are replaced in this arm.
        seeds: Training seeds of every arm; a number k stands for 0 … k − 1.
        evaluations: Worlds in which every arm and control plays: by name, the settings that differ from the study's.
            By default the study's own world.
        episodes: Held-out hosts per evaluation, the same for everybody.
        evaluation_seed: Of the held-out hosts.
        checkpoint: Which checkpoint of every run plays.
        controls: What the arms are compared with. ``best_schedule`` is searched for in every world;
            ``training_schedule`` is the one that the study of ``trained_by`` found for its first evaluation.
        search_epochs: Host epochs that each search may spend; by default as many as the longest training.
        searches: How many there are for each world; the best of what they find counts.
        known_schedules: Such as somebody has found before, in the form that ``esper-ray search`` writes: they are held
            against what the searches find, on the same fresh hosts.
        host_search: Of the held-out hosts the first ones, on which ``esper-ray results`` also finds out what a search
            on that host alone would end with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = ""
    trained_by: Name | None = None
    preset: str = "default"
    settings: dict[str, Any] = {}
    arms: dict[Name, dict[str, Any] | None] = Field({"learned": {}}, min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=2**20)]] = Field([0, 1, 2], min_length=1)
    evaluations: dict[Name, dict[str, Any] | None] = {}
    episodes: int = Field(64, ge=2, le=10**6)
    evaluation_seed: int = Field(0, ge=0, le=2**53)
    checkpoint: Which = "latest"
    controls: list[str] = [*CONTROLS, *STATIC]
    search_epochs: Annotated[int, Field(ge=1, le=2**53)] | None = None
    searches: int = Field(1, ge=1, le=1000)
    known_schedules: list[list[dict[str, Any]]] = []
    host_search: int = Field(0, ge=0, le=10**6)
    _trainer: Study | None = PrivateAttr(None)

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_seeds(cls, seeds: Any) -> Any:
        return list(range(seeds)) if type(seeds) is int and seeds <= 10_000 else seeds

    @classmethod
    def read(cls, path: Path) -> Study:
        """Read and check a study: every config in it can be made, and every arm can play in every world.

        Raises:
            UserError: unreadable, an unknown key, or a value that cannot be used; names the file and the place.
        """
        study = read_yaml(path, cls)
        try:
            if study.trained_by is not None:
                study = study._with_trainer(path.with_name(f"{study.trained_by}{path.suffix}"))
            study._check()
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return study

    def _with_trainer(self, path: Path) -> Study:
        """This study of the trainings of another one, which is in a file."""
        if given := [key for key in OF_TRAINING if key in self.model_fields_set]:
            raise UserError(f"trained_by takes {', '.join(given)} from {path}: remove one or the other")
        if read_yaml(path, Study).trained_by is not None:
            raise UserError(f"trained_by must name a study that trains, but {path} takes its trainings from another")
        trainer = Study.read(path)
        study = self.model_copy(update={key: getattr(trainer, key) for key in OF_TRAINING})
        study._trainer = trainer
        return study

    def _check(self) -> None:
        if self.preset not in PRESETS:
            raise UserError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        if self.host_search > self.episodes:
            raise UserError(f"host_search must be at most episodes, {self.episodes}, got {self.host_search}")
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds must differ from each other, got {self.seeds}")
        if unknown := set(self.controls) - {*INDEPENDENT, *FOLLOWING}:
            raise UserError(
                f"controls must be among {', '.join((*INDEPENDENT, *FOLLOWING))}, got {', '.join(sorted(unknown))}"
            )
        if TRAINING_SCHEDULE in self.controls:
            self.training_evaluation()
        if clash := set(self.arms) & set(self.controls):
            raise UserError(f"an arm must not be called like a control: rename {', '.join(sorted(clash))}")
        if BEST_SCHEDULE in self.controls:
            for name, world in self.worlds.items():
                task, settings = world.make_task(), self.search_settings
                Brackets.of(settings.host_epochs // world.longest, len(task.variants))  # refuses what is too little
                for schedule in settings.known:
                    try:
                        FixedSchedule(task.slots, world.longest, schedule)
                    except ValueError as error:
                        raise UserError(f"known_schedules: one does not fit evaluation {name!r}: {error}") from error
        for arm, config in self.configs.items():
            for name, world in self.worlds.items():
                trained_for, here = config.env.make_task().slots.heads, world.make_task().slots.heads
                if config.network.kind != "graph" and trained_for != here:
                    raise UserError(
                        f"arm {arm!r} cannot play evaluation {name!r}: the action heads of task {world.task!r} are not "
                        f"those of {config.env.task!r} (esper-ray inspect shows both)"
                    )

    def load_data(self) -> None:
        """Read the data of all trainings and worlds, so that what is wrong with them is found before anything starts.

        Raises:
            UserError: they are absent, or not the expected ones.
        """
        for env in (*(config.env for config in self.configs.values()), *self.worlds.values()):
            env.load_data()

    @property
    def trainer(self) -> Study:
        """The study that trains: this one, or the one that ``trained_by`` names."""
        return self._trainer or self

    def training_evaluation(self) -> str:
        """Name of the trainer's evaluation for which it finds ``training_schedule``: its first.

        Raises:
            UserError: nothing is searched for there.
        """
        if self.trainer is self or BEST_SCHEDULE not in self.trainer.controls:
            raise UserError(f"the control {TRAINING_SCHEDULE} needs trained_by, and there the control {BEST_SCHEDULE}")
        return next(iter(self.trainer.worlds))

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
        if not self.evaluations:
            return {world.task: world.lasting() for world in self.base.env.worlds}
        # How a training begins is no part of a world, and its arguments may be none of another task's.
        base = dataclasses.replace(
            self.base, run=dataclasses.replace(self.base.run, first_iterations=0, first_task_args={})
        )
        changed = {
            name: self._config(base, given or {}, f"evaluation {name!r}") for name, given in self.evaluations.items()
        }
        for name, config in changed.items():
            if dataclasses.replace(config, env=base.env) != base:
                known = ", ".join(field.name for field in dataclasses.fields(EnvConfig))
                raise UserError(f"evaluation {name!r}: the settings of a world are {known}; others belong to an arm")
            if "max_epochs" in (self.evaluations[name] or {}) and len(config.env.horizons) > 1:
                raise UserError(f"evaluation {name!r}: max_epochs must be one number, got {config.env.max_epochs}")
            if config.env.tasks:
                raise UserError(f"evaluation {name!r}: give the task, one of {', '.join(config.env.tasks)}, say")
        return {name: config.env.lasting() for name, config in changed.items()}

    @cached_property
    def search_settings(self) -> SearchSettings:
        """Of the searches for the best schedule.

        Raises:
            UserError: no schedules that are known.
        """
        epochs = self.training_epochs if self.search_epochs is None else self.search_epochs
        try:
            known = tuple(GrowthSchedule.from_json(entries) for entries in self.known_schedules)
        except (ValueError, TypeError) as error:
            raise UserError(f"known_schedules: {error}") from error
        return SearchSettings(epochs, searches=self.searches, known=known)

    @property
    def training_epochs(self) -> int:
        """Host epochs of the longest training."""
        return max(config.host_epochs(config.run.iterations) for config in self.configs.values())

    @staticmethod
    def _config(config: TrainConfig, settings: dict[str, Any], where: str) -> TrainConfig:
        if "seed" in settings:
            raise UserError(f"{where}: give the training seeds under seeds, not as a setting")
        if "storage" in settings:
            raise UserError(
                f"{where}: the trainings of a study have no copy elsewhere, which they would share; leave storage out"
            )
        try:
            return with_settings(config, settings)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
