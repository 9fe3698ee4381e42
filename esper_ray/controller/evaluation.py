"""What one evaluation is given, what it goes on from, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Self

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from envs.ranges import Positive, check_numbers
from esper_ray.controller.assessment import Assessment, RiskConfig, RunState
from esper_ray.controller.breakers import BreakerConfig, BreakerState
from esper_ray.controller.case import Case, Latencies
from esper_ray.controller.commands import AdaptationCommand, Reason
from esper_ray.controller.conservative import ModeEvent
from esper_ray.controller.proposals import Proposal
from esper_ray.controller.records import StoredRun
from esper_ray.controller.reports.windows import WindowConfig
from esper_ray.controller.store import Entering, entering_nothing
from esper_ray.errors import UserError
from esper_ray.reading import checked, describe_problems, read_json
from policies.strategic.messages import SystemState


@dataclass(frozen=True)
class ControllerConfig:
    """How a controller decides."""

    risk: RiskConfig = field(default_factory=RiskConfig)
    """When it steps in."""
    breakers: BreakerConfig = field(default_factory=BreakerConfig)
    """Of those around the policy and the catalogue."""
    windows: WindowConfig = field(default_factory=WindowConfig)
    """For how long decisions are followed."""
    inference_ms: Positive = 45.0
    """Within which the policy's answer counts, milliseconds."""
    catalogue_ms: Positive = 200.0
    """Within which the catalogue is read."""
    evaluate_ms: Positive = 60.0
    """Within which a decision must stand; writing it down comes after."""
    return_ms: Positive = 200.0
    """Within which it must be written down, the deciding included."""
    standby: bool = False
    """Keep a second worker, which takes over as soon as the first has ended."""
    greedy: bool = False
    """Take the policy's likeliest action instead of drawing one."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)


class _Given(BaseModel):
    """The border check of a file: types and unknown fields, in nested parts too."""

    model_config = ConfigDict(extra="forbid")
    config: ControllerConfig


def read_config(path: Path) -> ControllerConfig:
    """A config from a JSON file, such as ``{"risk": {"thresholds": {"loss_delta_pauses": 0.3}}}``.

    Raises:
        UserError: it cannot be read, has an unknown field, or a value that it cannot have.
    """
    return checked({"config": read_json(path)}, TypeAdapter(_Given), str(path)).config


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, for whoever watches.

    Attributes:
        command: That came of it.
        milliseconds: That it took.
        detail: What went wrong, in a line; empty where nothing did.
        packet: That it is of; None of something that is no packet.
        case: That was judged; None where nothing could be, as in the next two.
        assessment: What the risk table says.
        proposal: Of the policy; None without one.
        event: Conservative mode began or ended.
        breakers: State of each, by what is called.
        recorded: Whether it is in the store. A judged one is not only where nothing is wrong with a step.
        content: Exactly what is sent of the command, and is on record.
    """

    command: AdaptationCommand
    milliseconds: float
    detail: str = ""
    packet: SystemState | None = None
    case: Case | None = None
    assessment: Assessment | None = None
    proposal: Proposal | None = None
    event: ModeEvent | None = None
    breakers: dict[str, BreakerState] = field(default_factory=dict)
    recorded: bool = False
    content: bytes = field(default=b"", repr=False)


@dataclass
class Run:
    """What the service has of a run. Who holds the turn may change it.

    Attributes:
        turn: Of evaluating it.
        memory: As it is in the store; None until it was read.
        latencies: That were measured since.
    """

    turn: Lock = field(default_factory=Lock)
    memory: Memory | None = None
    latencies: Latencies = field(default_factory=Latencies)


@dataclass(frozen=True)
class Memory:
    """What the next decision of a run depends on."""

    state: RunState = field(default_factory=RunState)
    hidden: bytes | None = None
    policy_version: str | None = None

    @classmethod
    def of(cls, stored: StoredRun | None) -> Self:
        """As it was stored; that of a new run where nothing was."""
        if stored is None:
            return cls()
        return cls(RunState.model_validate_json(stored.memory), stored.hidden, stored.policy_version)

    @property
    def stored(self) -> StoredRun:
        """As it is stored."""
        memory = self.state.model_dump_json().encode()
        return StoredRun(memory=memory, hidden=self.hidden, policy_version=self.policy_version)

    def hidden_of(self, policy_version: str | None) -> bytes | None:
        """What this policy remembers of the run; None where it was another one that remembered, or none."""
        return self.hidden if self.policy_version == policy_version else None


@dataclass
class Call:
    """One evaluation under way.

    Attributes:
        packet: To decide on.
        run: Of the packet.
        began: On the service's clock.
        config: With its deadlines.
        faults: Of the way that the packet came, for the risk table.
        entering: Enters the message that it came in, in the transaction of the decision.
        memory: Of the run when its turn came.
    """

    packet: SystemState
    run: Run
    began: float
    config: ControllerConfig
    faults: frozenset[Reason] = frozenset()
    entering: Entering = entering_nothing
    memory: Memory = field(default_factory=Memory)

    def left_to_decide(self, now: float) -> float:
        """Seconds, 0 once they are over."""
        return max(self.began + self.config.evaluate_ms / 1e3 - now, 0.0)

    def left_to_return(self, now: float) -> float:
        """Seconds, 0 once they are over."""
        return max(self.began + self.config.return_ms / 1e3 - now, 0.0)


class PacketRefused(Exception):
    """What was given to be decided on cannot be; one line of why."""


def checked_packet(state: object) -> SystemState:
    """A packet that is what its class promises: there are ways around a class's own checks.

    Raises:
        PacketRefused: it is not.
    """
    if not isinstance(state, SystemState):
        raise PacketRefused(f"a packet is needed, got a {type(state).__name__}")
    try:
        return SystemState(**dict(state))
    except ValidationError as error:
        raise PacketRefused(describe_problems(error)) from error
