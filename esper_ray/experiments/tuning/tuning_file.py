"""What a tuning's YAML file says, and which trials follow from it."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from envs.ranges import LARGEST
from envs.seeding import Purpose, seed_sequence
from esper_ray.config import EnvConfig, RunConfig, TrainConfig, with_settings
from esper_ray.errors import UserError
from esper_ray.presets import PRESETS
from esper_ray.reading import read_yaml

DIGITS = 4
"""Significant digits of a number that is drawn: more say nothing, and fewer are easier to read."""

_FIELDS = {field.name for part in (RunConfig, EnvConfig) for field in dataclasses.fields(part)}

FIXED = (_FIELDS - {"algorithm", "reward_mode"}) | {"play_temperature"}
"""Settings that have no part in training, or change an iteration's work or the meaning of its score."""

Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=-LARGEST, le=LARGEST)]


class Range(BaseModel):
    """What one setting is drawn from: one of the four.

    Attributes:
        choice: Values, equally likely.
        uniform: Smallest and largest number.
        loguniform: The same, with all orders of magnitude equally likely.
        integers: Smallest and largest whole number, both included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    uniform: tuple[Number, Number] | None = None
    loguniform: tuple[Number, Number] | None = None
    integers: tuple[Whole, Whole] | None = None

    @model_validator(mode="after")
    def _check(self) -> Range:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}")
        limits = self.uniform or self.loguniform or self.integers
        if limits is not None and limits[0] >= limits[1]:
            raise ValueError(f"the first number must be below the second, got {list(limits)}")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform needs numbers above 0, got {list(self.loguniform)}")
        return self

    def draw(self, rng: np.random.Generator) -> Any:
        """One value."""
        if self.choice is not None:
            return self.choice[int(rng.integers(len(self.choice)))]
        if self.integers is not None:
            return int(rng.integers(*self.integers, endpoint=True))
        if self.loguniform is not None:
            return _rounded(np.exp(rng.uniform(*np.log(self.loguniform))))
        assert self.uniform is not None
        return _rounded(rng.uniform(*self.uniform))


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")


class Tuning(BaseModel):
    """What a tuning's YAML file says.

    Attributes:
        title: Heading of the report.
        preset: Settings to start from.
        settings: Replaced in all trials, named as on the command line.
        space: What is tuned: by setting, what it is drawn from.
        samples: Trials; more can be given later.
        seed: Of the draws, and of every training.
        grace_iterations: That every trial trains before it can be stopped.
        reduction_factor: One trial of this many goes on at each decision, and trains this many times as long.
        concurrent_trials: At the same time, at most.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = ""
    preset: str = "default"
    settings: dict[str, Any] = {}
    space: dict[str, Range] = Field(min_length=1)
    samples: int = Field(16, ge=1, le=100_000)
    seed: int = Field(0, ge=0, lt=2**20)
    grace_iterations: int = Field(4, ge=1, le=LARGEST)
    reduction_factor: int = Field(3, ge=2, le=LARGEST)
    concurrent_trials: int = Field(1, ge=1, le=4096)

    @classmethod
    def read(cls, path: Path) -> Tuning:
        """Read and check a tuning: every trial's config can be made.

        Raises:
            UserError: unreadable, an unknown key, or a value that cannot be used; names the file and the place.
        """
        tuning = read_yaml(path, cls)
        try:
            tuning._check()
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return tuning

    def _check(self) -> None:
        if self.preset not in PRESETS:
            raise UserError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        if "seed" in self.settings:
            raise UserError("settings: give the training seed as the tuning's seed, not as a setting")
        if "storage" in self.settings:
            raise UserError("settings: trials have no copy elsewhere; leave storage out")
        if both := self.settings.keys() & self.space.keys():
            raise UserError(f"{', '.join(sorted(both))}: give a setting under settings or under space, not both")
        if self.grace_iterations > self.base.run.iterations:
            raise UserError(
                f"grace_iterations is {self.grace_iterations}, but a trial has only {self.base.run.iterations} "
                "iterations: no trial could be stopped early"
            )
        if fixed := self.space.keys() & FIXED:
            raise UserError(
                f"space: {', '.join(sorted(fixed))} cannot be drawn, since it has no part in training, or scores of "
                "trials that differ in it do not compare: give it under settings. The settings of the learner and the "
                "network, algorithm and reward_mode can"
            )
        assert self.configs  # every draw is a config

    @cached_property
    def base(self) -> TrainConfig:
        """The preset with the tuning's settings."""
        try:
            return with_settings(PRESETS[self.preset], {**self.settings, "seed": self.seed})
        except UserError as error:
            raise UserError(f"settings: {error}") from error

    @cached_property
    def draws(self) -> list[dict[str, Any]]:
        """What each trial's settings in the space are. They do not depend on the number of samples."""
        sequences = (seed_sequence(Purpose.TUNING, self.seed, trial) for trial in range(self.samples))
        generators = map(np.random.default_rng, sequences)
        return [{name: range_.draw(rng) for name, range_ in self.space.items()} for rng in generators]

    @cached_property
    def configs(self) -> list[TrainConfig]:
        """Config of each trial."""
        return [self._config(drawn) for drawn in self.draws]

    def _config(self, drawn: dict[str, Any]) -> TrainConfig:
        try:
            return with_settings(self.base, drawn)
        except UserError as error:
            settings = ", ".join(f"{name} = {value}" for name, value in drawn.items())
            raise UserError(f"space: a trial with {settings} cannot be made: {error}") from error
