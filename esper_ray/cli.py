"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from esper_ray.config import PRESETS, EnvConfig, TaskArgs, TrainConfig
from esper_ray.errors import UserError
from esper_ray.run_directory import RunDirectory, Which

LOG_COLUMNS = 120

Preset = Literal["default", "quickstart", "debug"]


@dataclass(frozen=True)
class Train:
    """Train a policy that grows hosts."""

    config: tyro.conf.OmitArgPrefixes[TrainConfig]
    run_dir: Path | None = None
    """Where everything goes; by default runs/TASK-DATE-TIME."""
    resume: bool = False
    """Go on with the run in --run-dir, with its own settings but for those given here."""
    preset: Preset = "default"
    """Settings to start from: default, quickstart (ten minutes on two cores) or debug."""
    debug: bool = False
    """Same as --preset debug: small and in this process, so that breakpoints work."""

    def run(self, console: Console) -> None:
        """Train, and say where the results are."""
        from esper_ray.training import train

        config = self.config
        config.env.load_data()  # before anything is written
        if self.resume:
            if self.run_dir is None:
                raise UserError("--resume needs --run-dir: which run shall go on?")
            run = RunDirectory.open(self.run_dir)
        else:
            now = datetime.now(UTC).astimezone()
            path = self.run_dir or Path("runs") / f"{config.env.task}-{now:%Y%m%d-%H%M%S}"
            run = RunDirectory.create(path, config)
        console.print(f"{config.env.task}: {config.run.iterations} iterations, run directory {run.path}")
        train(run, config, console)
        console.print(f"watch: tensorboard --logdir {run.path}    compare: esper-ray evaluate {run.path}")


@dataclass(frozen=True)
class Evaluate:
    """Compare a trained policy with the controls on held-out hosts and the test split."""

    trained: tyro.conf.Positional[Path]
    """Run directory, or an export."""
    episodes: int = 64
    """Hosts; every policy gets the same ones."""
    seed: int = 0
    """Of the held-out hosts."""
    checkpoint: Which = "best"
    """Which of the run's checkpoints; an export holds only one."""
    data_dir: Path | None = None
    """Where the task's data are, if not where they were in training; an export does not say it."""
    workers: int = min(2, os.cpu_count() or 1)
    """Processes that share the policies."""

    def run(self, console: Console) -> None:
        """Evaluate, print the table, write evaluation.json and evaluation.png."""
        from esper_ray.controls import Trained
        from esper_ray.evaluation import evaluate
        from esper_ray.report import evaluation_figure, evaluation_table

        trained = Trained.open(self.trained, self.checkpoint, self.data_dir)
        _at_least("--episodes", self.episodes, 1)
        _at_least("--workers", self.workers, 1)
        _at_least("--seed", self.seed, 0)
        trained.env.load_data()
        with console.status("playing held-out episodes") as status:
            done: list[str] = []

            def on_done(name: str) -> None:
                done.append(name)
                status.update(f"played {', '.join(done)}")

            report = evaluate(trained, self.episodes, self.seed, self.workers, on_done)
        console.print(evaluation_table(report))
        evaluation_figure(report).savefig(trained.path / "evaluation.png")
        console.print(f"written: {trained.path / 'evaluation.json'} and evaluation.png beside it")


@dataclass(frozen=True)
class Replay:
    """Draw one held-out episode of a trained policy."""

    trained: tyro.conf.Positional[Path]
    """Run directory, or an export."""
    seed: int = 0
    """Of the held-out host."""
    checkpoint: Which = "best"
    """Which of the run's checkpoints; an export holds only one."""
    data_dir: Path | None = None
    """As for evaluate."""
    policy: str = "learned"
    """learned, or one of the controls: never_grow, random_valid, heuristic, fixed_schedule."""
    output: Path | None = None
    """Picture to write; by default replay-POLICY-SEED.png in the directory given."""

    def run(self, console: Console) -> None:
        """Play and draw."""
        from esper_ray.controls import Trained, make_policy
        from esper_ray.episodes import held_out_seeds
        from esper_ray.replay import draw_replay

        trained = Trained.open(self.trained, self.checkpoint, self.data_dir)
        _at_least("--seed", self.seed, 0)
        trained.env.load_data()
        policy = make_policy(self.policy, trained)
        title = f"{trained.env.task}, held-out host {self.seed}, {self.policy.replace('_', ' ')} policy"
        figure = draw_replay(policy, trained.env, held_out_seeds(self.seed, 1)[0], title)
        path = self.output or trained.path / f"replay-{self.policy}-{self.seed}.png"
        figure.savefig(path)
        console.print(f"written: {path}")


@dataclass(frozen=True)
class Export:
    """Write a trained policy, as safetensors with a JSON card, to hand on; evaluate and replay accept it."""

    run_dir: tyro.conf.Positional[Path]
    """Directory of the run."""
    out: tyro.conf.Positional[Path]
    """Directory to write, new or empty."""
    checkpoint: Which = "best"
    """Which of the run's checkpoints."""

    def run(self, console: Console) -> None:
        """Write it."""
        from esper_ray.export import write_export

        card = write_export(RunDirectory.open(self.run_dir), self.checkpoint, self.out)
        console.print(f"written: {self.out} ({card.sizes.parameters:,} parameters, iteration {card.iteration})")


@dataclass(frozen=True)
class Inspect:
    """Show what a task is made of: hosts, slots, blueprints, observation, action heads. Needs no data."""

    task: tyro.conf.Positional[str]
    """Name of the task."""
    data_dir: Path | None = None
    """As for train."""
    task_args: TaskArgs = field(default_factory=dict)
    """As for train."""
    markdown: bool = False
    """Print a page instead of tables."""

    def run(self, console: Console) -> None:
        """Print it."""
        from esper_ray.inspection import inspect_task, markdown, print_sections

        env = EnvConfig(task=self.task, data_dir=self.data_dir, task_args=self.task_args)
        sections = inspect_task(env.make_task())
        if self.markdown:
            console.out(markdown(self.task, sections), end="", highlight=False)
        else:
            print_sections(self.task, sections, console)


def _at_least(flag: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{flag} must be at least {least}, got {value}")


def _train_defaults(arguments: Sequence[str]) -> TrainConfig:
    """Where the other flags of ``train`` start from: a preset, or with --resume the run's own settings."""
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--preset", choices=PRESETS, default="default")
    flags.add_argument("--debug", action="store_true")
    flags.add_argument("--resume", action="store_true")
    flags.add_argument("--run-dir", "--run_dir", type=Path)
    known, _ = flags.parse_known_args(list(arguments))
    if known.resume and known.run_dir is not None:
        return RunDirectory.open(known.run_dir).config()
    return PRESETS["debug" if known.debug else known.preset]


def parse(arguments: Sequence[str]) -> Train | Evaluate | Replay | Export | Inspect:
    """The command that the arguments ask for.

    Raises:
        UserError: a value out of range.
        SystemExit: anything that the parser refuses (code 2), or --help (code 0).
    """
    defaults = _train_defaults(arguments[1:]) if arguments[:1] == ["train"] else TrainConfig()
    commands = (
        Annotated[Train, tyro.conf.subcommand("train", default=Train(config=defaults))]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Replay, tyro.conf.subcommand("replay")]
        | Annotated[Export, tyro.conf.subcommand("export")]
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
    except KeyboardInterrupt:
        Console(stderr=True).print("esper-ray: interrupted; checkpoints written before are intact (train --resume)")
        sys.exit(130)
