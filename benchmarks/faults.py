"""A training under a controller with which everything goes wrong that can, at epochs drawn by a seed.

The controller is a real one with a worker of its own, and so is the host. Between two decisions its clocks go on by
:data:`EPOCH_SECONDS`, as if epochs took so long; what a fault does to processes, files and clocks is done to real ones.
"""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import Timer

import numpy as np

from envs.live.task_host import TaskLoop
from envs.tasks import make_task
from esper_ray.controller.attending import Attendance
from esper_ray.controller.commands import AdaptationCommand, CommandResult, Kind, Reason
from esper_ray.controller.evaluation import ControllerConfig
from esper_ray.controller.records import FILE, Record, Records, Unreadable
from esper_ray.controller.service import Controller
from esper_ray.live import grow
from esper_ray.live.choosing import Training
from policies.strategic.messages import SystemState

TASK, RUN = "digits_impaired", "a run with faults"
EPOCH_SECONDS = 5.0
"""That the controller's clocks go on from one decision to the next."""
LASTING_EPOCHS = 3
"""For which what is broken outside stays so."""
QUIET_EPOCHS = 4
"""Without faults at the end."""
PATIENCE_SECONDS = 120.0
"""For which a new worker is waited for, on the slowest of machines."""
STUCK_SECONDS = 3.0
"""After which the controller has noticed that a worker is stuck."""
NS_PER_S = 10**9


class Fault(StrEnum):
    """What can go wrong."""

    SLOW = "a slow policy"
    STUCK = "a stuck policy"
    ENDS = "a policy that ends its process"
    RAISES = "a policy that raises"
    NOT_FINITE = "a policy that returns NaN"
    REMEMBERS_NAN = "a policy that remembers NaN"
    MASKED = "a policy that returns a masked action"
    KILLED = "a worker killed from outside"
    POLICY_GONE = "a worker killed, and its policy's files gone"
    DISK_FULL = "a full disk"
    DISK_READ_ONLY = "a disk that becomes read-only"
    DISK_SLOW = "a disk that does not answer"
    NO_METRICS = "a packet without metrics"
    NO_OBSERVATION = "a packet without what the policy reads"
    NO_PACKET = "no packet"
    NO_FIELDS = "a packet built past its own checks"
    CLOCK_AHEAD = "a clock an hour ahead"
    CLOCK_BACK = "a clock an hour behind"
    ASLEEP = "a machine that sleeps for ten minutes within a decision"
    CATALOGUE_BROKEN = "a catalogue that cannot be read"
    CATALOGUE_STUCK = "a catalogue whose disk does not answer"
    RESULT_LOST = "a result that is lost"
    RESULT_LATE = "a result that comes late"


EXPECTED: Mapping[Fault, frozenset[Reason]] = {
    Fault.SLOW: frozenset({Reason.TIMEOUT_INFERENCE}),
    Fault.STUCK: frozenset({Reason.TIMEOUT_INFERENCE}),
    Fault.ENDS: frozenset({Reason.POLICY_FAILED}),
    Fault.RAISES: frozenset({Reason.POLICY_FAILED}),
    Fault.NOT_FINITE: frozenset({Reason.POLICY_NOT_FINITE}),
    Fault.REMEMBERS_NAN: frozenset({Reason.POLICY_NOT_FINITE}),
    Fault.MASKED: frozenset({Reason.ACTION_MASKED}),
    Fault.KILLED: frozenset({Reason.POLICY_FAILED, Reason.WORKER_STARTING}),
    Fault.POLICY_GONE: frozenset({Reason.POLICY_FAILED, Reason.WORKER_STARTING}),
    Fault.DISK_FULL: frozenset({Reason.STORE_FAILED}),
    Fault.DISK_READ_ONLY: frozenset({Reason.STORE_FAILED}),
    Fault.DISK_SLOW: frozenset({Reason.STORE_FAILED}),
    Fault.NO_OBSERVATION: frozenset({Reason.POLICY_FAILED}),
    Fault.NO_PACKET: frozenset({Reason.PACKET_REFUSED}),
    Fault.NO_FIELDS: frozenset({Reason.PACKET_REFUSED}),
}
"""What a decision says at which one strikes; those left out need not change it."""
EXCUSES = frozenset({Reason.BREAKER_INFERENCE, Reason.TIMEOUT_INFERENCE, Reason.TIMEOUT_EVALUATE, Reason.STORE_FAILED})
"""The policy was left alone because of the faults before, or the machine was too busy: then this one did not strike."""
UNRECORDED = frozenset({Reason.STORE_FAILED, Reason.PACKET_REFUSED, Reason.EVALUATION_FAILED})
"""Of decisions with these nothing is on record."""
LASTING = frozenset(
    {Fault.STUCK, Fault.ENDS, Fault.KILLED, Fault.POLICY_GONE, Fault.CATALOGUE_BROKEN, Fault.CATALOGUE_STUCK}
)
"""What ends a worker, or is broken until somebody mends it."""


