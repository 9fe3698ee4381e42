"""Is anything ever taken in that was changed or forged on its way? Every end that takes messages is a real one."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from uuid import UUID

import torch
from torch import nn

from benchmarks.field_writer import RUN, FieldWriter
from benchmarks.forging import bad_envelopes
from benchmarks.report_taker import insert
from envs.live.places import VECTOR
from esper_ray.bus.in_process import InProcessBus
from esper_ray.bus.streams import Role, Stream, group_of_run
from esper_ray.controller.chain import Head, tip
from esper_ray.controller.commands import AdaptationCommand, CommandResult, Outcome
from esper_ray.controller.envelope import Envelope, seal
from esper_ray.controller.evaluation import ControllerConfig
from esper_ray.controller.keys import KeyRing
from esper_ray.controller.records import Fate, Record, Records
from esper_ray.controller.remote.run_end import Link
from esper_ray.controller.remote.service_end import ServiceEnd
from esper_ray.controller.reports.delivery import ReportDelivery
from esper_ray.controller.reports.field_report import ReportAck
from esper_ray.controller.reports.outbox import DeliveryState, count, due, read_experience
from esper_ray.controller.reports.taking import TakesReports
from esper_ray.controller.service import Controller
from esper_ray.controller.store import Store
from esper_ray.controller.updates.considering import PolicyUpdates
from esper_ray.controller.updates.policy_update import AUDIENCE, PolicyUpdate
from esper_ray.controller.updates.verdicts import UpdateReason
from esper_ray.live.choosing import Training
from policies.strategic.messages import SystemState

BATCH = 64
"""Envelopes that are sent before it is waited until they are handled."""
EPOCHS = 4
"""That the run is decided on before it is attacked."""
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Attacked:
    """An end that takes messages, after many bad ones.

    Attributes:
        end: Its name.
        stream: That they came on.
        sent: Bad ones.
        accepted: Of these that it did not refuse, or that changed anything.
        believes: It takes a good one still.
    """

    end: str
    stream: Stream
    sent: int
    accepted: int
    believes: bool


class Tapped(InProcessBus):
    """A bus that keeps what is sent.

    Attributes:
        sent: Streams and payloads, in order.
    """

    def __init__(self) -> None:
        super().__init__(on_event=lambda _: None)
        self.sent: list[tuple[Stream, bytes]] = []

    def send(self, stream: Stream, payload: bytes) -> str:
        """As every bus does."""
        self.sent.append((stream, payload))
        return super().send(stream, payload)

    def on(self, stream: Stream) -> list[bytes]:
        """What was sent there."""
        return [payload for of, payload in self.sent if of is stream]


def _wait(done: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + PATIENCE_SECONDS
    while not done():
        if time.monotonic() > ends:
            raise RuntimeError(f"it did not come about within {PATIENCE_SECONDS:g} s: {what}")
        time.sleep(0.002)


def _settled(bus: InProcessBus, stream: Stream, group: str) -> bool:
    state = bus.state(stream).groups[group]
    return state.pending == 0 and state.unread == 0


def _attack(bus: InProcessBus, stream: Stream, group: str, bad: Iterator[bytes], number: int) -> None:
    """Send so many, and wait until a group has handled them."""
    left = number
    while left:
        for content in islice(bad, now := min(left, BATCH)):
            bus.send(stream, content)
        left -= now
        _wait(lambda: _settled(bus, stream, group), f"{group} handles {stream}")


# ------------------------------------------------------------------ run and service
def attack_service(
    policy: str,
    directory: Path,
    keys: KeyRing,
    packets: Sequence[SystemState],
    updates: Sequence[PolicyUpdate],
    number: int,
    draw: Random,
    config: ControllerConfig,
) -> list[Attacked]:
    """Attack a service and a run that it decides on, each at all that it takes.

    Args:
        policy: That decides.
        directory: New or empty.
        keys: Of both.
        packets: At least so many as :data:`EPOCHS` and one more, of one run.
        updates: At least two of the policy.
        number: Bad envelopes for each stream.
        draw: Chance.
        config: Of the service.
    """
    with (
        Tapped() as bus,
        Controller(policy, directory, config=config, keys=lambda: keys) as controller,
        ServiceEnd(controller, bus, lambda: keys) as end,
        _Run(bus, keys, packets) as run,
        Records.open(directory) as records,
    ):
        for _ in range(EPOCHS):
            run.epoch()
        _wait(lambda: _answered(records) == EPOCHS, "results are on record")
        found: list[tuple[str, Stream, int]] = []
        for stream in (Stream.STATES, Stream.RESULTS):
            before, refused = (_written(records), len(bus.on(Stream.COMMANDS))), end.refused
            _attack(bus, stream, Role.SERVICE, bad_envelopes(draw, keys.signing, bus.on(stream)[:EPOCHS]), number)
            changed = before != (_written(records), len(bus.on(Stream.COMMANDS)))
            found.append(("service", stream, number - (end.refused - refused) + changed))
        taken, refused = len(run.taken), run.link.refused
        bad = list(islice(bad_envelopes(draw, keys.signing, bus.on(Stream.COMMANDS)[:EPOCHS]), number))
        others = sum(_for_others(content) for content in bad)  # which a run drops, as all runs' are on one stream
        _attack(bus, Stream.COMMANDS, group_of_run(RUN), iter(bad), number)
        accepted = number - others - (run.link.refused - refused)
        found.append(("run", Stream.COMMANDS, max(accepted, len(run.taken) - taken)))
        run.epoch()
        _wait(lambda: _answered(records) == EPOCHS + 1, "the run is decided on still")
        return [
            *(Attacked(end, stream, number, accepted, True) for end, stream, accepted in found),
            _attack_updates(controller, records, keys, updates, number, draw),
        ]


def _attack_updates(
    controller: Controller, records: Records, keys: KeyRing, updates: Sequence[PolicyUpdate], number: int, draw: Random
) -> Attacked:
    good = [seal(keys.signing, Stream.UPDATES, AUDIENCE, one.framed(), time.time_ns()).content for one in updates]
    with PolicyUpdates(controller.live, controller.verifier) as considering:
        before, incumbent = _written(records), controller.live.incumbent
        bad = islice(bad_envelopes(draw, keys.signing, good), number)
        accepted = sum(considering.consider(content).reason is not UpdateReason.ENVELOPE for content in bad)
        accepted += (before, incumbent) != (_written(records), controller.live.incumbent)
        believes = considering.consider(good[0]).reason is not UpdateReason.ENVELOPE
    return Attacked("service", Stream.UPDATES, number, accepted, believes)


class _Run:
    """A run at its end of a bus, without a model: its packets are given."""

    def __init__(self, bus: InProcessBus, keys: KeyRing, packets: Sequence[SystemState]) -> None:
        model, x = nn.Linear(2, 2), torch.zeros(2, 2)
        slots, epochs = len(packets[0].seeds), packets[0].max_epochs or len(packets)
        training = Training(model, torch.optim.SGD(model.parameters()), x, 0, slots, VECTOR, epochs, True)
        self.link = Link(bus, lambda: keys, RUN, training, PATIENCE_SECONDS, lambda: None, time.time_ns)
        self._packets = iter(packets)
        self.taken: list[AdaptationCommand] = []
        self.link.on_command = self.taken.append

    def epoch(self) -> None:
        """Ask for a command, and say that it is carried out."""
        packet = next(self._packets).model_copy(update={"run_id": RUN})
        self.link.ask(packet, 0.0)
        if not self.link.wait(packet.epoch, PATIENCE_SECONDS):
            raise RuntimeError("no command came")
        stages = {seed.slot: seed.stage for seed in packet.seeds}
        result = CommandResult(
            command_id=self.taken[-1].command_id,
            run_id=RUN,
            outcome=Outcome.APPLIED,
            epoch=packet.epoch,
            stages_before=stages,
            stages_after=stages,
        )
        self.link.report(result)

    def __enter__(self) -> _Run:
        try:
            self.link.join(resumed=False)
        except BaseException:
            self.link.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()


def _answered(records: Records) -> int:
    return sum(isinstance(one, Record) and one.fate is Fate.ANSWERED for one in records.records(RUN))


def _written(records: Records) -> tuple[Head, int]:
    """All that was ever written to a store, in short."""
    with records.snapshot() as connection:
        (nonces,) = connection.execute("SELECT count(*) FROM nonces").fetchone()
        return tip(connection), nonces


def _for_others(content: bytes) -> bool:
    try:
        return Envelope.read(content).audience != RUN
    except ValueError:
        return False


# ------------------------------------------------------------------ field reports
def attack_reports(
    place: Path, keys: KeyRing, packets: Sequence[SystemState], number: int, draw: Random
) -> list[Attacked]:
    """Attack who takes field reports, and who takes their acknowledgements.

    Args:
        place: An empty directory.
        keys: Of both.
        packets: As for :class:`FieldWriter`.
        number: Bad envelopes for each of the two.
        draw: Chance.
    """
    with Store(place / "state") as store:
        writer = FieldWriter(store, lambda: keys, packets)
        while writer.reports < EPOCHS:
            writer.write()
        now = time.time_ns()
        ids = [report_id for report_id, _ in due(store, now, now + 10**18, EPOCHS, ())]
        experiences = [found for report_id in ids if (found := read_experience(store, report_id)) is not None]
        reports = [seal(keys.signing, Stream.REPORTS, RUN, one.framed(), now).content for one in experiences]
        acks = [ReportAck(report_id=UUID(report_id), run_id=RUN).model_dump_json().encode() for report_id in ids]
        sealed = [seal(keys.signing, Stream.ACKS, RUN, ack, now).content for ack in acks]
        return [
            _attack_taking(place / "taken", keys, reports, number, draw),
            _attack_acks(store, keys, sealed, number, draw),
        ]


def _attack_taking(file: Path, keys: KeyRing, good: Sequence[bytes], number: int, draw: Random) -> Attacked:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE effects (report_id TEXT)")
    with InProcessBus() as bus, TakesReports(bus, lambda: keys, file, insert) as takes:

        def effects() -> int:
            tables = ("effects", "taken_reports", "nonces")
            return max(takes.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)

        def taken(*contents: bytes) -> None:
            for content in contents:
                bus.send(Stream.REPORTS, content)
                assert takes.step()

        taken(*islice(bad_envelopes(draw, keys.signing, good), number))
        accepted = effects()
        taken(good[0])
        return Attacked("learner", Stream.REPORTS, number, accepted, effects() == accepted + 1)


def _attack_acks(store: Store, keys: KeyRing, good: Sequence[bytes], number: int, draw: Random) -> Attacked:
    with InProcessBus() as bus:
        delivery = ReportDelivery(store, bus, lambda: keys)
        delivery.step()

        def delivered(contents: Iterator[bytes]) -> int:
            for content in contents:
                bus.send(Stream.ACKS, content)
                delivery.step()
            assert _settled(bus, Stream.ACKS, Role.SERVICE)
            return count(store, DeliveryState.DELIVERED)

        accepted = delivered(islice(bad_envelopes(draw, keys.signing, good), number))
        return Attacked("service", Stream.ACKS, number, accepted, delivered(iter(good[:1])) == accepted + 1)
