"""What a training run leaves on disk, and how it is found again."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter

from esper_ray.config import TrainConfig, load_config
from esper_ray.errors import UserError
from esper_ray.keeping.lock import LOCK_FILE, held
from esper_ray.keeping.manifest import check_manifest, write_manifest
from esper_ray.keeping.revision import git_commit
from esper_ray.keeping.writing import make_directories, new_directory, replace_text, writing
from esper_ray.reading import checked, read_json
from policies.replacing import UNFINISHED

if TYPE_CHECKING:
    from policies.weights import Weights

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
        averages: The same of every kind of score, where those of different kinds do not compare with each other;
            ``average`` is their mean, NaN until there is one of each. Empty in an index of before there were kinds.
    """

    name: str
    iteration: int
    score: float
    average: float
    git_commit: str | None = None
    averages: dict[str, float] = field(default_factory=dict)


Index = dict[Which, Checkpoint]
"""The latest and the best checkpoint; empty before the first."""


class RunDirectory:
    """``config.json``, ``checkpoints/``, TensorBoard's event files, and what evaluation adds.

    ``checkpoints/index.json`` names the latest and the best checkpoint. It is there from the beginning, and is replaced
    in one step after a checkpoint is complete and on disk, so that a run killed at any moment still has the one before.
    Who writes holds the directory (:func:`esper_ray.keeping.lock.held`); whoever reads does not have to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    @classmethod
    def create(cls, path: Path, config: TrainConfig) -> RunDirectory:
        """Begin a run.

        Raises:
            UserError: the directory already holds something, or cannot be written.
        """
        run = cls(path)
        make_directories(run.path)
        if not run._is_unused():
            raise UserError(f"{path} exists and is not empty: choose another directory, or go on with --resume")
        make_directories(run.checkpoints)
        run._write_index({})
        run.write_config(config)
        return run

    @classmethod
    @contextmanager
    def started(cls, path: Path, config: TrainConfig) -> Iterator[RunDirectory]:
        """Begin a run, and hold its directory.

        What was made is removed should an error or an interrupt of the user end it before the first checkpoint: the
        same command is to work afterwards.

        Raises:
            UserError: as :meth:`create`, or another process has the directory.
        """
        with held(path):
            run = cls.create(path, config)
            try:
                yield run
            except (UserError, KeyboardInterrupt):
                if not run.index():
                    run._remove_made()
                raise

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

        A play temperature has no part in training: another one than before is noted, and what is trained stays. The
        directory is held while something is written, and not afterwards.

        Raises:
            UserError: it was begun with other settings, the directory holds something else, or another process has it.
        """
        run = cls(path)
        if not run.config_path.is_file():
            with held(path):
                return cls.create(path, config)
        before = run.config()
        if before.playing_at(config.network.play_temperature) != config:
            raise UserError(f"{path} was trained with other settings: give another --output, or remove it")
        if before != config:
            with held(path):
                run.write_config(config)
        return run

    def _is_unused(self) -> bool:
        """Whether nothing is in the directory but what is there before a run has its config."""
        own = {self.path / LOCK_FILE, self.checkpoints, self.path / INDEX_FILE}
        return all(path in own or path.name.endswith(UNFINISHED) for path in self.path.rglob("*"))

    def _remove_made(self) -> None:
        """Remove what a run has before its first checkpoint; other files stay."""
        shutil.rmtree(self.checkpoints)
        for path in (self.config_path, *self.path.glob("events.out.tfevents.*")):
            path.unlink(missing_ok=True)

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

    def index(self) -> Index:
        """The checkpoints that there are.

        Raises:
            UserError: the index is missing or damaged.
        """
        path = self.path / INDEX_FILE
        damaged = f"{path} is damaged, restore it from a copy of the run or train anew"
        if not path.is_file():
            raise UserError(
                f"{path} is missing, and without it nobody knows what the checkpoints are: restore it from a copy of "
                "the run, or train anew in another directory; nothing was changed"
            )
        return checked_index(read_json(path), damaged)

    def iterations_done(self) -> int:
        """Iterations at the latest checkpoint; 0 before the first.

        Raises:
            UserError: the index is missing or damaged.
        """
        index = self.index()
        return index["latest"].iteration if index else 0

    def _write_index(self, index: Index) -> None:
        entries = {which: asdict(checkpoint) for which, checkpoint in index.items()}
        replace_text(self.path / INDEX_FILE, json.dumps(entries, indent=2) + "\n")

    def checkpoint(self, which: Which) -> tuple[Checkpoint, Path]:
        """A checkpoint and its directory, for who holds the run.

        Raises:
            UserError: there is none, or it is not what was written.
        """
        found = self._named(self.index(), which)
        path = self.checkpoints / found.name
        if not path.is_dir():
            raise UserError(f"the {which} checkpoint {path} is missing: restore it or train anew")
        check_manifest(path)
        return found, path

    def policy(self, which: Which) -> tuple[Index, Weights]:
        """The checkpoints and the weights of one, read at once: a training that goes on replaces both at any time.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        from policies.weights import Weights  # and torch with it, which takes a while

        while True:
            index = self.index()
            name = self._named(index, which).name
            try:
                return index, Weights.read(self.checkpoints / name / POLICY_FILE)
            except FileNotFoundError as error:
                if self._named(self.index(), which).name == name:
                    raise UserError(f"{error.filename} is missing: restore it or train anew") from error
            except OSError as error:
                raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    def _named(self, index: Index, which: Which) -> Checkpoint:
        if which not in index:
            raise UserError(f"{self.path} has no checkpoint yet: train for at least one iteration first")
        return index[which]

    def save(
        self,
        iteration: int,
        score: float,
        write: Callable[[Path], None],
        keep: int = 1,
        kinds: Mapping[str, float] | None = None,
    ) -> Checkpoint:
        """Keep a new latest checkpoint, and it as the best if its moving average of scores is the highest yet.

        Args:
            iteration: Iterations done.
            score: Of this iteration's episodes.
            write: Fills the directory it is given.
            keep: Latest checkpoints that stay, beside the best.
            kinds: This iteration's scores by kind, always of all kinds; NaN of one that it has none of. By default the
                score is the only one.

        Returns:
            The new one.

        Raises:
            UserError: it cannot be written, for a full disk, say; those before it are as they were.
        """
        index = self.index()
        averages = _averages(index.get("latest"), {"": score} if kinds is None else kinds)
        average = sum(averages.values()) / len(averages)
        new = Checkpoint(f"iteration-{iteration:06d}", iteration, score, average, git_commit(), averages)
        target = self.checkpoints / new.name
        for leftover in (target, *self.checkpoints.glob(f".*{UNFINISHED}")):  # of a process that was killed
            _remove(leftover)
        with new_directory(target) as unfinished:
            write(unfinished)
            write_manifest(unfinished)
        best = index.get("best")
        index["latest"] = new
        index["best"] = new if best is None or not average <= best.average else best
        self._write_index(index)
        # One beyond the latest is left from before a restart from it.
        present = sorted(path.name for path in self.checkpoints.glob("iteration-*") if path.name <= new.name)
        kept = {*present[-keep:], index["best"].name}
        for path in self.checkpoints.glob("iteration-*"):
            if path.name not in kept:
                _remove(path)
        return new


def _averages(before: Checkpoint | None, scores: Mapping[str, float]) -> dict[str, float]:
    """Moving averages by kind after another iteration; one in which no episode of a kind ended changes nothing."""
    averages = dict.fromkeys(scores, math.nan)
    if before is not None:
        averages |= before.averages or dict.fromkeys(scores, before.average)
    for kind, score in scores.items():
        if math.isnan(averages[kind]):
            averages[kind] = score
        elif not math.isnan(score):
            averages[kind] += AVERAGE_STEP * (score - averages[kind])
    return averages


def checked_index(content: object, damaged: str) -> Index:
    """The checkpoints that an index names.

    Args:
        content: As it was read.
        damaged: Says in a message where it was found, and what to do if it is no index.

    Raises:
        UserError: it is none.
    """
    index = checked(content, TypeAdapter(Index), damaged)
    if len(index) == 1:
        raise UserError(f"{damaged}: it must name the latest and the best checkpoint, or none")
    return index


def _remove(path: Path) -> None:
    with writing(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