def planned(seed: int, epochs: int, faults: Collection[Fault] = tuple(Fault), times: int = 1) -> dict[int, Fault]:
    """At which epochs what goes wrong, each fault so many times.

    Raises:
        ValueError: there are not so many epochs.
    """
    chance, wanted = np.random.default_rng(seed), list(faults) * times
    at = chance.choice(np.arange(1, epochs - QUIET_EPOCHS), len(wanted), replace=False)
    return {int(epoch): wanted[which] for epoch, which in zip(at, chance.permutation(len(wanted)), strict=True)}


@dataclass
class Clocks:
    """A controller's: they go as time does, but for what they are set ahead.

    Attributes:
        ahead: Of both, seconds.
        wall: Of the one that says the time of day, besides.
    """

    ahead: float = 0.0
    wall: float = 0.0

    def now(self) -> float:
        """Seconds; never goes back."""
        return time.monotonic() + self.ahead

    def time_ns(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns() + round((self.ahead + self.wall) * NS_PER_S)


@dataclass(frozen=True)
class Told:
    """One answer of the controller.

    Attributes:
        epoch: Epochs done.
        fault: That was to strike.
        command: The answer.
        seconds: That the trainer waited for it.
    """

    epoch: int
    fault: Fault | None
    command: AdaptationCommand
    seconds: float

    @property
    def reasons(self) -> set[Reason]:
        """All that it gives."""
        return {self.command.reason} | {signal.reason for signal in self.command.risk.signals}

    @property
    def is_pause(self) -> bool:
        """Whether nothing is to be done."""
        return self.command.kind in (Kind.PAUSE, Kind.CIRCUIT_BREAKER)

    @property
    def struck(self) -> bool:
        """Whether the fault did, as far as the answer says."""
        return self.fault is not None and (self.fault not in EXPECTED or bool(self.reasons & EXPECTED[self.fault]))


@dataclass(frozen=True)
class FaultyRun:
    """How a training with faults went.

    Attributes:
        told: Every answer, in order.
        exceptions: That reached the trainer, in a line each.
        broken: What was promised and not held, in a line each.
        accuracy: Of the committed model on the validation split, percent.
        never_grown: Of the same host without anything.
    """

    told: tuple[Told, ...]
    exceptions: tuple[str, ...]
    broken: tuple[str, ...]
    accuracy: float
    never_grown: float

    @property
    def struck(self) -> list[Fault]:
        """The faults that did."""
        return [one.fault for one in self.told if one.fault is not None and one.struck]

    def stalls(self, seconds: float) -> int:
        """Answers for which the trainer waited longer."""
        return sum(one.seconds > seconds for one in self.told)


class Sabotaged:
    """A controller, and the hand of whoever breaks it (:class:`esper_ray.live.growing.Controlling`).

    Args:
        controller: At work.
        clocks: It has.
        plan: Epochs done → fault.
        directory: Of its records.
        policy: Its policy's file.
        amendments: Its catalogue's file.
    """

    observe = False

    def __init__(
        self,
        controller: Controller,
        clocks: Clocks,
        plan: Mapping[int, Fault],
        directory: Path,
        policy: Path,
        amendments: Path,
    ) -> None:
        self.controller, self.slots, self.told = controller, controller.slots, list[Told]()
        self._clocks, self._plan = clocks, plan
        self._directory, self._policy, self._amendments = directory, policy, amendments
        self._gone = policy.with_suffix(".gone")
        self._mend_at: int | None = None
        self._stuck_until = 0.0
        self._late: list[tuple[int, CommandResult]] = []

    def attend(self, training: Training) -> Attendance:
        """Decide for a model as the controller would."""
        return Attendance(self, training, RUN)

    def evaluate_epoch(self, state: SystemState, hook_ms: float | None = None) -> AdaptationCommand:
        """The controller's answer, with this epoch's fault."""
        fault, epoch = self._plan.get(state.epoch), state.epoch
        self._clocks.ahead += EPOCH_SECONDS
        if fault is not None or epoch == self._mend_at:
            self.mend()
        if fault in LASTING:
            self._mend_at = epoch + LASTING_EPOCHS
        self._deliver(epoch)
        with self._striking(fault):
            began = time.perf_counter()
            command = self.controller.evaluate_epoch(_packet(state, fault), hook_ms)
            seconds = time.perf_counter() - began
        if fault is Fault.STUCK:
            self._stuck_until = time.monotonic() + STUCK_SECONDS
        self.told.append(Told(epoch, fault, command, seconds))
        return command

    def report(self, result: CommandResult) -> None:
        """Hand a result on, unless it is lost or late."""
        fault = self._plan.get(result.epoch)
        if fault is Fault.RESULT_LATE:
            self._late.append((result.epoch + LASTING_EPOCHS + 1, result))
        elif fault is not Fault.RESULT_LOST:
            self.controller.report(result)

    def mend(self) -> None:
        """Put back what is broken outside, and let time pass until there is a worker."""
        self._mend_at = None
        if self._gone.exists():
            self._gone.rename(self._policy)
        if self._amendments.is_fifo():
            with os.fdopen(os.open(self._amendments, os.O_RDWR), "w") as waiting:
                waiting.write("{}")
        self._amendments.unlink()
        self._amendments.write_text("{}")
        time.sleep(max(self._stuck_until - time.monotonic(), 0.0))
        due = time.monotonic() + PATIENCE_SECONDS
        while not self.controller.workers and time.monotonic() < due:
            time.sleep(0.01)

    def _deliver(self, epoch: int) -> None:
        for due, result in self._late:
            if due == epoch:
                self.controller.report(result)

    # ------------------------------------------------------------------ breaking
    def _striking(self, fault: Fault | None) -> AbstractContextManager[None]:
        strikes: dict[Fault, Callable[[], AbstractContextManager[None]]] = {
            Fault.KILLED: self._killing,
            Fault.POLICY_GONE: self._taking_the_policy,
            Fault.DISK_FULL: files_of_at_most_a_byte,
            Fault.DISK_READ_ONLY: self._refusing_to_write,
            Fault.DISK_SLOW: self._locking,
            Fault.CLOCK_AHEAD: lambda: self._setting_the_clock(3600.0),
            Fault.CLOCK_BACK: lambda: self._setting_the_clock(-3600.0),
            Fault.ASLEEP: self._falling_asleep,
            Fault.CATALOGUE_BROKEN: self._breaking_the_catalogue,
            Fault.CATALOGUE_STUCK: self._blocking_the_catalogue,
        }
        return nullcontext() if fault is None or fault not in strikes else strikes[fault]()

    @contextmanager
    def _killing(self) -> Iterator[None]:
        for pid in self.controller.workers:
            os.kill(pid, signal.SIGKILL)
        yield

    @contextmanager
    def _taking_the_policy(self) -> Iterator[None]:
        self._policy.rename(self._gone)
        with self._killing():
            yield

    @contextmanager
    def _refusing_to_write(self) -> Iterator[None]:
        self._query_only(True)
        try:
            yield
        finally:
            self._query_only(False)

    def _query_only(self, on: bool) -> None:
        """A file that is open for writing can be made read-only by nobody but its own connection."""
        store, disk = self.controller._store, self.controller._disk
        disk.within(lambda: store._connection.execute(f"PRAGMA query_only = {on:d}"), PATIENCE_SECONDS)

    @contextmanager
    def _locking(self) -> Iterator[None]:
        with closing(sqlite3.connect(self._directory / FILE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def _setting_the_clock(self, seconds: float) -> Iterator[None]:
        self._clocks.wall += seconds
        try:
            yield
        finally:
            self._clocks.wall -= seconds

    @contextmanager
    def _falling_asleep(self) -> Iterator[None]:
        def sleep() -> None:
            self._clocks.ahead += 600.0

        timer = Timer(0.005, sleep)
        timer.start()
        try:
            yield
        finally:
            timer.join()

    @contextmanager
    def _breaking_the_catalogue(self) -> Iterator[None]:
        self._amendments.write_text("{")
        self._clocks.ahead += 60.0  # so that it is read anew
        yield

    @contextmanager
    def _blocking_the_catalogue(self) -> Iterator[None]:
        self._amendments.unlink()
        os.mkfifo(self._amendments)
        self._clocks.ahead += 60.0
        yield


def _packet(state: SystemState, fault: Fault | None) -> SystemState:
    """What of a packet arrives."""
    if fault is Fault.NO_PACKET:
        return None  # type: ignore[return-value]
    if fault is Fault.NO_FIELDS:
        return SystemState.model_construct()
    lacking: dict[str, object] = {}
    if fault is Fault.NO_METRICS:
        lacking = {"metrics": {}, "training_loss": None, "validation_loss": None, "validation_accuracy": None}
    if fault is Fault.NO_OBSERVATION:
        lacking = dict.fromkeys(("observation", "blueprint_indices", "action_mask"))
    return SystemState(**{**dict(state), **lacking})


@contextmanager
def files_of_at_most_a_byte() -> Iterator[None]:
    """No file of this process gets longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


POLICY = """from benchmarks.faults import Fault
from benchmarks.faulty_policy import FaultyPolicy


class Planned(FaultyPolicy):
    plan = {{{plan}}}
    slow_seconds = {slow}
"""


def faulty_run(
    directory: Path, seed: int, epochs: int, plan: Mapping[int, Fault], config: ControllerConfig | None = None
) -> FaultyRun:
    """Train a host under a controller with faults, and see whether what was promised holds.

    Args:
        directory: New or empty.
        seed: Of the host.
        epochs: Of the training.
        plan: Epochs done → fault (:func:`planned`).
        config: Of the controller.
    """
    config = config or ControllerConfig()
    policy, amendments, state = directory / "policy.py", directory / "blueprints.json", directory / "state"
    faults = ", ".join(f"{epoch}: Fault.{fault.name}" for epoch, fault in plan.items())
    policy.write_text(POLICY.format(plan=faults, slow=3e-3 * config.inference_ms))
    amendments.write_text("{}")
    clocks = Clocks()
    with Controller(
        f"{policy}:Planned", state, config=config, amendments=amendments, now=clocks.now, time_ns=clocks.time_ns
    ) as controller:
        sabotaged = Sabotaged(controller, clocks, plan, state, policy, amendments)
        accuracy, exceptions = _trained(seed, epochs, sabotaged)
        sabotaged.mend()
        alive = bool(controller.workers)
    with Records.open(state) as records:
        broken = list(_broken(sabotaged.told, list(records.records(RUN))))
    broken += [] if alive else ["no worker has taken over"]
    never_grown, _ = _trained(seed, epochs, None)
    return FaultyRun(tuple(sabotaged.told), exceptions, tuple(broken), accuracy, never_grown)


def _trained(seed: int, epochs: int, controller: Sabotaged | None) -> tuple[float, tuple[str, ...]]:
    """Accuracy at the end, and the exceptions on the way."""
    task, exceptions = make_task(TASK), list[str]()
    loop = TaskLoop(task, epochs, seed)
    grower = grow(
        loop.model,
        loop.optimizer,
        "segments.*",
        example=loop.example,
        evaluate=loop.evaluate,
        max_epochs=epochs,
        chance=task.chance_accuracy,
        policy="never_grow" if controller is None else None,
        controller=controller,
        seed=seed,
    )
    for _ in range(epochs):
        training_loss = loop.epoch()
        try:
            grower.end_epoch(training_loss=training_loss, samples=loop.samples)
        except Exception as error:
            exceptions.append(f"epoch {grower.epoch}: {type(error).__name__}: {error}")
    return grower.commit().accuracy, tuple(exceptions)


def _broken(told: Sequence[Told], records: Sequence[Record | Unreadable]) -> Iterator[str]:
    """What does not hold of a run's answers and of what is on record of them."""
    commands = {str(one.decision.command_id): one.decision.command for one in records if isinstance(one, Record)}
    if len(commands) < len(records):
        yield f"{len(records) - len(commands)} records cannot be read"
    for one in told:
        said = f"epoch {one.epoch}, {one.fault or 'no fault'}: {one.command.kind} {one.command.reason}"
        expected: frozenset[Reason] = frozenset() if one.fault is None else EXPECTED.get(one.fault, frozenset())
        if expected and not (one.is_pause and one.reasons & (expected | EXCUSES)):
            yield f"{said}, expected a PAUSE for {' or '.join(sorted(expected))}"
        recorded = commands.get(str(one.command.command_id))
        if one.command.reason not in UNRECORDED and recorded != one.command.model_dump_json().encode():
            yield f"{said}, of which there is no record"
