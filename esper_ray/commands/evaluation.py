"""``evaluate``, ``search`` and ``replay``: what one trained policy is worth."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from envs.ranges import Count, Large, Processes, Range, check_numbers
from esper_ray.commands.checks import WORKERS, picture_name, writable
from esper_ray.config import EnvConfig, Epochs
from esper_ray.errors import UserError
from esper_ray.fields import TaskArgs
from esper_ray.keeping.lock import LOCK_FILE, locked
from esper_ray.keeping.run_directory import RunDirectory, Which
from esper_ray.keeping.writing import replace_figure
from esper_ray.terminal import under_way
from policies.network_config import Temperature

if TYPE_CHECKING:
    from esper_ray.measuring.trained import Trained


@dataclass(frozen=True)
class Evaluate:
    """Compare a trained policy with the controls on held-out hosts and the test split."""

    trained: tyro.conf.Positional[str]
    """Run directory, or an export; a path, or a URI (s3://, gs://, hdfs://, file://)."""
    episodes: Count = 64
    """Hosts; every policy gets the same ones."""
    seed: Large = 0
    """Of the held-out hosts."""
    checkpoint: Which = "latest"
    """latest is what training ended with; best had the highest moving average of scores in it, should they have fallen
    since. An export holds only one."""
    policies: tuple[str, ...] = ()
    """Who plays; by default learned, never_grow, random_valid, heuristic, fixed_schedule, periodic, gradient,
    static_final, static_big."""
    schedule: Path | None = None
    """A schedule that `esper-ray search` found, to play as best_schedule too."""
    temperature: Temperature | None = None
    """At which the learned policy draws, in place of the play_temperature of its training."""
    greedy: bool = False
    """Play the learned policy a second time, taking its most probable choices instead of drawing."""
    task: str | None = None
    """Another task than that of training, with as many slots: does what was learnt carry over? After a training in
    several tasks it is evaluated in all of them, one by one, unless one is named here."""
    task_args: TaskArgs = field(default_factory=dict)
    """Arguments of the task, on top of those of training unless --task names another one."""
    data_dir: Path | None = None
    """Where the task's data are, if not where they were in training; an export does not say it."""
    max_epochs: Epochs | None = None
    """Training epochs of a host; by default as in training, and where they were drawn there, the most."""
    output: Path | None = None
    """Report to write, with a picture beside it; by default evaluation.json in the directory given (of a URI: here), or
    with --task, --task-args or --max-epochs evaluation-TASK-ARGUMENTS-EPOCHS-epochs.json."""
    workers: Processes = WORKERS
    """Processes that share the policies."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)

    def run(self, console: Console) -> None:
        """Evaluate, print the table, write the report and its picture."""
        from esper_ray.keeping.storage import at_hand

        with at_hand(self.trained) as path:
            for command in self._one_by_one(path):
                command._evaluate(path, console)

    def _one_by_one(self, path: Path) -> list[Evaluate]:
        """This evaluation in every world: after a training in several tasks those of all, unless one is named."""
        from esper_ray.measuring.trained import Trained

        others = () if self.task else Trained.open(path, self.checkpoint).tasks[1:]
        if others and self.output:
            raise UserError(f"--output {self.output} is one report, and there were several tasks: name one with --task")
        return [self, *(dataclasses.replace(self, task=task) for task in others)]

    def _evaluate(self, path: Path, console: Console) -> None:
        from esper_ray.measuring.controls import BEST_SCHEDULE, LEARNED_GREEDY
        from esper_ray.measuring.evaluation import POLICIES, check_policies, evaluate
        from esper_ray.measuring.evaluation_report import comparison_table, evaluation_figure, evaluation_table
        from esper_ray.measuring.search.schedule_files import read_schedule
        from esper_ray.measuring.trained import Trained, World

        trained = Trained.open(path, self.checkpoint, World(self.task, self.task_args, self.data_dir, self.max_epochs))
        if self.temperature is not None:
            trained = trained.at_temperature(self.temperature)
        trained.env.load_data()
        schedule = None if self.schedule is None else read_schedule(self.schedule)
        extra = [LEARNED_GREEDY] * self.greedy + [BEST_SCHEDULE] * (schedule is not None)
        names = tuple(dict.fromkeys((*(self.policies or POLICIES), *extra)))
        output = self.output or _results(self.trained, trained) / f"{self._name()}.json"
        if output.suffix == ".png":
            raise UserError(f"--output {output} names the report, which is JSON; its picture is put beside it")
        check_policies(names, trained, schedule)
        picture = writable(output.with_suffix(".png"))
        writable(output)
        with under_way(console, "playing held-out episodes") as now:
            done: list[str] = []

            def on_done(name: str) -> None:
                done.append(name)
                now(f"playing held-out episodes; played so far: {', '.join(done)}")

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
        if report["differences"]:
            console.print(comparison_table(report))
        replace_figure(picture, evaluation_figure(report))
        console.print(f"written: {output} and {picture.name} beside it")

    def _name(self) -> str:
        """The default report's name, different for another world than that of training."""
        arguments = (f"{key}={Path(value).name}" for key, value in sorted(self.task_args.items()))
        return "-".join(("evaluation", *([self.task] if self.task else []), *arguments, *_lasting(self.max_epochs)))


def _lasting(max_epochs: int | None) -> list[str]:
    """What a file's name says of an episode's length, unless it is that of training."""
    return [] if max_epochs is None else [f"{max_epochs}-epochs"]


@dataclass(frozen=True)
class Search:
    """Search for the best fixed schedule of growth: a control for evaluate --schedule."""

    world: tyro.conf.Positional[str]
    """A run directory, for its task and as many host epochs as its training had; or a task's name."""
    host_epochs: Annotated[int, Range(1, 2**53, whole=True)] | None = None
    """Training epochs of hosts that a search may spend in all."""
    searches: Count = 1
    """How many, each with as many host epochs: what one finds is in part luck. Their winners meet on fresh hosts."""
    max_epochs: Epochs | None = None
    """Training epochs of one host; by default as in the run (where they were drawn, the most), or as train's
    default."""
    task_args: TaskArgs = field(default_factory=dict)
    """Arguments of the task, on top of the run's."""
    data_dir: Path | None = None
    """As for train."""
    seed: Large = 0
    """Of the schedules that are tried and of the hosts."""
    output: Path | None = None
    """Schedule to write, with its trace beside it; by default best_schedule.json in the run directory, or
    best_schedule-TASK.json here. A search that was interrupted goes on from the trace."""
    workers: Processes = WORKERS
    """Processes that train hosts."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)

    def run(self, console: Console) -> None:
        """Search, print the finalists, write the schedule and the trace."""
        from esper_ray.measuring.search.halving import SearchSettings, search_schedule
        from esper_ray.measuring.search.schedule_files import read_trace, trace_path, write_schedule, write_trace
        from esper_ray.measuring.search.search_report import search_progress, search_table

        env, host_epochs, path = self._resolved()
        for file in (path, trace_path(path)):
            writable(file)
        env.load_data()
        settings = SearchSettings(host_epochs, self.seed, self.workers, self.searches)
        with locked(path.with_name(f".{path.name}{LOCK_FILE}"), path):
            known = read_trace(path, env, settings)
            if known:
                console.print(f"goes on after {known[-1].name} of {path.name}")
            try:
                with search_progress(console) as on_progress:
                    result = search_schedule(
                        env, settings, on_progress, lambda rungs: write_trace(path, env, settings, rungs), known
                    )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"rungs that are through are in {trace_path(path)}, and the same command goes on after them"
                ) from None
            write_schedule(path, env, settings, result)
        console.print(search_table(env, result))
        console.print(f"written: {path}    play it: esper-ray evaluate RUN --schedule {shlex.quote(str(path))}")

    def _resolved(self) -> tuple[EnvConfig, int, Path]:
        """World, budget and output."""
        from esper_ray.measuring.search.schedule_files import trained_host_epochs
        from esper_ray.measuring.trained import World

        directory = Path(self.world)
        changes = World(None, self.task_args, self.data_dir, self.max_epochs)
        if directory.is_dir():
            run = RunDirectory.open(directory)
            env, path = changes.of(run.config().env), run.path / "best_schedule.json"
            budget = trained_host_epochs(run) if self.host_epochs is None else self.host_epochs
        elif self.host_epochs is None:
            raise UserError(
                f"{self.world} is no run directory whose training could say how long to search: give --host-epochs"
            )
        else:
            env = EnvConfig(task=self.world, data_dir=self.data_dir, task_args=self.task_args).lasting(self.max_epochs)
            path, budget = Path(f"best_schedule-{self.world}.json"), self.host_epochs
        return env, budget, self.output or path


@dataclass(frozen=True)
class Replay:
    """Draw one held-out episode of a trained policy."""

    trained: tyro.conf.Positional[str]
    """Run directory, or an export; a path, or a URI (s3://, gs://, hdfs://, file://)."""
    seed: Large = 0
    """Of the held-out host."""
    checkpoint: Which = "latest"
    """latest is what training ended with; best had the highest moving average of scores in it, should they have fallen
    since. An export holds only one."""
    data_dir: Path | None = None
    """As for evaluate."""
    task: str | None = None
    """Another task than that of training, or than the first of several."""
    max_epochs: Epochs | None = None
    """As for evaluate."""
    policy: str = "learned"
    """learned, or one of the controls: never_grow, random_valid, heuristic, fixed_schedule, periodic, gradient."""
    output: Path | None = None
    """Picture to write; by default replay-POLICY-SEED.png in the directory given (of a URI: here), or with
    --task or --max-epochs replay-POLICY-SEED-TASK-EPOCHS-epochs.png."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)

    def run(self, console: Console) -> None:
        """Play and draw."""
        from esper_ray.keeping.storage import at_hand

        with at_hand(self.trained) as path:
            self._draw(path, console)

    def _draw(self, path: Path, console: Console) -> None:
        from esper_ray.measuring.controls import make_policy
        from esper_ray.measuring.episodes import held_out_seeds
        from esper_ray.measuring.replay import draw_replay
        from esper_ray.measuring.trained import Trained, World

        trained = Trained.open(
            path, self.checkpoint, World(self.task, data_dir=self.data_dir, max_epochs=self.max_epochs)
        )
        world = (*([self.task] if self.task else []), *_lasting(self.max_epochs))
        output = self.output or _results(self.trained, trained) / (
            "-".join(("replay", self.policy, str(self.seed), *world)) + ".png"
        )
        picture_name(output)
        trained.env.load_data()
        policy = make_policy(self.policy, trained.env, trained)
        writable(output)
        title = f"{trained.env.task}, held-out host {self.seed}, {self.policy.replace('_', ' ')} policy"
        figure = draw_replay(policy, trained.env, held_out_seeds(self.seed, 1)[0], title)
        replace_figure(output, figure)
        console.print(f"written: {output}")


def _results(place: str, trained: Trained) -> Path:
    """Where results go unless told otherwise: beside the policy, or here if it lies elsewhere."""
    from esper_ray.keeping.storage import is_uri

    return Path() if is_uri(place) else trained.path
