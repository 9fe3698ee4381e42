"""The committed files with the figures of finished units."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from esper_ray.experiments.results.plan import Unit
from esper_ray.experiments.study.study_results import TrainingResults
from esper_ray.keeping.writing import make_directories, replace_text
from esper_ray.measuring.playing import Played
from esper_ray.reading import checked, read_json


class Made(BaseModel):
    """How figures came about.

    Attributes:
        code: Hash of what they depend on, see :func:`esper_ray.experiments.results.code_hash.code_hash`.
        commit: Of the checkout.
        date: When they were finished, ISO 8601 in UTC.
        command: That made them.
        processor: That computed them: rounding is the same on the same kind alone.
        seconds: It took, by the wall clock of a machine that may have done other things as well.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: str
    commit: str | None
    date: str
    command: str
    processor: str
    seconds: float


@dataclass(frozen=True)
class ControlFigures:
    """Of the controls of a world.

    Attributes:
        played: By control.
        schedule: The best schedule that was found for the world, if one was searched for.
    """

    played: dict[str, Played]
    schedule: list[dict[str, Any]] | None


@dataclass(frozen=True)
class SearchFigures:
    """What searches on single hosts can try.

    Attributes:
        pool: The fields of a :class:`esper_ray.measuring.search.host_pool.HostPool`, packed.
    """

    pool: dict[str, str]


Figures = TrainingResults | ControlFigures | SearchFigures

_ADAPTERS: Mapping[str, TypeAdapter[Any]] = {
    "training": TypeAdapter(TrainingResults),
    "controls": TypeAdapter(ControlFigures),
    "search": TypeAdapter(SearchFigures),
}


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    made: Made
    figures: dict[str, Any]


class KeptUnits:
    """``STUDY/UNIT.json`` in a directory.

    Args:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def file(self, unit: Unit) -> Path:
        """Where a unit's figures are."""
        return self._path / unit.study / f"{unit.name}.json"

    def made(self, unit: Unit) -> Made | None:
        """How a unit's figures came about; None if there are none.

        Raises:
            UserError: the file is damaged.
        """
        return self._read(unit).made if self.file(unit).is_file() else None

    def figures(self, unit: Unit) -> Any:
        """A unit's :data:`Figures`, of its kind.

        Raises:
            UserError: there is no such file, or it is damaged.
        """
        return checked(self._read(unit).figures, _ADAPTERS[unit.kind], self._damaged(unit))

    def keep(self, unit: Unit, made: Made, figures: Figures) -> None:
        """Write a unit's file."""
        make_directories(self.file(unit).parent)
        content = {"made": made.model_dump(), "figures": asdict(figures)}
        replace_text(self.file(unit), json.dumps(content) + "\n")

    def _read(self, unit: Unit) -> _Kept:
        return checked(read_json(self.file(unit)), TypeAdapter(_Kept), self._damaged(unit))

    def _damaged(self, unit: Unit) -> str:
        return f"{self.file(unit)} is damaged, remove it and the unit is made again"
