"""A controller beside somebody's training: measured, asked and obeyed at every end of an epoch."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from envs.slots import SlotConfig
from esper_ray.controller.commands import AdaptationCommand, CommandResult
from esper_ray.controller.executor import Executor, in_words
from esper_ray.live.choosing import Choice, Training
from esper_ray.live.grower import Grower
from esper_ray.live.late_probe import LateProbe
from esper_ray.live.probe import Probe
from policies.bundle import Observations
from policies.strategic.messages import SystemState

logger = logging.getLogger(__name__)


class Decides(Protocol):
    """Whoever decides, as a run has them (:class:`esper_ray.controller.service.Controller`)."""

    observe: bool
    slots: SlotConfig | None

    def evaluate_epoch(self, state: SystemState, hook_ms: float | None = None) -> AdaptationCommand:
        """Decide what a run does with its next epoch; it raises nothing."""
        ...

    def report(self, result: CommandResult) -> None:
        """Take in what became of a command; it raises nothing."""
        ...

    def ended(self, run_id: str) -> None:
        """Take in that a run is over; it raises nothing."""
        ...


class Attending(ABC):
    """Chooses for a grower what somebody commands (:class:`esper_ray.live.grower.Chooser`).

    What they cannot do never stops the training: then nothing is done with the epoch.

    Args:
        training: What is grown.
        run_id: Of the run, as the controller's records have it.
        new_executor: Makes what carries commands out, for a run of a name.
    """

    name = "controller"

    def __init__(self, training: Training, run_id: str, new_executor: Callable[[str], Executor]) -> None:
        self._probe, self.run_id, self._new_executor = LateProbe(training), run_id, new_executor
        self._executor = new_executor(run_id)
        self._executing_ms = 0.0

    def slots_of(self, count: int) -> SlotConfig:
        """Those of the controller's policy."""
        return self._executor.slots_of(count)

    def choose(self, grower: Grower, observations: Observations) -> Choice:
        """Measure, ask, obey."""
        probe = self._probe.of(grower)
        try:
            packet = self._packet(probe, grower)
        except Exception as error:
            logger.exception("run %s: the probe failed", self.run_id)
            return Choice(note=f"not measured, and left alone: {' '.join(str(error).split())}")
        # What measuring takes at an epoch's end is no part of it: that grows with the model, is the same at every epoch
        # and does not go away by pausing; of a large model each epoch would be HIGH.
        hook_ms = packet.metrics.get("hook_latency_ms", 0.0) + self._executing_ms
        only_noted = self._ask(packet, hook_ms)
        if only_noted:
            return Choice(note=only_noted)
        began = time.perf_counter()
        choice = self._executor.choose(grower, observations)
        self._executing_ms = 1e3 * (time.perf_counter() - began)
        return choice

    @abstractmethod
    def _ask(self, packet: SystemState, hook_ms: float) -> str:
        """Have it decided; what is commanded goes to the executor.

        Returns:
            What is to be said where nothing is to be carried out; else empty.
        """

    def _packet(self, probe: Probe, grower: Grower) -> SystemState:
        """Of the epoch that the grower is at."""
        packet = probe.end_epoch(training_loss=grower.training_loss, samples=grower.samples)
        return packet.model_copy(update={"run_id": self.run_id})

    def begun(self, grower: Grower) -> None:
        """Report what was carried out."""
        self._executor.begun(grower)

    def end(self) -> None:
        """Watch the model no longer."""
        self._probe.remove()

    def state_dict(self) -> dict[str, Any]:
        """Which run it is, the commands that were carried out, and what the probe remembers."""
        return {
            "run_id": self.run_id,
            "executor": self._executor.state_dict(),
            "probe": self._probe.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with that run; what the controller remembers of it, its directory has."""
        self._probe.load_state_dict(state["probe"])
        self.run_id = str(state["run_id"])
        self._executor = self._new_executor(self.run_id)
        self._executor.load_state_dict(state["executor"])


class Attendance(Attending):
    """The same beside a controller in this process.

    Args:
        controller: Decides.
        training: What is grown.
        run_id: Of the run, as the controller's records have it.
    """

    def __init__(self, controller: Decides, training: Training, run_id: str) -> None:
        self._controller = controller
        super().__init__(training, run_id, lambda name: Executor(name, controller.report, slots=controller.slots))

    def _ask(self, packet: SystemState, hook_ms: float) -> str:
        command = self._controller.evaluate_epoch(packet, hook_ms)
        if self._controller.observe:
            return f"only observed; {in_words(command)}"
        self._executor.receive(command)
        return ""

    def end(self) -> None:
        """Watch the model no longer, and say that the run is over."""
        super().end()
        self._controller.ended(self.run_id)
