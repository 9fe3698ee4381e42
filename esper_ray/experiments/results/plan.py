"""Which studies the results consist of, and the units that these are made of, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from esper_ray.errors import UserError
from esper_ray.experiments.results.code_hash import code_hash
from esper_ray.experiments.study.study_file import Study
from esper_ray.reading import read_yaml

Kind = Literal["controls", "training", "search"]


class Generalist(BaseModel):
    """Who is one policy for several worlds, and who are held against it.

    Attributes:
        study: Of the generalists; each of its arms is one.
        specialists: By evaluation of that study, the study that trained in that world alone; it has one arm.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    specialists: dict[str, str]


class _Plan(BaseModel):
    """What the plan's file says: names of studies beside its directory, in the order of their worth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    studies: list[str] = Field(min_length=1)
    generalist: Generalist | None = None


@dataclass(frozen=True)
class Unit:
    """What is made in one go.

    Attributes:
        study: Name of the study.
        kind: What it is.
        of: The world of controls and searches; the arm of a training.
        seed: Of a training.
    """

    study: str
    kind: Kind
    of: str
    seed: int = 0

    @property
    def name(self) -> str:
        """Within the study; a part of a file's name."""
        return f"{self.of}.seed-{self.seed}" if self.kind == "training" else f"{self.kind}.{self.of}"

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.study}/{self.name}"


class Plan:
    """The studies in order.

    Args:
        path: A directory with ``plan.yaml``; the studies lie beside it.

    Raises:
        UserError: a file cannot be read, or a study takes its trainings from one that is not on the plan before it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_yaml(path / "plan.yaml", _Plan)
        names = content.studies
        self.studies: Mapping[str, Study] = {name: Study.read(self.study_file(name)) for name in names}
        for place, (name, study) in enumerate(self.studies.items()):
            if study.trained_by is not None and study.trained_by not in names[:place]:
                raise UserError(f"{path / 'plan.yaml'} must name {study.trained_by} before {name}, which plays it")
        self.generalist = content.generalist
        if self.generalist is not None:
            self._check_generalist(self.generalist)

    def _check_generalist(self, generalist: Generalist) -> None:
        where = self.path / "plan.yaml"
        for name in (generalist.study, *generalist.specialists.values()):
            if name not in self.studies:
                raise UserError(f"{where}: generalist names the study {name!r}, which is not on the plan")
        worlds = self.studies[generalist.study].worlds
        for world, name in generalist.specialists.items():
            specialist = self.studies[name]
            same_hosts = specialist.evaluation_seed == self.studies[generalist.study].evaluation_seed
            there = world in worlds and worlds[world] in specialist.worlds.values()
            if not there or not same_hosts or len(specialist.arms) > 1:
                raise UserError(
                    f"{where}: {name} is no specialist for {world!r}: both {generalist.study} and {name} must play "
                    "that world, with the same settings and evaluation_seed, and a specialist has one arm"
                )

    def study_file(self, name: str) -> Path:
        """Where a study is written down."""
        return self.path.parent / f"{name}.yaml"

    @cached_property
    def hashes(self) -> dict[str, str]:
        """By study, the hash of all that its figures depend on, as the files are now."""
        found = {}
        for name, study in self.studies.items():
            files = [name] if study.trained_by is None else [study.trained_by, name]
            found[name] = code_hash([self.study_file(each) for each in files])
        return found

    def units(self) -> Iterator[Unit]:
        """All, in the order in which they are made: who plays a training comes right after it, while it is there."""
        for name, study in self.studies.items():
            if study.trained_by is not None:
                continue
            together = {name: study} | {other: each for other, each in self.studies.items() if each.trained_by == name}
            for of, each in together.items():
                yield from (Unit(of, "controls", world) for world in each.worlds)
            for seed in study.seeds:
                for arm in study.arms:
                    yield from (Unit(of, "training", arm, seed) for of in together)
            for of, each in together.items():
                if each.host_search:
                    yield from (Unit(of, "search", world) for world in each.worlds)

    def unit(self, name: str) -> Unit:
        """By the name that it has on the command line.

        Raises:
            UserError: there is none.
        """
        for unit in self.units():
            if str(unit) == name:
                return unit
        raise UserError(f"no unit {name!r}: `esper-ray results --list` names them")
