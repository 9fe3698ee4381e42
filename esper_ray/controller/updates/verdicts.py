"""How the considering of an update can end, and how an update that decides can end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class UpdateReason(StrEnum):
    """Why an update does not come to decide: the first that holds, in this order."""

    ENVELOPE = "envelope"
    """Its envelope is not believed: not signed, forged, for somebody else, or too old."""
    MALFORMED = "malformed"
    """Its parts, or what its manifest says of itself, cannot be read."""
    NOT_TAKEN = "not_taken"
    """The service's policy is no checkpoint of a graph policy."""
    PROBATION = "probation"
    """The update before is on probation."""
    VERSION = "version"
    """Its version is not above the highest that was ever accepted."""
    ROLLED_BACK = "rolled_back"
    """An update with these weights was rolled back."""
    TOO_LARGE = "too_large"
    """Its weights are larger than 64 MiB."""
    ARCHITECTURE = "architecture"
    """Its network is another one than the live policy's, or reads other inputs."""
    WEIGHTS_SHA256 = "weights_sha256"
    """Its weights are not those that its manifest was written for."""
    REGISTRIES = "registries"
    """Its names do not have the digests that it says, or not the numbers that they have in the live policy."""
    SHAPES = "shapes"
    """Its weights are no safetensors file with the tensors of its network."""
    NOT_FINITE = "not_finite"
    """A weight is NaN or infinite."""
    SHADOW_FAILED = "shadow_failed"
    """Asked in a process of its own about packets of the past, it gave no answer that can be used."""
    SHADOW_LATE = "shadow_late"
    """The same, and its answers came too late."""
    STORE_FAILED = "store_failed"
    """It could not be written down."""
    FAILED = "failed"
    """The service itself failed at it; its log says how."""


class RollbackReason(StrEnum):
    """Why an update that decided does so no more."""

    ANOMALIES = "anomalies"
    """In probation it failed, was late, was not finite or expected CRITICAL risk too often."""
    OPERATOR = "operator"
    """Somebody said so."""


class UpdateRejected(Exception):
    """An update does not come to decide.

    Args:
        reason: Why.
        detail: The same in a line.

    Attributes:
        reason: As given.
    """

    def __init__(self, reason: UpdateReason, detail: str) -> None:
        super().__init__(" ".join(detail.split()))
        self.reason = reason


@dataclass(frozen=True)
class UpdateVerdict:
    """What came of an update.

    Attributes:
        reason: Why it was rejected; None of one that was accepted.
        detail: The same in a line.
        version: That it says it has; None where it cannot be read.
        policy_version: Of the policy that it is, as its decisions carry it; likewise.
    """

    reason: UpdateReason | None
    detail: str
    version: int | None = None
    policy_version: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether it decides from now on, on probation first."""
        return self.reason is None
