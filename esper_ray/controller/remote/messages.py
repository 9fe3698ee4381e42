"""What a run and its service say to each other beside commands and results."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, TypeAdapter

from envs.live.places import KINDS
from envs.slots import SlotConfig
from esper_ray.controller.commands import AdaptationCommand
from esper_ray.controller.framing import framed, parts_of
from policies.strategic.messages import SystemState
from policies.strategic.packet_values import Count, Message, Name, NotNegative


class Joining(Message):
    """A run asks to be decided on: is there somebody, and can they?"""

    form: Literal["joining"] = "joining"
    token: UUID
    """Of the question; the answer has the same."""
    run_id: Name
    kind: Annotated[str, Field(pattern=f"^({'|'.join(KINDS)})$")]
    """Of the slots (:data:`envs.live.places.KINDS`)."""
    slots: Count
    max_epochs: Count
    force: bool
    """A policy of another topology will do."""
    resumed: bool
    """It has been decided on before."""

    def framed(self) -> bytes:
        """As it travels."""
        return framed(self)


class Leaving(Message):
    """A run is over."""

    form: Literal["leaving"] = "leaving"
    run_id: Name

    def framed(self) -> bytes:
        """As it travels."""
        return framed(self)


class Welcome(Message):
    """The answer."""

    form: Literal["welcome"] = "welcome"
    token: UUID
    """Of the question."""
    problem: str = ""
    """Why the run cannot be decided on; empty where it can."""
    num_slots: Count | None = None
    """That the policy drives; None if any number will do."""
    internal_levels: bool = False
    """Of those slots."""
    observe: bool = False
    """Decisions are only recorded: no command will come."""

    @property
    def slots(self) -> SlotConfig | None:
        """That the policy drives; None if any will do."""
        return None if self.num_slots is None else SlotConfig.for_row(self.num_slots, self.internal_levels)


class StateHead(Message):
    """What comes before a packet."""

    form: Literal["state"] = "state"
    hook_ms: NotNegative | None = None
    """As for :meth:`esper_ray.controller.service.Controller.evaluate_epoch`."""


class State(Message):
    """A packet to decide on."""

    head: StateHead
    packet: SystemState

    @property
    def run_id(self) -> str:
        """Of the run."""
        return self.packet.run_id

    def framed(self) -> bytes:
        """As it travels."""
        return framed(self.head, self.packet.model_dump_json().encode())


_TO_SERVICE: TypeAdapter[Joining | Leaving | StateHead] = TypeAdapter(
    Annotated[Joining | Leaving | StateHead, Field(discriminator="form")]
)
_TO_RUN: TypeAdapter[AdaptationCommand | Welcome] = TypeAdapter(AdaptationCommand | Welcome)


def read_by_service(content: bytes) -> Joining | Leaving | State:
    """What a run has said.

    Raises:
        ValueError: it is none of these.
    """
    frames = parts_of(content, 1)
    parts = parts_of(frames[0], 2) if frames else []
    if not parts:
        raise ValueError("it is empty")
    head = _TO_SERVICE.validate_json(parts[0])
    if not isinstance(head, StateHead):
        return head
    if len(parts) != 2:
        raise ValueError("there is no packet in it")
    return State(head=head, packet=SystemState.model_validate_json(parts[1]))


def read_by_run(content: bytes) -> AdaptationCommand | Welcome:
    """What a service has said.

    Raises:
        ValueError: it is none of these.
    """
    return _TO_RUN.validate_json(content)
