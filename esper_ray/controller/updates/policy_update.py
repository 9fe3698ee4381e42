"""A policy update as it travels: what it is, and its weights as safetensors. Nothing of it is ever unpickled."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field

from esper_ray.controller.framing import framed, parts_of
from policies.strategic.packet_values import Count, Message

AUDIENCE = "policy"
"""What an update is about, in place of a run: the policy of every run of the service."""


class UpdateHead(Message):
    """What an update says of its weights; none of it is believed before it was checked."""

    version: Count
    """Number of the update, above all that were accepted before."""
    manifest: Annotated[str, Field(max_length=1 << 20)]
    """The checkpoint's manifest (:class:`policies.strategic.checkpoint.Manifest`), as JSON: architecture, shapes,
    SHA-256 of the weights, digests of the registries."""
    trained_on: Annotated[str, Field(max_length=500)] = ""
    """What its last training was, in words."""


class PolicyUpdate(Message):
    """New weights for a graph policy."""

    head: UpdateHead
    weights: Annotated[bytes, Field(repr=False)]
    """As safetensors."""

    def framed(self) -> bytes:
        """As it travels."""
        return framed(self.head, self.weights)

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Read it. That its weights are what its head says is for others to check.

        Raises:
            ValueError: it is none.
        """
        frames = parts_of(content, 1)
        parts = parts_of(frames[0], 2) if frames else []
        if len(parts) != 2:
            raise ValueError("it is no policy update: a head and weights are its parts")
        return cls(head=UpdateHead.model_validate_json(parts[0]), weights=parts[1])
