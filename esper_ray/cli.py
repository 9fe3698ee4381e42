"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
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
from esper_ray.serving.settings import ServiceConfig

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
    address: str | None = None
    """Ray cluster to train on: HOST:PORT, or auto for that of this machine. By default the cluster of RAY_ADDRESS,
    which `ray job submit` sets, and else a Ray of its own on this machine."""
    preset: Preset = "default"
    """Settings to start from: default, quickstart (ten minutes on two cores) or debug."""
    debug: bool = False
    """Same as --preset debug: small and in this process, so that breakpoints work."""

    def run(self, console: Console) -> None:
        """Train, and say where the results are."""
        from esper_ray.cluster import in_a_job
        from esper_ray.training import train

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
    policies: tuple[str, ...] = ()
    """Who plays; by default learned, never_grow, random_valid, heuristic, fixed_schedule, static_final, static_big."""
    schedule: Path | None = None
    """A schedule that `esper-ray search` found, to play as best_schedule too."""
    greedy: bool = False
    """Play the learned policy a second time, taking its most probable choices instead of drawing."""
    task: str | None = None
    """Another task than that of training, with as many slots: does what was learnt carry over?"""
    task_args: TaskArgs = field(default_factory=dict)
    """Arguments of the task, on top of those of training unless --task names another one."""
    data_dir: Path | None = None
    """Where the task's data are, if not where they were in training; an export does not say it."""
    output: Path | None = None
    """Report to write, with a picture beside it; by default evaluation.json in the directory given, or with --task
    or --task-args evaluation-TASK-ARGUMENTS.json."""
    workers: int = min(2, os.cpu_count() or 1)
    """Processes that share the policies."""

    def run(self, console: Console) -> None:
        """Evaluate, print the table, write the report and its picture."""
        from esper_ray.controls import BEST_SCHEDULE, LEARNED_GREEDY, Trained, World
        from esper_ray.evaluation import POLICIES, evaluate
        from esper_ray.report import evaluation_figure, evaluation_table
        from esper_ray.search import read_schedule

        trained = Trained.open(self.trained, self.checkpoint, World(self.task, self.task_args, self.data_dir))
        _at_least("--episodes", self.episodes, 1)
        _at_least("--workers", self.workers, 1)
        _at_least("--seed", self.seed, 0)
        trained.env.load_data()
        schedule = None if self.schedule is None else read_schedule(self.schedule)
        extra = [LEARNED_GREEDY] * self.greedy + [BEST_SCHEDULE] * (schedule is not None)
        names = tuple(dict.fromkeys((*(self.policies or POLICIES), *extra)))
        output = self.output or trained.path / f"{self._name()}.json"
        with console.status("playing held-out episodes") as status:
            done: list[str] = []

            def on_done(name: str) -> None:
                done.append(name)
                status.update(f"played {', '.join(done)}")

            report = evaluate(
                trained,
                self.episodes,
                self.seed,
                self.workers,
                on_done,
                names=names,
                schedule=schedule,
                output=output,
            )
        console.print(evaluation_table(report))
        picture = output.with_suffix(".png")
        evaluation_figure(report).savefig(picture)
        console.print(f"written: {output} and {picture.name} beside it")

    def _name(self) -> str:
        """The default report's name, different for another world than that of training."""
        arguments = (f"{key}={Path(value).name}" for key, value in sorted(self.task_args.items()))
        return "-".join(("evaluation", *([self.task] if self.task else []), *arguments))


