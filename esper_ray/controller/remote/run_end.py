"""A run at its end of a bus: packets out, commands in, results out."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from threading import Condition
from typing import Any, Self
from uuid import UUID, uuid4

from envs.slots import SlotConfig
from esper_ray.bus.deliveries import Delivery
from esper_ray.bus.errors import BusError
from esper_ray.bus.interface import Bus
from esper_ray.bus.listening import Listener
from esper_ray.bus.streams import Stream, group_of_run
from esper_ray.controller.attending import Attending
from esper_ray.controller.commands import AdaptationCommand, CommandResult
from esper_ray.controller.envelope import Envelope, seal
from esper_ray.controller.executor import Executor
from esper_ray.controller.keys import KeyRing
from esper_ray.controller.nonces import NonceLedger
from esper_ray.controller.remote.messages import Joining, Leaving, State, StateHead, Welcome, read_by_run
from esper_ray.controller.remote.outgoing import Outgoing
from esper_ray.controller.verifier import EnvelopeRefused, Verifier
from esper_ray.errors import UserError
from esper_ray.live.choosing import Training
from esper_ray.terminal import command as in_terminal
from policies.strategic.messages import SystemState

logger = logging.getLogger(__name__)

SLACK_EPOCHS = 1
"""Epochs that a host may be ahead of a command that came late."""
WAIT_S = 0.2
"""For a command, at an end of an epoch."""
MISSES = 3
"""After so many commands in a row that did not come in time nobody waits, until one comes."""
JOINED_WITHIN_S = 60.0
"""A service that begins needs some 10 s."""
ASK_EVERY_S = 2.0


class RemoteController:
    """Decides for a run over a bus: ``grow(model, …, controller=RemoteController(bus, keys))``.

    At every end of an epoch the run's packet leaves, and its command is waited for, but not for long: one that comes
    later is carried out at the next end, if the host is still as it expects. Nothing that happens to the bus or to the
    service stops the training.

    Args:
        bus: Where the service is (:func:`esper_ray.bus.opening.open_bus`); whoever gives it closes it afterwards.
        keys: Gives the keys to sign with and to verify by, :class:`esper_ray.controller.key_file.CurrentKeys`.
        run_id: Of the run; by default a new one.
        wait_s: Seconds to wait for a command.
        patience_s: Seconds to wait for a service as the run begins.
        check: Is called now and then meanwhile; what it raises ends the waiting.
        time_ns: Nanoseconds since 1970.
    """

    def __init__(
        self,
        bus: Bus,
        keys: Callable[[], KeyRing],
        run_id: str | None = None,
        *,
        wait_s: float = WAIT_S,
        patience_s: float = JOINED_WITHIN_S,
        check: Callable[[], None] = lambda: None,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._bus, self._keys, self._run_id = bus, keys, run_id
        self._wait_s, self._patience_s, self._check, self._time_ns = wait_s, patience_s, check, time_ns
        self._attendances: list[RemoteAttendance] = []

    def attend(self, training: Training) -> RemoteAttendance:
        """Ask the service to decide for a model, and wait until it says that it will.

        Raises:
            UserError: no service answers, or it cannot decide for such a run.
            BusUnavailable: the bus does not answer.
        """
        run_id = self._run_id or f"run-{uuid4().hex[:12]}"
        link = Link(self._bus, self._keys, run_id, training, self._patience_s, self._check, self._time_ns)
        try:
            slots = link.join(resumed=False)
            attendance = RemoteAttendance(link, slots, training, self._wait_s)
        except BaseException:
            link.close()
            raise
        self._attendances.append(attendance)
        return attendance

    def close(self) -> None:
        """Say what is left to be said, and leave the bus."""
        while self._attendances:
            self._attendances.pop().end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Link:
    """One run's way to its service and back.

    Args:
        bus: Between them.
        keys: Gives the keys as they are now.
        run_id: Of the run.
        training: What is grown.
        patience_s: Seconds to wait for a service.
        check: Is called meanwhile.
        time_ns: Nanoseconds since 1970.

    Attributes:
        run_id: As given, or of the run that was joined later.
        observe: The service sends nothing.
        on_command: Takes every command that can be believed, in the thread that listens.
        refused: Envelopes that were not believed, or could not be read.
    """

    def __init__(
        self,
        bus: Bus,
        keys: Callable[[], KeyRing],
        run_id: str,
        training: Training,
        patience_s: float,
        check: Callable[[], None],
        time_ns: Callable[[], int],
    ) -> None:
        self._bus, self._keys, self._training = bus, keys, training
        self._patience_s, self._check, self._time_ns = patience_s, check, time_ns
        self.run_id, self.observe, self.refused = run_id, False, 0
        self.on_command: Callable[[AdaptationCommand], None] = lambda command: None
        self._news = Condition()
        self._welcomes: dict[UUID, Welcome] = {}
        self._newest = -1
        # Which commands were carried out is in the host's own state; this is of those that came.
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        NonceLedger.create(self._connection)
        self._verifier = Verifier(keys, NonceLedger("executor"), time_ns)
        self._outgoing = Outgoing(bus, self._sealed)
        self._listener: Listener | None = None

    def join(self, *, resumed: bool, run_id: str | None = None) -> SlotConfig | None:
        """Ask for decisions on this run.

        Args:
            resumed: It was decided on before.
            run_id: In place of the one before.

        Returns:
            Slots of the policy; None if any will do.

        Raises:
            UserError: nobody answers, or they cannot.
            BusUnavailable: the bus does not answer.
        """
        self._leave()
        self.run_id = run_id or self.run_id
        group = group_of_run(self.run_id)
        self._bus.join(Stream.COMMANDS, group)
        self._listener = Listener(self._bus, Stream.COMMANDS, group, self._take, name="executor")
        training = self._training
        asked = Joining(
            token=uuid4(),
            run_id=self.run_id,
            kind=training.kind.name,
            slots=training.slots,
            max_epochs=training.max_epochs,
            force=training.force,
            resumed=resumed,
        )
        welcome = self._answer(asked)
        if welcome.problem:
            raise UserError(welcome.problem)
        self.observe = welcome.observe
        return welcome.slots

    def _answer(self, asked: Joining) -> Welcome:
        ends = time.monotonic() + self._patience_s
        while time.monotonic() < ends:
            self._check()
            self._outgoing.latest(Stream.STATES, asked.framed())
            with self._news:
                if self._news.wait_for(lambda: asked.token in self._welcomes, min(ASK_EVERY_S, self._patience_s)):
                    return self._welcomes[asked.token]
        raise UserError(
            f"no controller has answered within {self._patience_s:g} s: {in_terminal('control', 'serve')} starts one, "
            "on the same bus and with the same keys"
        )

    def ask(self, packet: SystemState, hook_ms: float) -> None:
        """Send a packet to be decided on; one before it that has not left yet never does."""
        state = State(head=StateHead(hook_ms=hook_ms), packet=packet)
        self._outgoing.latest(Stream.STATES, state.framed())

    def wait(self, epoch: int, seconds: float) -> bool:
        """Wait for a command on the packet of an epoch, or of a later one.

        Returns:
            Whether it is here.
        """
        with self._news:
            return self._news.wait_for(lambda: self._newest >= epoch, seconds)

    def report(self, result: CommandResult) -> None:
        """Send what became of a command."""
        self._outgoing.keep(Stream.RESULTS, result.model_dump_json().encode())

    def close(self) -> None:
        """Say that the run is over, send what is left, and listen no longer; a second time it does nothing."""
        if self._listener is not None:
            self._outgoing.keep(Stream.STATES, Leaving(run_id=self.run_id).framed())
        self._outgoing.close()
        self._leave()
        self._connection.close()

    def _leave(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            try:
                self._bus.leave(Stream.COMMANDS, group_of_run(self.run_id))
            except BusError as error:  # trimming removes it when it is far behind
                logger.warning("run %s has not left the bus: %s", self.run_id, error)

    def _sealed(self, stream: Stream, payload: bytes) -> bytes:
        return seal(self._keys().signing, stream, self.run_id, payload, self._time_ns()).content

    # ------------------------------------------------------------------ in the thread that listens
    def _take(self, delivery: Delivery) -> None:
        try:
            if Envelope.read(delivery.payload).audience != self.run_id:  # another run's: all runs' are on one stream
                return
            self._connection.execute("BEGIN")
            try:
                envelope = self._verifier.accept(self._connection, delivery.payload, Stream.COMMANDS, self.run_id)
            finally:
                self._connection.execute("COMMIT")
            said = read_by_run(envelope.payload)
            if isinstance(said, AdaptationCommand) and said.run_id != self.run_id:
                raise ValueError(f"the envelope is for {self.run_id!r}, and what is in it for {said.run_id!r}")
        except (EnvelopeRefused, ValueError) as error:
            self.refused += 1
            logger.warning("run %s: a message was refused: %s", self.run_id, " ".join(str(error).split())[:300])
            return
        if isinstance(said, AdaptationCommand):
            self.on_command(said)
        with self._news:
            if isinstance(said, AdaptationCommand):
                self._newest = max(self._newest, said.expects.epoch)
            else:
                self._welcomes[said.token] = said
            self._news.notify_all()


class RemoteAttendance(Attending):
    """Chooses for a grower what a service elsewhere commands.

    Args:
        link: To the service, joined.
        slots: Of its policy.
        training: What is grown.
        wait_s: Seconds to wait for a command.
    """

    def __init__(self, link: Link, slots: SlotConfig | None, training: Training, wait_s: float) -> None:
        self._link, self._wait_s = link, wait_s
        self._missed, self._asked = 0, -1
        super().__init__(
            training,
            link.run_id,
            lambda name: Executor(name, link.report, slots=slots, slack_epochs=SLACK_EPOCHS),
        )
        link.on_command = self._receive

    def _receive(self, command: AdaptationCommand) -> None:
        self._executor.receive(command)

    def _ask(self, packet: SystemState, hook_ms: float) -> str:
        if self._link.wait(self._asked, 0.0):  # the command before is here by now, if late
            self._missed = 0
        self._asked = packet.epoch
        self._link.ask(packet, hook_ms)
        if self._link.observe:
            return "only observed"
        waits = self._wait_s if self._missed < MISSES else 0.0
        in_time = self._link.wait(packet.epoch, waits)
        self._missed = 0 if in_time else self._missed + 1
        if self._missed == MISSES:
            logger.warning("run %s: %d commands did not come; none is waited for until one does", self.run_id, MISSES)
        return ""

    def end(self) -> None:
        """Watch the model no longer, and leave the bus."""
        super().end()
        self._link.close()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with that run.

        Raises:
            UserError: no service answers any more, or it cannot go on.
        """
        self._link.join(resumed=True, run_id=str(state["run_id"]))
        super().load_state_dict(state)
