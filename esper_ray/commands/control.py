"""``control``: a host under a controller, in one process or over a bus, and a word to one that is at work."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from uuid import uuid4

import tyro
from rich.console import Console

from envs.ranges import Large, Range, check_numbers
from esper_ray.config import DEFAULT_TASK, EnvConfig
from esper_ray.errors import UserError
from esper_ray.fields import TaskArgs
from esper_ray.terminal import command

if TYPE_CHECKING:
    from esper_ray.bus.interface import Bus
    from esper_ray.controller.remote.serving import Serving
    from esper_ray.live.growing import Controlling

BUS_VARIABLE = "ESPER_BUS"
Word = Literal["train", "serve", "join", "pause", "resume", "release", "status"]


@dataclass(frozen=True)
class Control:
    """Train a host of a task under a controller, or say something to a controller that is at work."""

    word: tyro.conf.Positional[Word] = "train"
    """train a host; serve runs that come over a bus; join such a service with a host; pause a run: nothing is done with
    it until you resume it; release it from conservative mode; or show the status of all runs."""
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
    bus: str | None = None
    """redis://HOST:PORT/DB: train with the controller in a process of its own, and a bus between the two
    (docs/cluster/control.md). The variable ESPER_BUS has the same effect, and is seen by nobody else."""
    bus_name: str = "esper"
    """Of the bus on the server; buses of other names know nothing of this one."""
    keys: Path | None = None
    """File of the signing keys for a bus; by default signing_keys.json in the directory."""
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
        elif self.word == "serve":
            self._serve(console)
        elif self.word == "join":
            self._join(console)
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
        if self._address is not None:
            from esper_ray.bus.showing import bus_table

            with self._serving.opened_bus() as bus:
                console.print(bus_table(bus))

    def _order(self, console: Console) -> None:
        from esper_ray.controller.store import give_order

        if not self.run_id:
            raise UserError(f"{self.word} which run? {command('control', 'status')} lists them")
        paused = {"pause": True, "resume": False}.get(self.word)
        give_order(self.directory, self.run_id, paused=paused, release=self.word == "release")
        console.print(f"{self.run_id}: {self.word}, from its next decision on")

    # ------------------------------------------------------------------ a host under a controller
    @property
    def _address(self) -> str | None:
        return self.bus or os.environ.get(BUS_VARIABLE)

    @property
    def _serving(self) -> Serving:
        from esper_ray.controller.remote.serving import Serving

        return Serving(
            policy=self.policy,
            directory=self.directory,
            settings=self.settings,
            greedy=self.greedy,
            observe=self.observe,
            amendments=self.amendments,
            tensorboard=self.tensorboard,
            prometheus_port=self.prometheus_port,
            bus=self._address,
            bus_name=self.bus_name,
            keys=self.keys,
        )

    @property
    def _over_bus(self) -> Serving:
        if self._address is None:
            raise UserError(f"{self.word} over which bus? Give --bus redis://HOST:PORT/DB, or set {BUS_VARIABLE}")
        return self._serving

    def _train(self, console: Console) -> None:
        """Everything that a run under a controller needs."""
        from esper_ray.controller.emitting import Telemetry
        from esper_ray.process import step_back

        env, serving = self._env(), self._serving
        if self._address is not None:
            self._train_over_bus(env, serving, console)
            return
        with Telemetry(serving.sinks(console)) as telemetry, serving.controller(console, telemetry) as controller:
            # Where the trainer and the policy's process want the same core, the trainer waits: it has hours, the
            # policy milliseconds. Only now, as whatever a thread starts is as nice as that thread.
            step_back()
            run_id = self.name or self._new_name()
            self._grow(env, controller.named(run_id), run_id, console)

    def _train_over_bus(self, env: EnvConfig, serving: Serving, console: Console) -> None:
        """A service in a process of its own; the trainer here, as a process of its own likewise."""
        from esper_ray.controller.key_file import CurrentKeys
        from esper_ray.controller.remote.serving import service_process

        CurrentKeys(serving.key_file)  # before anything is started: without one both refuse
        with serving.opened_bus() as bus, service_process(serving) as process:

            def check() -> None:
                if process.poll() is not None:
                    raise UserError(f"the service ended with {process.returncode}: what it said stands above")

            self._join_over(bus, env, serving, console, check)

    def _serve(self, console: Console) -> None:
        """A service alone."""
        from esper_ray.process import settle

        settle()
        try:
            with self._over_bus.serving(console):
                console.print("serving (Ctrl-C stops it)")
                threading.Event().wait()
        except KeyboardInterrupt:
            console.print("stopped; runs go on without it")

    def _join(self, console: Console) -> None:
        """A run alone, beside a service elsewhere."""
        env, serving = self._env(), self._over_bus
        with serving.opened_bus() as bus:
            self._join_over(bus, env, serving, console, lambda: None)

    def _join_over(
        self, bus: Bus, env: EnvConfig, serving: Serving, console: Console, check: Callable[[], None]
    ) -> None:
        from esper_ray.controller.key_file import CurrentKeys
        from esper_ray.controller.remote.run_end import RemoteController
        from esper_ray.process import step_back

        step_back()
        run_id = self.name or f"{self.task}-{self.seed}-{uuid4().hex[:8]}"
        with RemoteController(bus, CurrentKeys(serving.key_file), run_id, check=check) as remote:
            self._grow(env, remote, run_id, console)

    def _env(self) -> EnvConfig:
        from esper_ray.process import settle

        if self.run_id:
            raise UserError(f"a new run has a name of its own: leave out {self.run_id!r}")
        env = EnvConfig(task=self.task, data_dir=self.data_dir, task_args=self.task_args, max_epochs=self.max_epochs)
        env.load_data()
        settle()
        return env

    def _new_name(self) -> str:
        from esper_ray.controller.records import Records

        with Records.open(self.directory) as records:
            taken = records.runs()
        return next(name for at in itertools.count(1) if (name := f"{self.task}-{self.seed}-{at}") not in taken)

    def _grow(self, env: EnvConfig, controller: Controlling, run_id: str, console: Console) -> None:
        """The trainer: it knows of the controller what any user's loop does."""
        from envs.live.task_host import TaskLoop
        from envs.tasks import TaskError
        from esper_ray.live import LiveError, grow

        task = env.make_task()
        try:
            loop = TaskLoop(task, self.max_epochs, self.seed)
            grower = grow(**loop.given, controller=controller, seed=self.seed)
        except (TaskError, LiveError) as error:
            raise UserError(str(error)) from error
        console.print(f"run {run_id}" if self.word == "join" else f"run {run_id} by {self.policy}")
        console.print(str(grower.decision))
        for _ in range(self.max_epochs):
            training_loss = loop.epoch()
            console.print(str(grower.end_epoch(training_loss=training_loss, samples=loop.samples)))
        console.print(str(grower.commit()))
        console.print(f"why: {command('control', '--explain', run_id, '--directory', self.directory)}")
