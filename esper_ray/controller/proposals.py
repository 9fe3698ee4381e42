"""What a service asks a policy in a process of its own, and what it gets: requests, proposals, replies."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from envs.slots import SlotConfig
from esper_ray.controller.commands import Blending
from esper_ray.controller.framing import framed
from policies.strategic.packet_values import Count, Message, Name, Names, Natural, NotNegative, Number, Share


class Proposal(Message):
    """What a policy would do, and all that it says beside that. Every number in it is finite."""

    policy_version: Name
    """Of the policy: SHA-256 of what describes it, or the name of a control."""
    action: tuple[Natural, ...]
    """Index in each head of the packet's slots, op first; the packet's mask admits it."""
    log_prob: float
    """Joint log-probability of the action."""
    op_probs: dict[Name, float]
    """Probability of every op."""
    value: Number | None = None
    """Of the state, in reward units; None of a policy without a critic."""
    risk: Share | None = None
    """Expected policy risk: its classes' numbers from 0 to 1, weighted with their probabilities; None of a policy that
    says none."""
    blending: dict[Name, Blending] = Field(default_factory=dict)
    """Slot → how to blend its seed in, where the policy says that."""
    embedding: tuple[float, ...] | None = None
    """What it has read of the run, as numbers to store."""
    inference_ms: NotNegative
    """Time that it took, from the packet's bytes to this."""
    hidden: Annotated[bytes | None, Field(exclude=True, repr=False)] = None
    """What it remembers of the run: handed in with the next request, no part of the JSON. None if it remembers
    nothing."""


class Ending(StrEnum):
    """How asking a policy can end."""

    ANSWER = "answer"
    TIMEOUT = "timeout"
    """Not within the deadline; what it says later is dropped."""
    CRASHED = "crashed"
    """Its process ended, or was ended because it was stuck."""
    STARTING = "starting"
    """There is no process yet, or not again."""
    NOT_FINITE = "not finite"
    MASKED_ACTION = "masked action"
    """It chose what the mask does not admit."""
    ERROR = "error"


@dataclass(frozen=True)
class Reply:
    """How asking a policy ended.

    Attributes:
        ending: Of it.
        reason: One line; empty with an answer.
        proposal: Of an answer, else None. Whatever else happened, the policy remembers what it did before.
    """

    ending: Ending
    reason: str = ""
    proposal: Proposal | None = None


@dataclass(frozen=True)
class Request:
    """One question. It has all that the answer depends on, so that any worker answers it, and each the same.

    Attributes:
        packet: A :class:`policies.strategic.messages.SystemState` as JSON.
        seed: Of the policy's draws (:func:`draw_seed`).
        hidden: From the proposal before, None at a run's start.
        mask: What is admitted, in place of the packet's own; None leaves that.
        greedy: Take the most probable choices instead of drawing.
    """

    packet: bytes
    seed: int
    hidden: bytes | None = None
    mask: tuple[int, ...] | None = None
    greedy: bool = False

    def framed(self) -> bytes:
        """As it travels."""
        blobs = () if self.hidden is None else (self.hidden,)
        return framed(_Head(seed=self.seed, mask=self.mask, greedy=self.greedy), self.packet, *blobs)

    @classmethod
    def of(cls, parts: list[bytes]) -> Self:
        """From the parts of a frame.

        Raises:
            ValueError: it is no request.
        """
        content, packet, *blobs = parts
        head = _Head.model_validate_json(content)
        return cls(packet, head.seed, blobs[0] if blobs else None, head.mask, head.greedy)


class _Head(Message):
    """A request's small parts."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    mask: tuple[Annotated[int, Field(ge=0, le=1)], ...] | None
    greedy: bool


class TrainedOn(Message):
    """What runs a policy has learned on."""

    topologies: Names
    """Of their hosts."""
    shortest: Count
    """Epochs."""
    longest: Count


class Hello(Message):
    """A worker's first message: which policy it has, or why it has none."""

    policy_version: Name | None = None
    problem: str = ""
    num_slots: Count | None = None
    """That a run must have; None if any number will do."""
    internal_levels: bool = False
    """Of those slots."""
    trained_on: TrainedOn | None = None
    """None of a policy that does not say."""
    compiled: bool | None = None
    """Whether its network is; None where there is none to be compiled."""
    compile_warm_ms: NotNegative | None = None
    """Time that the network's first passes took, likewise."""

    @classmethod
    def of(cls, policy_version: str, slots: SlotConfig | None, **more: Any) -> Self:
        """Of a worker that has its policy."""
        if slots is not None:
            more |= {"num_slots": slots.num_slots, "internal_levels": slots.internal_levels}
        return cls(policy_version=policy_version, **more)

    @property
    def policy(self) -> Hello:
        """What any worker with this policy says."""
        return self.model_copy(update={"compiled": None, "compile_warm_ms": None})

    @property
    def slots(self) -> SlotConfig | None:
        """That a run must have; None if any will do."""
        return None if self.num_slots is None else SlotConfig.for_row(self.num_slots, self.internal_levels)


class Answer(Message):
    """A worker's message to a request."""

    ending: Ending
    reason: str = ""
    proposal: Proposal | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.ending is Ending.ANSWER) != (self.proposal is not None):
            raise ValueError("an answer has a proposal, and nothing else has")
        return self

    def framed(self) -> bytes:
        """As it travels."""
        hidden = None if self.proposal is None else self.proposal.hidden
        return framed(self, *(() if hidden is None else (hidden,)))

    @classmethod
    def reply(cls, parts: list[bytes]) -> Reply:
        """What the parts of a frame say.

        Raises:
            ValueError: they are no answer.
        """
        content, *blobs = parts
        answer = cls.model_validate_json(content)
        proposal = answer.proposal
        if proposal is not None and blobs:
            proposal = proposal.model_copy(update={"hidden": blobs[0]})
        return Reply(answer.ending, answer.reason, proposal)


def draw_seed(run_id: str, packet_id: str) -> int:
    """The seed of the draws on a packet: a hash of the names that it has, whoever decides on it and when."""
    names = b"".join(len(name).to_bytes(8, "big") + name for name in (run_id.encode(), packet_id.encode()))
    return int.from_bytes(hashlib.sha256(names).digest()[:8], "big") >> 1
