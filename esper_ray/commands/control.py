"""``control``: a host under a controller, and a word to one that is at work."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from envs.ranges import Large, Range, check_numbers
from esper_ray.config import DEFAULT_TASK, EnvConfig
from esper_ray.errors import UserError
from esper_ray.fields import TaskArgs
from esper_ray.terminal import command, under_way

if TYPE_CHECKING:
    from esper_ray.controller.emitting import Sink
    from esper_ray.controller.service import Controller

Word = Literal["train", "pause", "resume", "release", "status"]


@dataclass(frozen=True)
class Control:
    """Train a host of a task under a controller, or say something to a controller that is at work."""

    word: tyro.conf.Positional[Word] = "train"
    """train a host; pause a run: nothing is done with it until you resume it; release it from conservative mode; or
    show the status of all runs."""
    run_id: tyro.conf.Positional[str] = ""
    """The run that is paused, resumed or released."""
    explain: str | None = None
    """Print every decision on this run instead, with the signals that fired."""
    directory: Path = Path("var/controller")
    """Where the controller keeps its records; one controller uses it at a time."""
    policy: str = "heuristic"
    """Who proposes: a name, an export, an imitation, the file of a schedule, or FILE.py:CLASS."""
    observe: bool = False
    """Decide and record, but carry nothing out."""
    greedy: bool = False
    """Take the policy's likeliest action instead of drawing one."""
    settings: Path | None = None
    """JSON file of thresholds and deadlines."""
    amendments: Path | None = None
    """JSON file of one's own for the catalogue of blueprints."""
    tensorboard: Path | None = None
    """Where the pages of the runs go; by default beside the records."""
    prometheus_port: Annotated[int, Range(0, 65535, whole=True)] | None = None
    """Serve metrics to Prometheus on this port of this machine; 0 takes a free one."""
    task: str = DEFAULT_TASK
    """Data and host, by name."""
    task_args: TaskArgs = field(default_factory=dict)
    """Arguments of the task."""
    data_dir: Path | None = None
    """As for train."""
    max_epochs: Annotated[int, Range(12, 10**6, whole=True)] = 150
    """Epochs that the host is trained for."""
    seed: Large = 0
    """Of the host."""
    name: str = ""
    """Of the run, new in this directory; the policy's draws depend on it. By default TASK-SEED-NUMBER."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)

    def run(self, console: Console) -> None:
        """Do it."""
        if self.explain is not None:
            self._explain(self.explain, console)
        elif self.word == "train":
            self._train(console)
        elif self.word == "status":
            self._status(console)
        else:
            self._order(console)

    # ------------------------------------------------------------------ a word to one that is at work
    def _explain(self, run_id: str, console: Console) -> None:
        from esper_ray.controller.explaining import decision_table, fault_lines
        from esper_ray.controller.records import Records

        with Records.open(self.directory) as records:
            if run_id not in (runs := records.runs()):
                raise UserError(f"there is no run {run_id!r} in {self.directory}: {', '.join(runs) or 'there is none'}")
            console.print(fault_lines(records.faults()), end="")
            console.print(decision_table(run_id, records.records(run_id)))

    def _status(self, console: Console) -> None:
        from esper_ray.controller.explaining import breaker_table, fault_lines, status_table
        from esper_ray.controller.records import Records

        with Records.open(self.directory) as records:
            console.print(fault_lines(records.faults()), end="")
            console.print(status_table(records))
            console.print(breaker_table(records))

    def _order(self, console: Console) -> None:
        from esper_ray.controller.store import give_order

        if not self.run_id:
            raise UserError(f"{self.word} which run? {command('control', 'status')} lists them")
        paused = {"pause": True, "resume": False}.get(self.word)
        give_order(self.directory, self.run_id, paused=paused, release=self.word == "release")
        console.print(f"{self.run_id}: {self.word}, from its next decision on")

    # ------------------------------------------------------------------ a host under a controller
    def _train(self, console: Console) -> None:
        from esper_ray.controller.emitting import Telemetry
        from esper_ray.controller.evaluation import ControllerConfig, read_config
        from esper_ray.controller.service import Controller
        from esper_ray.process import settle, step_back

        if self.run_id:
            raise UserError(f"a new run has a name of its own: leave out {self.run_id!r}")
        env = EnvConfig(task=self.task, data_dir=self.data_dir, task_args=self.task_args, max_epochs=self.max_epochs)
        env.load_data()
        settle()
        config = ControllerConfig() if self.settings is None else read_config(self.settings)
        config = dataclasses.replace(config, greedy=self.greedy or config.greedy)
        with Telemetry(self._sinks(console)) as telemetry:
            with under_way(console, f"starting the policy {self.policy}"):
                controller = Controller(
                    self.policy,
                    self.directory,
                    config=config,
                    observe=self.observe,
                    amendments=self.amendments,
                    telemetry=telemetry,
                )
            with controller:
                # Where the trainer and the policy's process want the same core, the trainer waits: it has hours, the
                # policy milliseconds. Only now, as whatever a thread starts is as nice as that thread.
                step_back()
                self._grow(env, controller, console)

    def _sinks(self, console: Console) -> list[Sink]:
        from esper_ray.controller.prometheus import PrometheusSink
        from esper_ray.controller.run_page import DIRECTORY, RunPages

        pages = self.tensorboard or self.directory / DIRECTORY
        sinks: list[Sink] = [RunPages(pages)]
        if self.prometheus_port is not None:
            sinks.append(prometheus := PrometheusSink(self.prometheus_port))
            console.print(f"metrics: {prometheus.url}")
        console.print(f"page: {shlex.join(['tensorboard', '--logdir', str(pages)])}")
        return sinks

    def _new_name(self) -> str:
        from esper_ray.controller.records import Records

        with Records.open(self.directory) as records:
            taken = records.runs()
        return next(name for at in itertools.count(1) if (name := f"{self.task}-{self.seed}-{at}") not in taken)

    def _grow(self, env: EnvConfig, controller: Controller, console: Console) -> None:
        """The trainer: it knows of the controller what any user's loop does."""
        from envs.live.task_host import TaskLoop
        from envs.tasks import TaskError
        from esper_ray.live import LiveError, grow

        task, run_id = env.make_task(), self.name or self._new_name()
        try:
            loop = TaskLoop(task, self.max_epochs, self.seed)
            grower = grow(**loop.given, controller=controller.named(run_id), seed=self.seed)
        except (TaskError, LiveError) as error:
            raise UserError(str(error)) from error
        console.print(f"run {run_id} by {self.policy}")
        console.print(str(grower.decision))
        for _ in range(self.max_epochs):
            training_loss = loop.epoch()
            console.print(str(grower.end_epoch(training_loss=training_loss, samples=loop.samples)))
        console.print(str(grower.commit()))
        console.print(f"why: {command('control', '--explain', run_id, '--directory', self.directory)}")
