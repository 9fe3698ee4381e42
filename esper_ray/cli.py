"""The command line: parse, call, print.

Modules are imported where they are needed: a Ctrl-C finds :func:`main` there to answer it, and --help needs neither
torch nor Ray.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, get_args

from esper_ray.errors import UserError
from esper_ray.reading import expand_home
from esper_ray.stopping import say, stopped_by_signals

if TYPE_CHECKING:
    from esper_ray.commands import Command
    from esper_ray.config import TrainConfig

BOX = dict.fromkeys(map(ord, "╭╮╰╯─│"), " ")
"""What tyro draws around its refusals."""


class _Flags(argparse.ArgumentParser):
    """Refuses in our words."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _train_defaults(arguments: Sequence[str]) -> TrainConfig:
    """Where the other flags of ``train`` start from: a preset, or with --resume the run's own settings."""
    from esper_ray.commands.training import Preset
    from esper_ray.keeping.run_directory import RunDirectory
    from esper_ray.presets import PRESETS

    flags = _Flags(add_help=False, allow_abbrev=False)
    start = flags.add_mutually_exclusive_group()
    start.add_argument("--preset", choices=get_args(Preset))
    start.add_argument("--debug", action="store_true")
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


def _check_given_once(arguments: Sequence[str]) -> None:
    """Of a flag that is given twice tyro takes the last."""
    seen = set()
    for flag in (word.partition("=")[0] for word in arguments if word.startswith("--")):
        name = flag[2:].replace("_", "-").removeprefix("no-")
        name = f"{name}s" if name.endswith("task-arg") else name  # the alias of --task-args
        if name in seen:
            raise UserError(f"{flag} is given twice: give it once, with all its values")
        seen.add(name)


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments ask for.

    Raises:
        UserError: anything that cannot be used.
        SystemExit: --help (code 0).
    """
    import tyro

    from esper_ray.commands.control import Control
    from esper_ray.commands.deployment import Export, Serve
    from esper_ray.commands.evaluation import Evaluate, Replay, Search
    from esper_ray.commands.inspection import Inspect
    from esper_ray.commands.keys import Keys
    from esper_ray.commands.learn import Learn
    from esper_ray.commands.reports import Reports
    from esper_ray.commands.strategic import Strategic
    from esper_ray.commands.studies import Compare, Results, Study, Tune
    from esper_ray.commands.training import Train
    from esper_ray.commands.updates import Updates

    arguments = [expand_home(argument) for argument in arguments]
    _check_given_once(arguments)
    if arguments[:1] == ["train"]:
        train = tyro.conf.subcommand("train", default=Train(config=_train_defaults(arguments[1:])))
    else:
        train = tyro.conf.subcommand("train")
    commands = (
        Annotated[Train, train]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Search, tyro.conf.subcommand("search")]
        | Annotated[Replay, tyro.conf.subcommand("replay")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Serve, tyro.conf.subcommand("serve")]
        | Annotated[Study, tyro.conf.subcommand("study")]
        | Annotated[Results, tyro.conf.subcommand("results")]
        | Annotated[Tune, tyro.conf.subcommand("tune")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
        | Annotated[Inspect, tyro.conf.subcommand("inspect")]
        | Annotated[Control, tyro.conf.subcommand("control")]
        | Annotated[Keys, tyro.conf.subcommand("keys")]
        | Annotated[Reports, tyro.conf.subcommand("reports")]
        | Annotated[Updates, tyro.conf.subcommand("updates")]
        | Annotated[Learn, tyro.conf.subcommand("learn")]
        | Annotated[
            Strategic, tyro.conf.subcommand("strategic", description="Record episodes, and teach a graph policy.")
        ]
    )
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(commands, prog="esper-ray", args=list(arguments))
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(_one_line(said.getvalue())) from None
    except ValueError as error:
        raise UserError(str(error)) from error


def _one_line(refusal: str) -> str:
    """What tyro says below the title of a box, its parts apart."""
    lines = [" ".join(line.translate(BOX).split()) for line in refusal.splitlines()]
    parts = (" ".join(group) for filled, group in itertools.groupby(lines[1:], bool) if filled)
    return "; ".join(parts)


def main() -> None:
    """Entry point of ``esper-ray`` and ``python -m esper_ray``."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    ours = str(Path(__file__).parents[1])
    if sys.path[:1] != [ours]:  # a folder named envs where the user stands, or on PYTHONPATH, would hide ours
        sys.path.insert(0, ours)
    with stopped_by_signals():
        try:
            from esper_ray.terminal import output

            parse(sys.argv[1:]).run(output())
        except UserError as error:
            say(f"error: {error}")
            sys.exit(2)
        except BrokenPipeError:  # whoever reads has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            if error.filename is None:
                raise
            say(f"error: cannot use {error.filename}: {error.strerror}")  # its name is too long, say
            sys.exit(2)
