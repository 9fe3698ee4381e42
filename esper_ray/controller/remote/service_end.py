"""The service at its end of a bus: packets, results and updates in, commands out."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Self

from envs.live.places import KINDS
from esper_ray.bus.deliveries import Delivery
from esper_ray.bus.errors import BusError, NotSent
from esper_ray.bus.interface import Bus
from esper_ray.bus.listening import Listener
from esper_ray.bus.streams import Role, Stream
from esper_ray.controller.breakers import BreakerState
from esper_ray.controller.commands import CommandResult, Reason
from esper_ray.controller.envelope import Envelope, seal
from esper_ray.controller.keys import KeyRing
from esper_ray.controller.remote.messages import Joining, Leaving, State, Welcome, read_by_service
from esper_ray.controller.service import Controller
from esper_ray.controller.updates.considering import PolicyUpdates
from esper_ray.controller.verifier import EnvelopeRefused, Redelivered
from esper_ray.errors import UserError

logger = logging.getLogger(__name__)

DECIDING_THREADS = 4
"""Runs that are decided on at once; the policy answers one after another."""


@dataclass
class _Course:
    """How far a run is. Who holds the turn decides on it."""

    turn: Lock = field(default_factory=Lock)
    epoch: int = -1


class ServiceEnd:
    """Decides on what comes over a bus.

    A packet is decided on once: its nonce is in the transaction of its decision. A run's packets are decided on in
    their order: of those that waited together for the service an earlier one is left out once a later one was taken. A
    command that the bus refuses is not sent again, as it would come too late: the run waits, and asks anew at its next
    end of an epoch.

    Args:
        controller: Decides; made with the same keys.
        bus: Where runs are.
        keys: Gives the keys as they are now.
        time_ns: Nanoseconds since 1970.

    Attributes:
        refused: Envelopes that were not believed, or could not be read.
    """

    def __init__(
        self, controller: Controller, bus: Bus, keys: Callable[[], KeyRing], time_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._controller, self._bus, self._keys, self._time_ns = controller, bus, keys, time_ns
        self._breaker = controller.guard("bus")
        self._guard, self.refused = Lock(), 0
        self._courses: defaultdict[str, _Course] = defaultdict(_Course)
        self._last_failed = False
        self._updates = PolicyUpdates(controller.live, controller.verifier, time_ns)
        bus.join(Stream.STATES, Role.SERVICE)  # before anything is promised, so that a bus that is not there is said
        self._listeners = (
            Listener(bus, Stream.STATES, Role.SERVICE, self._state, name="service", threads=DECIDING_THREADS),
            Listener(bus, Stream.RESULTS, Role.SERVICE, self._result, name="service"),
            Listener(bus, Stream.UPDATES, Role.SERVICE, self._update, name="service"),
        )

    def close(self) -> None:
        """Finish what is being decided, and take nothing more."""
        for listener in self._listeners:
            listener.close()
        self._updates.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ what comes
    def _state(self, delivery: Delivery) -> None:
        try:
            envelope = self._controller.verified(delivery.payload, Stream.STATES)
            said = read_by_service(envelope.payload)
            _check_audience(envelope, said.run_id)
        except Redelivered:
            return
        except (EnvelopeRefused, ValueError) as error:
            self._refuse(Stream.STATES, error)
            return
        match said:
            case Joining():
                with self._guard:  # it may go on from an earlier epoch
                    self._courses.pop(said.run_id, None)
                self._send(said.run_id, self._sealed(said.run_id, self._welcome(said).model_dump_json().encode()))
            case Leaving():
                with self._guard:
                    self._courses.pop(said.run_id, None)
                self._controller.ended(said.run_id)
            case State():
                with self._guard:
                    course = self._courses[said.run_id]
                with course.turn:
                    if said.packet.epoch > course.epoch:
                        course.epoch = said.packet.epoch
                        self._decide(said, envelope)

    def _decide(self, said: State, envelope: Envelope) -> None:
        evaluation = self._controller.evaluate_message(said.packet, said.head.hook_ms, envelope, self._faults)
        if evaluation is None or self._controller.observe:  # it was decided on before, or nobody is to hear of it
            return
        command_id = str(evaluation.command.command_id)
        if not self._send(said.packet.run_id, evaluation.content) and evaluation.recorded:
            self._controller.take_back(command_id)

    def _welcome(self, said: Joining) -> Welcome:
        try:
            if not said.resumed and self._controller.knows(said.run_id):
                raise UserError(f"there is a run {said.run_id!r} already: give another name")
            self._controller.check_training(KINDS[said.kind], said.slots, said.max_epochs, said.force)
        except UserError as error:
            return Welcome(token=said.token, problem=str(error))
        slots = self._controller.slots
        return Welcome(
            token=said.token,
            observe=self._controller.observe,
            num_slots=None if slots is None else slots.num_slots,
            internal_levels=slots is not None and slots.internal_levels,
        )

    def _result(self, delivery: Delivery) -> None:
        try:
            envelope = self._controller.verified(delivery.payload, Stream.RESULTS)
            result = CommandResult.model_validate_json(envelope.payload)
            _check_audience(envelope, result.run_id)
        except Redelivered:
            return
        except (EnvelopeRefused, ValueError) as error:
            self._refuse(Stream.RESULTS, error)
            return
        with suppress(Redelivered):
            self._controller.take_result(result, envelope)

    def _update(self, delivery: Delivery) -> None:
        self._updates.consider(delivery.payload)  # which says, tells and keeps what came of it

    # ------------------------------------------------------------------ what goes
    @property
    def _faults(self) -> frozenset[Reason]:
        """Of the bus, for the next decision."""
        if not self._last_failed:
            return frozenset()
        return frozenset({Reason.TIMEOUT_BUS if self._breaker.state is not BreakerState.OPEN else Reason.BREAKER_BUS})

    def _send(self, run_id: str, content: bytes) -> bool:
        """Whether it may have been sent."""
        permit = self._breaker.try_acquire()
        if permit is None:
            return False
        try:
            self._bus.send(Stream.COMMANDS, content)
        except BusError as error:
            self._breaker.record(permit, succeeded=False)
            self._last_failed = True
            logger.warning("run %s: a command could not be sent: %s", run_id, error)
            return not isinstance(error, NotSent)
        self._breaker.record(permit, succeeded=True)
        self._last_failed = False
        return True

    def _sealed(self, run_id: str, payload: bytes) -> bytes:
        return seal(self._keys().signing, Stream.COMMANDS, run_id, payload, self._time_ns()).content

    def _refuse(self, stream: Stream, error: Exception) -> None:
        with self._guard:
            self.refused += 1
        logger.warning("a message on the stream %s was refused: %s", stream, " ".join(str(error).split())[:300])


def _check_audience(envelope: Envelope, run_id: str) -> None:
    if envelope.audience != run_id:
        raise ValueError(f"the envelope is about {envelope.audience!r}, and what is in it about {run_id!r}")
