"""A service at its end of a bus, killed at any moment of its evaluations, again and again.

``python -m benchmarks.killed_service`` is a nursery of such services (:mod:`benchmarks.nursery`). All of one is real
but its policy's process, which takes seconds to start: this one counts, in the service's own. Runs are at the other end
of the bus. What a service was given and has not answered it is given again by the next one, as a bus does that outlives
it; so is what it has answered last.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.nursery import DONE, Nursery, raise_children, tell
from envs.vocabulary import HEAD_NAMES, LifecycleOp, SeedStage
from esper_ray.bus.in_process import InProcessBus
from esper_ray.bus.interface import Bus
from esper_ray.bus.streams import Role, Stream
from esper_ray.controller import service
from esper_ray.controller.commanding import sent_command
from esper_ray.controller.commands import CommandResult, Outcome
from esper_ray.controller.envelope import seal
from esper_ray.controller.evaluation import ControllerConfig
from esper_ray.controller.keys import Key, KeyRing, KeyState
from esper_ray.controller.proposals import Ending, Hello, Proposal, Reply, Request
from esper_ray.controller.records import Fate, Record
from esper_ray.controller.remote.messages import State, StateHead
from esper_ray.controller.remote.service_end import ServiceEnd
from esper_ray.controller.store import Store
from policies.strategic.messages import SeedState, SystemState

RUNS = ("one", "two", "three")
EPOCHS = 12
"""Of each."""
A_STORE = 5
"""Services that are killed on each store, before one goes on to the end of the runs."""
MOST_TOLD = 5
"""Commands that a service has sent when it is killed, at most."""
LONGEST = 0.05
"""Seconds that it lives from then on, at most."""
THINKING_S = 0.003
GROUP = "runs"
NOW_NS = 1_800_000_000 * 10**9
"""All that is sent is sent now, and never too old."""
PATIENT = ControllerConfig(inference_ms=1e9, evaluate_ms=1e9, return_ms=1e9)
VERSION = "counting"
_UNSENT = (Fate.PENDING, Fate.ABORTED)


def keys() -> KeyRing:
    """Of all."""
    return KeyRing((Key(bytes(range(32)), KeyState.SIGNING),))


def now_ns() -> int:
    """The time of day, which stands."""
    return NOW_NS


class Counting:
    """A policy that waits, and remembers of each run how often it was asked about it."""

    deadline_s, version, pids = 1e9, VERSION, (0,)

    def __init__(self, name: str, **_: object) -> None:
        self.name = name

    def wait_ready(self) -> Hello:
        """It is."""
        return Hello(policy_version=VERSION)

    def ask(self, request: Request, deadline_s: float | None = None) -> Reply:
        """Count, after a moment."""
        time.sleep(THINKING_S)
        times = int(request.hidden or b"0") + 1
        proposal = Proposal(
            policy_version=VERSION,
            action=(0,) * len(HEAD_NAMES),
            log_prob=0.0,
            op_probs={LifecycleOp.WAIT.name: 1.0},
            value=float(times),
            inference_ms=0.0,
            hidden=b"%d" % times,
        )
        return Reply(Ending.ANSWER, proposal=proposal)

    def close(self) -> None:
        """Nothing is left."""


# ---------------------------------------------------------------------- in a child
@dataclass
class Course:
    """How far a run is.

    Attributes:
        messages: Its packets, as they are sent.
        at: Of them the one that it waits for an answer to.
    """

    messages: list[bytes]
    at: int


@dataclass
class Runs:
    """Runs at their end of a bus: each sends a packet, waits for its command, says what became of it, and goes on.

    Args:
        bus: To the service.
        courses: Of the runs.
    """

    bus: Bus
    courses: dict[str, Course] = field(default_factory=dict)

    def begin(self) -> None:
        """Send again what was answered last, and what was not."""
        for course in self.courses.values():
            for content in course.messages[max(course.at - 1, 0) : course.at + 1]:
                self.bus.send(Stream.STATES, content)

    def play(self) -> None:
        """To the end of all."""
        while any(course.at < len(course.messages) for course in self.courses.values()):
            is_idle = self._is_idle()
            deliveries = self.bus.receive(Stream.COMMANDS, GROUP, GROUP, wait_s=0.0 if is_idle else 0.01)
            for delivery in deliveries:
                self._take(delivery.payload)
                self.bus.acknowledge(delivery)
            if is_idle and not deliveries:  # what they wait for was lost with the service before
                for course in self.courses.values():
                    self._go_on(course)

    def _take(self, content: bytes) -> None:
        command = sent_command(content)
        tell(content.hex())
        result = CommandResult(
            command_id=command.command_id,
            run_id=command.run_id,
            outcome=Outcome.APPLIED,
            epoch=command.expects.epoch,
            stages_before={},
            stages_after={},
        )
        said = seal(keys().signing, Stream.RESULTS, command.run_id, result.model_dump_json().encode(), NOW_NS)
        self.bus.send(Stream.RESULTS, said.content)
        self._go_on(self.courses[command.run_id])

    def _go_on(self, course: Course) -> None:
        course.at += 1
        if course.at < len(course.messages):
            self.bus.send(Stream.STATES, course.messages[course.at])

    def _is_idle(self) -> bool:
        group = self.bus.state(Stream.STATES).groups[Role.SERVICE]
        return not group.pending and not group.unread


def serve(line: str) -> None:
    """A service, and runs; to their end, and then to its own if it is said to."""
    given = json.loads(line)
    place = Path(given["directory"])
    messages = json.loads(place.with_suffix(".json").read_text())
    courses = {run_id: Course(list(map(bytes.fromhex, messages[run_id])), at) for run_id, at in given["at"].items()}
    with (
        InProcessBus() as bus,
        service.Controller(VERSION, place, config=PATIENT, keys=keys, time_ns=now_ns) as controller,
        ServiceEnd(controller, bus, keys, now_ns),
    ):
        bus.join(Stream.COMMANDS, GROUP)
        runs = Runs(bus, courses)
        runs.begin()
        runs.play()
        if not given["ends"]:
            tell(DONE)
            threading.Event().wait()


# ---------------------------------------------------------------------- who kills it
def sealed_packets(run_id: str) -> list[bytes]:
    """A run's packets as it sends them."""
    packets = [
        SystemState(
            run_id=run_id,
            packet_id=f"{run_id} {epoch}",
            timestamp_ns=0,
            declared=("run.max_epochs",),
            epoch=epoch,
            max_epochs=EPOCHS,
            seeds=(SeedState(slot="stem", stage=SeedStage.DORMANT),),
        )
        for epoch in range(EPOCHS)
    ]
    return [
        seal(keys().signing, Stream.STATES, run_id, State(head=StateHead(), packet=each).framed(), NOW_NS).content
        for each in packets
    ]


