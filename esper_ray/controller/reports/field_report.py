"""What a decision led to, as it is told to whoever learns from it, and that they have it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self
from uuid import UUID

from pydantic import Field

from envs.vocabulary import Blueprint, LifecycleOp
from esper_ray.controller.framing import framed, parts_of
from esper_ray.controller.records import Decision
from policies.strategic.packet_values import ByName, Count, Message, Name, Names, Natural, Number


class ReportOutcome(StrEnum):
    """What the validation loss did in a decision's observation window, beside what it did before."""

    SUCCESS = "success"
    """It fell by more than its noise beyond the mean before."""
    NEUTRAL = "neutral"
    REGRESSION = "regression"
    """It rose by as much, or something CRITICAL happened that had not before."""
    ABORTED = "aborted"
    """The window did not close: the run ended, or went on for too long without a validation loss."""


class FieldReport(Message):
    """What followed one decision, within its observation window. Losses are the run's validation losses."""

    report_id: UUID
    """The same whenever it is sent again: who has it is to take it once."""
    command_id: UUID
    """Of the decision's command."""
    run_id: Name
    """Of the run."""
    epoch: Natural
    """At which it was decided."""
    op: Annotated[LifecycleOp, ByName()] | None = None
    """That was commanded; None of a command that is no SEED."""
    slot: Name | None = None
    """Of the operation."""
    seed_id: Name | None = None
    """Individual that lived in the slot, or was germinated there."""
    blueprint: Annotated[Blueprint, ByName()] | None = None
    """Of that seed."""
    applied: bool | None = None
    """Whether the command was carried out at the run; None where nothing has said so."""
    outcome: ReportOutcome
    """What it led to."""
    window_epochs: Count
    """Epochs with a validation loss that the window was to have."""
    seen_epochs: Natural
    """That it had."""
    loss_delta_sum: Number | None = None
    """Of the differences from epoch to epoch; None where there were none, as in the next four."""
    loss_delta_min: Number | None = None
    """Smallest of them."""
    loss_delta_max: Number | None = None
    """Largest of them."""
    excess: Number | None = None
    """Sum of the differences, less the window's length times their mean in the five epochs before; None where those are
    not known either."""
    noise: Number | None = None
    """Beyond which an excess counts: 2σ√window of the five epochs before."""
    overlaps: tuple[UUID, ...] = ()
    """Commands of other windows of the run that were open at the same time."""
    policy_version: Name | None = None
    """Of the policy that proposed; None where none did."""
    architecture_version: Name | None = None
    """Of its architecture, where it says one."""
    notes: Names = ()
    """What else there is to say, in words."""


class Experience(Message):
    """A field report with the decision that it is about: what travels on the stream of reports."""

    report: FieldReport
    decision: Decision

    def framed(self) -> bytes:
        """As it travels: bytes that are others' stay as they are."""
        decision = self.decision
        head = _Head(report=self.report, **{name: getattr(decision, name) for name in _PLAIN})
        return framed(head, *(_optional(getattr(decision, name)) for name in _BLOBS))

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Read it.

        Raises:
            ValueError: it is none.
        """
        frames = parts_of(content, 1)
        if not frames:
            raise ValueError("it is no report: it is empty")
        parts = parts_of(frames[0], 1 + len(_BLOBS))
        if len(parts) != 1 + len(_BLOBS):
            raise ValueError(f"a report has {1 + len(_BLOBS)} parts, and this {len(parts)}")
        head_content, *blobs = parts
        head = _Head.model_validate_json(head_content)
        bytes_of = {name: _of(name, blob) for name, blob in zip(_BLOBS, blobs, strict=True)}
        plain = {name: getattr(head, name) for name in _PLAIN}
        experience = cls(report=head.report, decision=Decision.model_validate({**plain, **bytes_of}))
        decision, report = experience.decision, experience.report
        if (decision.run_id, decision.command_id) != (report.run_id, str(report.command_id)):
            raise ValueError("its report is about another decision")
        return experience


class ReportAck(Message):
    """That a report was taken in, for good."""

    report_id: UUID
    """Which."""
    run_id: Name
    """Of its run."""


_BLOBS = ("proposal", "signals", "breakers", "command", "packet")
_PLAIN = tuple(name for name in Decision.model_fields if name not in _BLOBS)


class _Head(Message):
    """The small parts: of the decision all that is no bytes."""

    report: FieldReport
    run_id: Name
    packet_id: Name
    epoch: Natural
    command_id: Name
    decided_at_ns: Annotated[int, Field(ge=0, lt=2**63)]
    level: str
    policy_version: str | None
    action: tuple[Annotated[int, Field(ge=0, lt=256)], ...] | None
    log_prob: float | None
    mask: tuple[Annotated[int, Field(ge=0, lt=256)], ...] | None


def _optional(content: bytes | None) -> bytes:
    return content or b""


def _of(name: str, content: bytes) -> bytes | None:
    return None if name == "proposal" and not content else content
