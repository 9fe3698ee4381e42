"""What a training run leaves on disk, and how it is found again."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from esper_ray.config import TrainConfig, load_config
from esper_ray.errors import UserError
from esper_ray.keeping.revision import git_commit

Which = Literal["latest", "best"]

CONFIG_FILE = "config.json"
INDEX_FILE = "checkpoints/index.json"
POLICY_FILE = "policy.safetensors"
"""Weights of the policy, in every checkpoint and export."""
RLLIB_STATE = "rllib"
"""Folder of a checkpoint that training goes on from."""
AVERAGE_STEP = 0.25
"""Weight of the newest score in a checkpoint's moving average."""


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of a run.

    Attributes:
        name: Its directory.
        iteration: Iterations done.
        score: Mean committed validation score of that iteration's episodes.
        average: Exponential moving average of the scores up to it, which decides what is best: the episodes of one
            iteration are few, and where hosts are drawn, their mean says as much of the draw as of the policy.
        git_commit: Of the code that trained it; None outside a checkout.
    """

    name: str
    iteration: int
    score: float
    average: float
    git_commit: str | None = None


class RunDirectory:
    """``config.json``, ``checkpoints/``, TensorBoard's event files, and what evaluation adds.

    ``checkpoints/index.json`` names the latest and the best checkpoint. It is replaced in one step after a
    checkpoint is complete, so that a run killed at any moment still has the one before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    @classmethod
    def create(cls, path: Path, config: TrainConfig) -> RunDirectory:
        """Begin a run.

        Raises:
            UserError: the directory already holds something.
        """
        run = cls(path)
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            raise UserError(f"{path} exists and is not empty: choose another --run-dir, or go on with --resume")
        run.checkpoints.mkdir(parents=True)
        run.write_config(config)
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Find a run.

        Raises:
            UserError: the directory holds none.
        """
        run = cls(path)
        if not run.config_path.is_file():
            raise UserError(f"{path} is not a run directory: it has no config.json (train makes one with --run-dir)")
        return run

    @classmethod
    def begun(cls, path: Path, config: TrainConfig) -> RunDirectory:
        """Begin a run of a study or a tuning, or find what there is of it.

        A play temperature has no part in training: another one than before is noted, and what is trained stays.

        Raises:
            UserError: it was begun with other settings.
        """
        run = cls(path)
        if not run.config_path.is_file():
            shutil.rmtree(path, ignore_errors=True)  # killed while the directory was made
            return cls.create(path, config)
        before = run.config()
        if before.playing_at(config.network.play_temperature) != config:
            raise UserError(f"{path} was trained with other settings: give another --output, or remove it")
        if before != config:
            run.write_config(config)
        return run

    @property
    def config_path(self) -> Path:
        """The run's config."""
        return self.path / CONFIG_FILE

    @property
    def checkpoints(self) -> Path:
        """Directory of all checkpoints."""
        return self.path / "checkpoints"

    def config(self) -> TrainConfig:
        """The run's config.

        Raises:
            UserError: it cannot be read.
        """
        return load_config(self.config_path)

    def write_config(self, config: TrainConfig) -> None:
        """Store the config, in one step."""
        replace_text(self.config_path, config.to_json())

    def index(self) -> dict[str, Checkpoint]:
        """Checkpoints by ``latest`` and ``best``; empty before the first.

        Raises:
            UserError: the index is damaged.
        """
        path = self.path / INDEX_FILE
        if not path.is_file():
            return {}
        try:
            return {which: Checkpoint(**entry) for which, entry in json.loads(path.read_text()).items()}
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}): restore it or train anew") from error

    def checkpoint(self, which: Which) -> tuple[Checkpoint, Path]:
        """A checkpoint and its directory.

        Raises:
            UserError: there is none.
        """
        index = self.index()
        if which not in index:
            raise UserError(f"{self.path} has no checkpoint yet: train for at least one iteration first")
        found = index[which]
        path = self.checkpoints / found.name
        if not path.is_dir():
            raise UserError(f"the {which} checkpoint {path} is missing: restore it or train anew")
        return found, path

    def save(self, iteration: int, score: float, write: Callable[[Path], None], keep: int = 1) -> Checkpoint:
        """Keep a new latest checkpoint, and it as the best if its moving average of scores is the highest yet.

        Args:
            iteration: Iterations done.
            score: Of this iteration's episodes.
            write: Fills the directory it is given.
            keep: Latest checkpoints that stay, beside the best.

        Returns:
            The new one.
        """
        index = self.index()
        before = index["latest"].average if index else math.nan
        if math.isnan(before) or math.isnan(score):  # an iteration in which no episode ended has no score
            average = before if math.isnan(score) else score
        else:
            average = before + AVERAGE_STEP * (score - before)
        new = Checkpoint(f"iteration-{iteration:06d}", iteration, score, average, git_commit())
        target = self.checkpoints / new.name
        unfinished = self.checkpoints / f".{new.name}.unfinished"
        for leftover in (unfinished, target):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished.mkdir()
        write(unfinished)
        unfinished.rename(target)
        best = index.get("best")
        index["latest"] = new
        index["best"] = new if best is None or not average <= best.average else best
        entries = {which: asdict(checkpoint) for which, checkpoint in index.items()}
        replace_text(self.path / INDEX_FILE, json.dumps(entries, indent=2) + "\n")
        # One beyond the latest is left from before a restart from it.
        present = sorted(path.name for path in self.checkpoints.glob("iteration-*") if path.name <= new.name)
        kept = {*present[-keep:], index["best"].name}
        for path in self.checkpoints.glob("iteration-*"):
            if path.name not in kept:
                shutil.rmtree(path)
        return new


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees either the old or the new content."""
    temporary = path.with_name(f".{path.name}.unfinished")
    temporary.write_text(text)
    os.replace(temporary, path)
