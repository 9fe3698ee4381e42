"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from esper_ray.commands.deployment import Export, Serve
from esper_ray.commands.evaluation import Evaluate, Replay, Search
from esper_ray.commands.inspection import Inspect
from esper_ray.commands.studies import Compare, Study, Tune
from esper_ray.commands.training import Train
from esper_ray.config import PRESETS, TrainConfig
from esper_ray.errors import UserError
from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.reading import expand_home

LOG_COLUMNS = 120


def _train_defaults(arguments: Sequence[str]) -> TrainConfig:
    """Where the other flags of ``train`` start from: a preset, or with --resume the run's own settings."""
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--preset", choices=PRESETS)
    flags.add_argument("--debug", action="store_true")
    flags.add_argument("--resume", action="store_true")
    flags.add_argument("--run-dir", "--run_dir")
    flags.add_argument("--storage")
    known, _ = flags.parse_known_args(list(arguments))
    if known.run_dir is not None and "://" in known.run_dir:
        raise UserError(
            f"--run-dir is a directory of this machine, got {known.run_dir}: choose one, and give the URI as --storage "
            "(with --resume the run is fetched from there if the directory does not exist)"
        )
    if known.resume and known.run_dir is not None:
        run_dir = Path(known.run_dir)
        if known.storage is not None and not run_dir.exists():
            from esper_ray.keeping.storage import Mirror

            Mirror(known.storage).fetch(run_dir)
        if known.debug or known.preset is not None:
            raise UserError("--resume goes on with the run's own settings: leave out --preset and --debug")
        return RunDirectory.open(run_dir).config()
    return PRESETS["debug" if known.debug else known.preset or "default"]


def parse(
    arguments: Sequence[str],
) -> Train | Evaluate | Search | Replay | Export | Serve | Study | Tune | Compare | Inspect:
    """The command that the arguments ask for.

    Raises:
        UserError: a value out of range.
        SystemExit: anything that the parser refuses (code 2), or --help (code 0).
    """
    arguments = [expand_home(argument) for argument in arguments]
    defaults = _train_defaults(arguments[1:]) if arguments[:1] == ["train"] else TrainConfig()
    commands = (
        Annotated[Train, tyro.conf.subcommand("train", default=Train(config=defaults))]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Search, tyro.conf.subcommand("search")]
        | Annotated[Replay, tyro.conf.subcommand("replay")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Serve, tyro.conf.subcommand("serve")]
        | Annotated[Study, tyro.conf.subcommand("study")]
        | Annotated[Tune, tyro.conf.subcommand("tune")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
        | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    )
    try:
        return tyro.cli(commands, prog="esper-ray", args=list(arguments))
    except ValueError as error:
        raise UserError(str(error)) from error


def main() -> None:
    """Entry point of ``esper-ray`` and ``python -m esper_ray``."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # Into a file or a pipe rich would wrap at 80 columns.
    console = Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=LOG_COLUMNS)
    try:
        parse(sys.argv[1:]).run(console)
    except UserError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"esper-ray: error: {error}", markup=False)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        kept = str(interrupt) or "checkpoints written before are intact (train --resume)"
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"esper-ray: interrupted; {kept}", markup=False)
        sys.exit(130)
