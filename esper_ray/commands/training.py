"""``train``."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from esper_ray.config import TrainConfig
from esper_ray.errors import UserError
from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.terminal import command

Preset = Literal["default", "quickstart", "thorough", "debug"]


@dataclass(frozen=True)
class Train:
    """Train a policy that grows hosts."""

    config: tyro.conf.OmitArgPrefixes[TrainConfig]
    run_dir: Path | None = None
    """Where everything goes; by default runs/TASK-DATE-TIME."""
    resume: bool = False
    """Go on with the run in --run-dir, with its own settings but for those given here."""
    address: str | None = None
    """Ray cluster to train on: HOST:PORT, or auto for that of this machine. By default the cluster of RAY_ADDRESS,
    which `ray job submit` sets, and else a Ray of its own on this machine."""
    preset: Preset = "default"
    """Settings to start from: default, quickstart (ten minutes on two cores), thorough (up to an hour) or debug."""
    debug: bool = False
    """Same as --preset debug: small and in this process, so that breakpoints work."""

    def run(self, console: Console) -> None:
        """Train, and say where the results are."""
        from esper_ray.cluster import in_a_job
        from esper_ray.learning.training import going_on, train

        config = self.config
        config.env.load_data()  # before anything is written
        if self.resume:
            if self.run_dir is None:
                raise UserError("--resume needs --run-dir: which run shall go on?")
            run = RunDirectory.open(self.run_dir)
            _check_not_behind(run, config.run.storage)
        else:
            _check_unused(config.run.storage)
            now = datetime.now(UTC).astimezone()
            path = self.run_dir or Path("runs") / f"{config.env.task}-{now:%Y%m%d-%H%M%S}"
            if in_a_job() and not path.is_absolute() and config.run.storage is None:
                raise UserError(
                    f"a job's working directory is thrown away after it, and {path} with it: give an absolute "
                    "--run-dir, or --storage"
                )
            run = RunDirectory.create(path, config)
        console.print(f"{config.env.task}: {config.run.iterations} iterations, run directory {run.path}")
        try:
            train(run, config, console, self.address)
        except UserError:
            if not self.resume and not run.index():
                shutil.rmtree(run.path)  # nothing is in it yet, and the same command is to work once that is mended
            raise
        except KeyboardInterrupt:
            if run.index():
                raise KeyboardInterrupt(f"finished iterations are saved; go on with: {going_on(run)}") from None
            raise
        console.print(
            f"watch: {shlex.join(['tensorboard', '--logdir', str(run.path)])}    "
            f"compare: {command('evaluate', run.path)}"
        )


def _check_unused(storage: str | None) -> None:
    from esper_ray.keeping.storage import Mirror

    if storage is not None and Mirror(storage).iteration() is not None:
        raise UserError(f"{storage} holds a run already: choose another --storage, or go on with --resume")


def _check_not_behind(run: RunDirectory, storage: str | None) -> None:
    """A run that went on elsewhere must not be overwritten by its older self."""
    from esper_ray.keeping.storage import Mirror

    done = run.index()["latest"].iteration if run.index() else 0
    sent = 0 if storage is None else Mirror(storage).iteration() or 0
    if sent > done:
        raise UserError(
            f"{storage} has {sent} iterations of this run, {run.path} only {done}: give another --run-dir to fetch it"
        )