@dataclass(frozen=True)
class Search:
    """Search for the best fixed schedule of growth: a control for evaluate --schedule."""

    world: tyro.conf.Positional[str]
    """A run directory, for its task and as many host epochs as its training had; or a task's name."""
    host_epochs: int | None = None
    """Training epochs of hosts that the search may spend in all."""
    max_epochs: int | None = None
    """Training epochs of one host; by default as in the run, or as train's default."""
    task_args: TaskArgs = field(default_factory=dict)
    """Arguments of the task, on top of the run's."""
    data_dir: Path | None = None
    """As for train."""
    seed: int = 0
    """Of the schedules that are tried and of the hosts."""
    output: Path | None = None
    """Schedule to write, with its trace beside it; by default best_schedule.json in the run directory, or
    best_schedule-TASK.json here. A search that was interrupted goes on from the trace."""
    workers: int = min(2, os.cpu_count() or 1)
    """Processes that train hosts."""

    def run(self, console: Console) -> None:
        """Search, print the finalists, write the schedule and the trace."""
        from esper_ray.report import search_progress, search_table
        from esper_ray.search import SearchSettings, read_trace, search_schedule, write_schedule, write_trace

        _at_least("--workers", self.workers, 1)
        _at_least("--seed", self.seed, 0)
        env, host_epochs, path = self._resolved()
        env.load_data()
        settings = SearchSettings(host_epochs, self.seed, self.workers)
        known = read_trace(path, env, settings)
        if known:
            console.print(f"goes on after {known[-1].name} of {path.name}")
        with search_progress(console) as on_progress:
            result = search_schedule(
                env, settings, on_progress, lambda rungs: write_trace(path, env, settings, rungs), known
            )
        write_schedule(path, env, settings, result)
        console.print(search_table(env, result))
        console.print(f"written: {path}    play it: esper-ray evaluate RUN --schedule {path}")

    def _resolved(self) -> tuple[EnvConfig, int, Path]:
        """World, budget and output."""
        from esper_ray.controls import World
        from esper_ray.search import trained_host_epochs

        directory = Path(self.world)
        changes = World(None, self.task_args, self.data_dir)
        if directory.is_dir():
            run = RunDirectory.open(directory)
            env, path = changes.of(run.config().env), run.path / "best_schedule.json"
            budget = trained_host_epochs(run) if self.host_epochs is None else self.host_epochs
        elif self.host_epochs is None:
            raise UserError(
                f"{self.world} is no run directory whose training could say how long to search: give --host-epochs"
            )
        else:
            env = EnvConfig(task=self.world, data_dir=self.data_dir, task_args=self.task_args)
            path, budget = Path(f"best_schedule-{self.world}.json"), self.host_epochs
        if self.max_epochs is not None:
            env = dataclasses.replace(env, max_epochs=self.max_epochs)
        return env, budget, self.output or path


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
        from esper_ray.controls import Trained, World, make_policy
        from esper_ray.episodes import held_out_seeds
        from esper_ray.replay import draw_replay

        trained = Trained.open(self.trained, self.checkpoint, World(data_dir=self.data_dir))
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
class Serve:
    """Answer actions for observations over HTTP, each session with its own memory (docs/serving.md)."""

    export: tyro.conf.Positional[Path]
    """What `esper-ray export` wrote."""
    service: tyro.conf.OmitArgPrefixes[ServiceConfig] = field(default_factory=ServiceConfig)

    def run(self, console: Console) -> None:
        """Serve until Ctrl-C."""
        from esper_ray.serving.service import serve_until_interrupted

        serve_until_interrupted(self.export, self.service, console)


