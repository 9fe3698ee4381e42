"""What clients send to a policy that reads graphs, and what it answers: a packet in, and all that is said of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from envs.slots import SlotConfig
from envs.vocabulary import BLENDING_METHODS
from esper_ray.serving.messages import StrictRequest, check_choices, chosen, parse
from policies.bundle import Actions
from policies.strategic.inference import Reading
from policies.strategic.messages import SystemState
from policies.strategic.schema import RISK_CLASSES
from policies.strategic.seen import Seen
from policies.strategic.taught import Taught

_WIDEST = SlotConfig.for_row(1, internal_levels=True)


class PacketRequest(StrictRequest):
    """Body of ``POST /sessions/NAME/actions``: one host as a packet.

    Attributes:
        packet: docs/packet.md has all of it.
        step: Decisions before this one; the same one again gets the same answer. None takes it as the next.
    """

    packet: SystemState
    step: int | None = Field(default=None, ge=0)


@dataclass(frozen=True)
class PacketInterface:
    """Of a policy that reads packets (see :class:`esper_ray.serving.messages.Interface` for the methods).

    Attributes:
        task: That it was trained on, or several with commas between them.
        iteration: Iterations that it was trained for; None if it has learnt by imitation.
        seen: What its training showed.
        taught: What it was taught beside its action and values.
    """

    task: str
    iteration: int | None
    seen: Seen
    taught: Taught

    def described(self) -> dict[str, Any]:
        """Choices, whatever a packet's slots are, and what the policy neither reads nor chooses."""
        heads = {head.name: list(head.choices) for head in _WIDEST.heads if head.name != "slot"}
        return {
            "reads": "packet",
            "task": self.task,
            "iteration": self.iteration,
            "schema_version": SystemState.model_fields["schema_version"].default,
            "heads": heads,
            "risks": list(RISK_CLASSES),
            "blending_methods": list(BLENDING_METHODS),
            "taught": self.taught.model_dump(),
            "never_seen": {what: list(names) for what, names in self.seen.never.items()},
        }

    def read(self, body: bytes) -> tuple[int | None, SystemState]:
        """A packet, whose mask leaves a choice in each head that an admitted op needs."""
        request = parse(PacketRequest, body)
        if request.packet.action_mask:
            mask = np.array(request.packet.action_mask, np.int8)
            check_choices(mask, _slots_of(request.packet).heads, "packet.action_mask")
        return request.step, request.packet

    def answer(self, step: int, decided: dict[str, Any]) -> dict[str, Any]:
        """Of what :func:`said` has."""
        return {"step": step, **decided}


def said(packet: SystemState, reading: Reading, action: Actions, return_scale: float) -> dict[str, Any]:
    """All that clients are told of a packet, as JSON.

    Args:
        packet: What was read.
        reading: What the policy says of it.
        action: What was chosen, ``[num_heads]``.
        return_scale: Reward units per unit of the policy's value.
    """
    result = reading.result
    methods = result.blending_method_logits[0].argmax(dim=-1).tolist()
    blending = {
        seed.slot: {"method": BLENDING_METHODS[method], "start": start, "end": end}
        for seed, method, (start, end) in zip(packet.seeds, methods, result.schedule[0].tolist(), strict=False)
    }
    heads = _slots_of(packet).heads if packet.seeds else reading.slots.heads
    return {
        **chosen(heads, action),
        "value": return_scale * float(result.scaled_value),
        "risk": reading.risk,
        "blending": blending,
        "coverage": reading.coverage.level.name,
    }


def _slots_of(packet: SystemState) -> SlotConfig:
    """A packet's slots by their own names."""
    return SlotConfig(tuple(seed.slot for seed in packet.seeds), internal_levels=packet.internal_levels)
