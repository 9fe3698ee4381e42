"""What is done once a command has left: nobody who decides waits for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from esper_ray.controller.commands import CommandResult, Kind
from esper_ray.controller.decision_telemetry import DecisionTelemetry, in_words
from esper_ray.controller.disk import Disk
from esper_ray.controller.errands import Errands
from esper_ray.controller.evaluation import Evaluation
from esper_ray.controller.proposals import Hello
from esper_ray.controller.store import Store
from policies.strategic.messages import SystemState

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY = 100
"""Evaluations after which the store's log is moved into its file."""


class Aftermath:
    """Notes what became of commands, and tells whoever wants to know. What fails of it holds up nothing else.

    What is told goes through a thread of its own: it is told of a disk that does not answer, too.

    Args:
        disk: Notes it.
        store: Of the decisions.
        telling: To telemetry.
        watch: Is shown every evaluation, by the disk's thread.
    """

    def __init__(
        self, disk: Disk, store: Store, telling: DecisionTelemetry, watch: Callable[[Evaluation], None] | None
    ) -> None:
        self._disk, self._store, self._telling, self._watch = disk, store, telling, watch
        self._errands, self._evaluations = Errands("controller's telemetry"), 0
        self._upkeep = Errands("controller's upkeep")  # which takes long, and decisions wait for the disk's thread

    def evaluated(self, evaluation: Evaluation, sent: bool) -> None:
        """An evaluation is over.

        Args:
            evaluation: All of it.
            sent: Whether its command leaves.
        """
        self._errands.later(lambda: _log(evaluation))
        self._errands.later(lambda: self._telling.decided(evaluation))
        watch = self._watch
        if evaluation.recorded and sent:
            self._disk.later(lambda: self._store.mark_sent(str(evaluation.command.command_id)))
        if watch is not None:
            self._disk.later(lambda: watch(evaluation))
        self._disk.later(self._count)

    def answered(self, result: CommandResult) -> None:
        """A command's result is here."""
        command_id, content = str(result.command_id), result.model_dump_json().encode()
        self._disk.later(lambda: self._store.attach_result(command_id, content))
        self.told_result(result)

    def told_result(self, result: CommandResult) -> None:
        """A command's result is on record, or will be."""
        self._errands.later(lambda: self._telling.answered(result))

    def lost(self, packet: SystemState, command_ids: Sequence[str]) -> None:
        """Commands before a packet's have waited too long for a result."""

        def tell() -> None:
            for command_id in command_ids:
                logger.warning("run %s: command %s is lost: no result came", packet.run_id, command_id)
            self._telling.lost(packet.run_id, packet.epoch, command_ids)

        self._errands.later(tell)

    def worker_ready(self, hello: Hello) -> None:
        """A process of the policy is ready."""
        self._errands.later(lambda: self._telling.policy_ready(hello.compiled, hello.compile_warm_ms))

    def worker_lost(self, how: str) -> None:
        """A process of the policy has ended that was not to."""
        self._errands.later(lambda: logger.warning("%s", how))
        self._errands.later(lambda: self._telling.worker_lost(how))

    def close(self) -> None:
        """Tell what is left to be told."""
        self._upkeep.close()
        self._errands.close()

    def _count(self) -> None:
        self._evaluations += 1
        if self._evaluations % CHECKPOINT_EVERY == 0:
            self._upkeep.later(self._store.checkpoint)


def _log(evaluation: Evaluation) -> None:
    command = evaluation.command
    if evaluation.event is not None:
        what, why = evaluation.event.change, evaluation.event.reason
        logger.warning("run %s: conservative mode %s (%s)", command.run_id, what.value, why)
    if command.kind in (Kind.PAUSE, Kind.CIRCUIT_BREAKER):
        logger.warning("run %s, epoch %d: %s", command.run_id, command.expects.epoch, in_words(evaluation))