@dataclass(frozen=True)
class Study:
    """Train every arm of a study with several seeds, evaluate all on held-out hosts, report. Resumes by itself."""

    study: tyro.conf.Positional[Path]
    """YAML file, see docs/studies.md."""
    output: Path | None = None
    """Directory for runs, results and report; by default runs/studies/NAME, after the file."""
    workers: int = min(2, os.cpu_count() or 1)
    """Processes that share the evaluations; 0 plays them in this one."""

    def run(self, console: Console) -> None:
        """Do what is not done yet, then report."""
        from esper_ray import study
        from esper_ray.report import evaluation_table
        from esper_ray.study_report import write_report

        spec = study.Study.read(self.study)
        _at_least("--workers", self.workers, 0)
        for env in (*(config.env for config in spec.configs.values()), *spec.worlds.values()):
            env.load_data()
        directory = study.StudyDirectory(self.output or Path("runs") / "studies" / self.study.stem, spec)
        try:
            study.run_study(directory, self.workers, console)
        except (study.StudyInterruptedError, KeyboardInterrupt):
            again = f"esper-ray study {self.study}" + (f" --output {self.output}" if self.output else "")
            raise KeyboardInterrupt(f"what is done is kept; go on with: {again}") from None
        report = write_report(directory)
        for evaluation in report["evaluations"].values():
            console.print(evaluation_table(evaluation))
        console.print(f"written: {directory.path}/study.md, study.json and pictures beside them")


@dataclass(frozen=True)
class Compare:
    """Put runs side by side: settings that differ, learning curves, evaluations."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, two or more."""
    output: Path | None = None
    """Directory for comparison.png and comparison.md; by default the current one."""

    def run(self, console: Console) -> None:
        """Print the tables and write both."""
        from esper_ray.compare import compare, comparison_figure, comparison_markdown, comparison_tables

        if len(self.runs) < 2:
            raise UserError("give two or more run directories to compare")
        comparison = compare(self.runs)
        for table in comparison_tables(comparison):
            console.print(table)
        output = self.output or Path()
        output.mkdir(parents=True, exist_ok=True)
        comparison_figure(comparison).savefig(output / "comparison.png")
        (output / "comparison.md").write_text(comparison_markdown(comparison))
        console.print(f"written: {output / 'comparison.png'} and comparison.md")


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


def _check_unused(storage: str | None) -> None:
    from esper_ray.storage import Mirror

    if storage is not None and Mirror(storage).iteration() is not None:
        raise UserError(f"{storage} holds a run already: choose another --storage, or go on with --resume")


def _check_not_behind(run: RunDirectory, storage: str | None) -> None:
    """A run that went on elsewhere must not be overwritten by its older self."""
    from esper_ray.storage import Mirror

    done = run.index()["latest"].iteration if run.index() else 0
    sent = 0 if storage is None else Mirror(storage).iteration() or 0
    if sent > done:
        raise UserError(
            f"{storage} has {sent} iterations of this run, {run.path} only {done}: give another --run-dir to fetch it"
        )


def _train_defaults(arguments: Sequence[str]) -> TrainConfig:
    """Where the other flags of ``train`` start from: a preset, or with --resume the run's own settings."""
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--preset", choices=PRESETS, default="default")
    flags.add_argument("--debug", action="store_true")
    flags.add_argument("--resume", action="store_true")
    flags.add_argument("--run-dir", "--run_dir", type=Path)
    flags.add_argument("--storage")
    known, _ = flags.parse_known_args(list(arguments))
    if known.resume and known.run_dir is not None:
        if known.storage is not None and not known.run_dir.exists():
            from esper_ray.storage import Mirror

            Mirror(known.storage).fetch(known.run_dir)
        return RunDirectory.open(known.run_dir).config()
    return PRESETS["debug" if known.debug else known.preset]


def parse(
    arguments: Sequence[str],
) -> Train | Evaluate | Search | Replay | Export | Serve | Study | Compare | Inspect:
    """The command that the arguments ask for.

    Raises:
        UserError: a value out of range.
        SystemExit: anything that the parser refuses (code 2), or --help (code 0).
    """
    defaults = _train_defaults(arguments[1:]) if arguments[:1] == ["train"] else TrainConfig()
    commands = (
        Annotated[Train, tyro.conf.subcommand("train", default=Train(config=defaults))]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Search, tyro.conf.subcommand("search")]
        | Annotated[Replay, tyro.conf.subcommand("replay")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Serve, tyro.conf.subcommand("serve")]
        | Annotated[Study, tyro.conf.subcommand("study")]
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
