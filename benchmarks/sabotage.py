"""A controller that somebody breaks.

What a fault does to processes, files and clocks is done to real ones. Between two decisions the controller's clocks go
on by :data:`EPOCH_SECONDS`, as if epochs took so long.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

from benchmarks.faults import LASTING, Fault, Told
from benchmarks.full_disk import files_of_at_most
from esper_ray.controller.attending import Attendance
from esper_ray.controller.commands import AdaptationCommand, CommandResult
from esper_ray.controller.records import FILE
from esper_ray.controller.service import Controller
from esper_ray.live.choosing import Training
from policies.strategic.messages import SystemState

RUN = "a run with faults"
EPOCH_SECONDS = 5.0
"""That the controller's clocks go on from one decision to the next."""
LASTING_EPOCHS = 3
"""For which what is broken outside stays so."""
PATIENCE_SECONDS = 120.0
"""For which a new worker is waited for, on the slowest of machines."""
STUCK_SECONDS = 3.0
"""After which the controller has noticed that a worker is stuck."""
NS_PER_S = 10**9


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

    def ended(self, run_id: str) -> None:
        """Tell the controller that the run is over."""
        self.controller.ended(run_id)

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
            Fault.DISK_FULL: lambda: files_of_at_most(1),
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
