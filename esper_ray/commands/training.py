"""``train``."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from esper_ray.config import TrainConfig
from esper_ray.errors import UserError
from esper_ray.keeping.lock import held
from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.keeping.writing import make_directories, remove_empty
from esper_ray.terminal import command

Preset = Literal["default", "quickstart", "thorough", "debug"]


@dataclass(frozen=True)
class Train:
    """Train a policy that grows hosts."""

    config: tyro.conf.OmitArgPrefixes[TrainConfig]
    run_dir: Path | None = None
    """Where everything goes; by default runs/TASK-DATE-TIME."""
    resume: bool = False
    """Go on with the run in --run-dir, with its own settings but for those given here: of how much is trained, where,
    and how it is learnt. The world and the network stay as they were."""
    address: str | None = None
    """Ray cluster to train on: HOST:PORT, or auto for that of this machine. By default the cluster of RAY_ADDRESS,
    which `ray job submit` sets, and else a Ray of its own on this machine."""
    preset: Preset = "default"
    """Settings to start from: default, quickstart (ten minutes on two cores), thorough (up to an hour) or debug."""
    debug: bool = False
    """Same as --preset debug: small and in this process, so that breakpoints work."""

    def run(self, console: Console) -> None:
        """Train, and say where the results are."""
        from esper_ray.learning.training import going_on, train

        config = self.config
        config.env.load_data()  # before anything is written
        with self._held_run() as run:
            tasks = ", ".join(config.env.task_names)
            console.print(f"{tasks}: {config.run.iterations} iterations, run directory {run.path}")
            try:
                train(run, config, console, self.address)
            except KeyboardInterrupt:
                if run.index():
                    raise KeyboardInterrupt(f"finished iterations are saved; go on with: {going_on(run)}") from None
                if self.resume:
                    raise KeyboardInterrupt(f"no iteration is finished yet; begin with: {going_on(run)}") from None
                raise
        console.print(
            f"watch: {shlex.join(['tensorboard', '--logdir', str(run.path)])}    "
            f"compare: {command('evaluate', run.path)}"
        )

    @contextmanager
    def _held_run(self) -> Iterator[RunDirectory]:
        """The run to train, new or found, and kept from other processes."""
        from esper_ray.cluster import in_a_job

        storage = self.config.run.storage
        if self.resume:
            if self.run_dir is None:
                raise UserError("--resume needs --run-dir: which run shall go on?")
            run = RunDirectory.open(self.run_dir)
            with held(run.path):
                _check_not_behind(run, storage)
                yield run
            return
        _check_unused(storage)
        if in_a_job() and storage is None and (self.run_dir is None or not self.run_dir.is_absolute()):
            raise UserError(
                "a job's working directory is thrown away after it, and what is written there with it: give an "
                "absolute --run-dir, or --storage"
            )
        made = _new_directories("+".join(self.config.env.task_names)) if self.run_dir is None else []
        try:
            with RunDirectory.started(self.run_dir or made[-1], self.config) as run:
                yield run
        finally:
            remove_empty(made)


def _new_directories(task: str) -> list[Path]:
    """Make a directory for a run that was given none; two commands of one second get two.

    Returns:
        What was made: the directory, and before it the one that it is in if that was not there.
    """
    stem = f"{task}-{datetime.now(UTC).astimezone():%Y%m%d-%H%M%S}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    above = make_directories(Path("runs"))  # first: who has made it may still lose the first name to somebody else
    return above + next(filter(None, (make_directories(Path("runs", name)) for name in names)))


def _check_unused(storage: str | None) -> None:
    from esper_ray.keeping.storage import Mirror

    if storage is not None and Mirror(storage).iteration() is not None:
        raise UserError(f"{storage} holds a run already: choose another --storage, or go on with --resume")


def _check_not_behind(run: RunDirectory, storage: str | None) -> None:
    """A run that went on elsewhere must not be overwritten by its older self."""
    from esper_ray.keeping.storage import Mirror

    done = run.iterations_done()
    sent = 0 if storage is None else Mirror(storage).iteration() or 0
    if sent > done:
        raise UserError(
            f"{storage} has {sent} iterations of this run, {run.path} only {done}: give another --run-dir to fetch it"
        )
