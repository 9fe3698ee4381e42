"""Where the trials of a tuning lie, and the record of how they did."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esper_ray.config import TrainConfig
from esper_ray.errors import UserError
from esper_ray.experiments.tuning.tuning_file import Tuning

CHANGEABLE = {"title", "samples", "concurrent_trials"}
"""Keys of a tuning that may be others when it goes on."""


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
            UserError: it was begun with other settings.
        """
        identity = json.loads(json.dumps(self.tuning.model_dump(mode="json", exclude=CHANGEABLE)))
        # A line that was being written at a kill lacks its end: its trial tells the iteration again.
        text = self.record.read_text() if self.record.is_file() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        if not lines:
            self.path.mkdir(parents=True, exist_ok=True)
            self.record.write_text(json.dumps(identity) + "\n")
            return []
        if len(text) > text.rfind("\n") + 1:
            self.record.write_text("".join(f"{line}\n" for line in lines))
        begun_with = json.loads(lines[0])
        if begun_with != identity:
            other = ", ".join(name for name in identity if begun_with.get(name) != identity[name])
            raise UserError(f"{self.path} was begun with another {other}: give another --output, or remove it")
        return [Result(**json.loads(line)) for line in lines[1:]]

    def append(self, result: Result) -> None:
        """Record a result."""
        with self.record.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")


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