@dataclass(frozen=True)
class ServiceKills:
    """What killing services came to.

    Attributes:
        kills: How many.
        told: Commands that runs have had.
        untold: Decisions whose commands nobody has had: their services were killed before that.
    """

    kills: int
    told: int
    untold: int


def service_kills(directory: Path, times: int, seed: int = 0) -> ServiceKills:
    """Kill services as they evaluate; after each look whether its store has all that it ever said, and nothing twice.

    Args:
        directory: For the stores.
        times: How many at least.
        seed: Of the moments.

    Raises:
        AssertionError: something is missing, or there twice.
        StoreFailed: a store is not whole.
    """
    draw, killed, told, untold = random.Random(seed), 0, 0, 0
    with Nursery("benchmarks.killed_service") as nursery:
        while killed < times:
            place, commands = directory / str(killed), dict[str, bytes]()
            messages = {run_id: [content.hex() for content in sealed_packets(run_id)] for run_id in RUNS}
            place.with_suffix(".json").write_text(json.dumps(messages))
            for life in range(A_STORE + 1):
                is_last = life == A_STORE
                line = json.dumps({"directory": str(place), "at": _reached(commands), "ends": is_last})
                if is_last:
                    lines = nursery.ended(line)
                else:
                    lines = nursery.killed(line, draw.random() * LONGEST, draw.randrange(MOST_TOLD + 1))
                    killed += 1
                for content in map(bytes.fromhex, lines):
                    command_id = str(sent_command(content).command_id)
                    assert command_id not in commands, "a command was sent twice"
                    commands[command_id] = content
                decided = _decided(place, commands)
                assert decided - len(commands) <= len(RUNS) * (life + 1), "more was decided than one packet a run"
            assert decided == len(RUNS) * EPOCHS, "a packet was left out"
            told, untold = told + len(commands), untold + decided - len(commands)
    return ServiceKills(killed, told, untold)


def _reached(commands: Mapping[str, bytes]) -> dict[str, int]:
    """Of each run the first epoch of which it has no command, and had none of a later one."""
    reached = dict.fromkeys(RUNS, 0)
    for command in map(sent_command, commands.values()):
        reached[command.run_id] = max(reached[command.run_id], command.expects.epoch + 1)
    return reached


def _decided(place: Path, commands: Mapping[str, bytes]) -> int:
    """Decisions of a store that is whole, has these commands as they were sent, and each packet at most once."""
    found, unsent = dict[str, bytes](), set[str]()
    with Store(place) as store:
        assert store.faults() == []
        for run_id in RUNS:
            records = list(store.records(run_id))
            decisions = [record.decision for record in records if isinstance(record, Record)]
            assert len(decisions) == len(records), "a record cannot be read"
            epochs = [decision.epoch for decision in decisions]
            assert epochs == list(range(len(epochs))), f"{run_id}: decided on {epochs}"
            assert [_times(decision.proposal) for decision in decisions] == [epoch + 1 for epoch in epochs]
            state = store.state(run_id)
            remembered = None if state is None else state.hidden
            assert remembered == (b"%d" % len(epochs) if epochs else None), "a state is not its decision's"
            found |= {decision.command_id: decision.command for decision in decisions}
            unsent |= {one.decision.command_id for one in records if isinstance(one, Record) and one.fate in _UNSENT}
    assert {command_id: found.get(command_id) for command_id in commands} == dict(commands), (
        "what was sent is not there"
    )
    assert not unsent & commands.keys(), "what was sent is said never to have been"
    return len(found)


def _times(proposal: bytes | None) -> float | None:
    assert proposal is not None
    return Proposal.model_validate_json(proposal).value


def main() -> None:
    """A nursery of services."""
    # A real one has its policy in a process that takes seconds to start; all else is as it is.
    vars(service)["IsolatedPolicy"] = Counting
    raise_children(serve)


if __name__ == "__main__":
    main()
