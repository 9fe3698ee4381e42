"""Where the trials of a tuning lie, and the record of how they did."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from esper_ray.config import TrainConfig
from esper_ray.errors import UserError
from esper_ray.experiments.tuning.tuning_file import Tuning
from esper_ray.keeping.writing import make_directories, replace_text, writing
from esper_ray.reading import checked, parse_json, read_text

CHANGEABLE = {"title", "samples", "concurrent_trials"}
"""Keys of a tuning that may be others when it goes on."""

REMEDY = "restore it from a copy, or give another --output"


@dataclass(frozen=True)
class Result:
    """One iteration of a trial.

    Attributes:
        trial: Its name.
        iteration: Iterations done.
        score: Moving average of the committed validation scores up to it, as checkpoints have it.
        stopped: Whether the trial was stopped after it, before its last iteration.
    """

    trial: str
    iteration: int
    score: float
    stopped: bool


@dataclass(frozen=True)
class Trial:
    """One run of a tuning.

    Attributes:
        name: Its number, and the name of its directory.
        drawn: Its settings in the space.
        config: All its settings.
        path: Its run directory.
    """

    name: str
    drawn: dict[str, Any]
    config: TrainConfig
    path: Path

    def is_over(self, last: Result | None) -> bool:
        """Whether nothing is left to train after its last result."""
        return last is not None and (last.stopped or last.iteration >= self.config.run.iterations)


class TuningDirectory:
    """``trials/NNN``, ``results.jsonl`` with every iteration in the order of the decisions, and the report.

    Args:
        path: Made by :meth:`open` if absent.
        tuning: What is tuned.
    """

    def __init__(self, path: Path, tuning: Tuning) -> None:
        self.path, self.tuning = path.resolve(), tuning

    @property
    def trials(self) -> list[Trial]:
        """All of them."""
        return [
            Trial(f"{number:03d}", drawn, config, self.path / "trials" / f"{number:03d}")
            for number, (drawn, config) in enumerate(zip(self.tuning.draws, self.tuning.configs, strict=True))
        ]

    @property
    def record(self) -> Path:
        """The file with the results; its first line says of which tuning they are."""
        return self.path / "results.jsonl"

    def open(self) -> list[Result]:
        """Begin the tuning, or find what is recorded of it.

        Returns:
            What is recorded, in the order of the decisions.

        Raises:
            UserError: it was begun with other settings, or the record is damaged or missing.
        """
        identity = json.loads(json.dumps(self.tuning.model_dump(mode="json", exclude=CHANGEABLE)))
        if not self.record.is_file() and not any(self.path.glob("trials/*")):
            make_directories(self.path)
            replace_text(self.record, json.dumps(identity) + "\n")
            return []
        begun_with, *lines = self._recorded()
        if begun_with != identity:
            other = ", ".join(name for name in identity if begun_with.get(name) != identity[name])
            raise UserError(f"{self.path} was begun with another {other}: give another --output, or remove it")
        return [checked(line, TypeAdapter(Result), f"{self.record} is damaged, {REMEDY}") for line in lines]

    def _recorded(self) -> list[dict[str, Any]]:
        """What the record's lines say.

        One that was being written at a kill lacks its end, and is removed: its trial tells the iteration again.
        """
        text = read_text(self.record)
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            replace_text(self.record, whole)
        damaged = f"{self.record} is damaged, {REMEDY}"
        lines = [parse_json(line, f"{damaged}: line {number}") for number, line in enumerate(whole.splitlines(), 1)]
        return checked(lines, TypeAdapter(Annotated[list[dict[str, Any]], Field(min_length=1)]), damaged)

    def append(self, result: Result) -> None:
        """Record a result."""
        with writing(self.record), self.record.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def last_results(results: list[Result]) -> dict[str, Result]:
    """By trial, the last of its results."""
    return {result.trial: result for result in results}


def ranked(trials: list[Trial], last: dict[str, Result]) -> list[Trial]:
    """Trials from the best to the worst.

    Who was let train longer is better: it beat those that were stopped when it had trained as long as they. Among
    equals the score decides.
    """

    def merit(trial: Trial) -> tuple[int, float]:
        result = last.get(trial.name)
        if result is None:
            return 0, -math.inf
        return result.iteration, -math.inf if math.isnan(result.score) else result.score

    return sorted(trials, key=merit, reverse=True)
