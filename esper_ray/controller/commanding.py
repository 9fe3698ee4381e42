"""From what was decided to the command that says it, and to the record of both."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import TypeAdapter

from envs.vocabulary import LifecycleOp
from esper_ray.controller import records
from esper_ray.controller.assessment import Assessment
from esper_ray.controller.breakers import BreakerState
from esper_ray.controller.catalogue import Entry
from esper_ray.controller.commands import (
    AdaptationCommand,
    Blending,
    CoverageReport,
    Expectation,
    Kind,
    PolicyStamp,
    Reason,
    RiskReport,
    SeedOperation,
    Selection,
    Severity,
    Signal,
)
from esper_ray.controller.envelope import Envelope
from esper_ray.controller.operations import SHAPEABLE, operation_of
from esper_ray.controller.proposals import Proposal
from policies.strategic.measured import BLUEPRINT_NAMES
from policies.strategic.messages import SeedState, SystemState

_SIGNALS = TypeAdapter(tuple[Signal, ...])


def proposed_operation(proposal: Proposal, packet: SystemState, sheets: Mapping[str, Entry]) -> SeedOperation:
    """What a policy proposes, in the packet's slots.

    How it would blend a seed in is left out where it is too late for that, or where the blueprint is not to be blended
    in so: then the seed's style says it.

    Raises:
        ValueError: an action that is none in these slots.
        IndexError: likewise.
    """
    slots = [seed.slot for seed in packet.seeds]
    operation = operation_of(proposal.action, slots)
    seed = _seed(packet, operation.slot)
    if seed is None or (blending := proposal.blending.get(seed.slot)) is None:
        return operation
    planted = operation.op is LifecycleOp.GERMINATE
    shaped = operation.op is LifecycleOp.ADVANCE and seed.stage in SHAPEABLE
    if not (planted or shaped) or not _allowed(blending, operation, seed, sheets):
        return operation
    return operation_of(proposal.action, slots, blending)


def make_command(
    packet: SystemState,
    found: Assessment,
    issued_at_ns: int,
    *,
    proposal: Proposal | None = None,
    proposed: SeedOperation | None = None,
    masked: tuple[str, ...] = (),
    coverage: CoverageReport | None = None,
) -> AdaptationCommand:
    """The command of a decision.

    Args:
        packet: That was judged.
        found: What it comes to.
        issued_at_ns: Now, nanoseconds since 1970.
        proposal: Of the policy; None without one.
        proposed: The same as an operation.
        masked: Blueprints that were taken from its choice.
        coverage: Of the packet.
    """
    decision, selection = found.decision, None
    seed = None if decision.operation is None else _seed(packet, decision.operation.slot)
    if proposal is not None and proposed is not None:
        selection = Selection(proposed=proposed, log_probability=proposal.log_prob, masked=masked)
    return AdaptationCommand(
        run_id=packet.run_id,
        kind=decision.kind,
        operation=decision.operation,
        optimizer=decision.optimizer,
        reason=decision.reason,
        issued_at_ns=issued_at_ns,
        expects=Expectation(epoch=packet.epoch)
        if seed is None
        else Expectation(epoch=packet.epoch, slot=seed.slot, seed_id=seed.seed_id, stage=seed.stage),
        policy=None if proposal is None else PolicyStamp(version=proposal.policy_version),
        risk=found.report,
        coverage=coverage,
        selection=selection,
    )


def bare_pause(run_id: str, epoch: int, reason: Reason, issued_at_ns: int) -> AdaptationCommand:
    """The command to do nothing, where nothing could be judged or written."""
    return AdaptationCommand(
        run_id=run_id,
        kind=Kind.PAUSE,
        reason=reason,
        issued_at_ns=issued_at_ns,
        expects=Expectation(epoch=epoch),
        risk=RiskReport(severity=Severity.HIGH),
    )


def sent_command(content: bytes) -> AdaptationCommand:
    """The command of a decision on record: within one process it is sent as it is, over a bus in an envelope.

    Raises:
        ValueError: it is none.
    """
    is_bare = content.startswith(b"{")
    return AdaptationCommand.model_validate_json(content if is_bare else Envelope.read(content).payload)


def record_of(
    command: AdaptationCommand,
    packet: SystemState,
    found: Assessment,
    proposal: Proposal | None,
    mask: tuple[int, ...] | None,
    breakers: Mapping[str, BreakerState],
    content: bytes,
) -> records.Decision:
    """All of a decision, as it is kept; the content is exactly what is sent of the command."""
    return records.Decision(
        run_id=packet.run_id,
        packet_id=packet.packet_id,
        epoch=packet.epoch,
        command_id=str(command.command_id),
        decided_at_ns=command.issued_at_ns,
        level=found.state.dashboard.level.name,
        policy_version=None if proposal is None else proposal.policy_version,
        action=None if proposal is None else proposal.action,
        log_prob=None if proposal is None else proposal.log_prob,
        proposal=None if proposal is None else proposal.model_dump_json().encode(),
        mask=mask,
        signals=_SIGNALS.dump_json(found.verdict.signals),
        breakers=json.dumps(breakers).encode(),
        command=content,
        packet=packet.model_dump_json().encode(),
    )


def _seed(packet: SystemState, slot: str | None) -> SeedState | None:
    return next((seed for seed in packet.seeds if seed.slot == slot), None)


def _allowed(blending: Blending, operation: SeedOperation, seed: SeedState, sheets: Mapping[str, Entry]) -> bool:
    blueprint = seed.blueprint if operation.blueprint is None else BLUEPRINT_NAMES[operation.blueprint]
    sheet = None if blueprint is None else sheets.get(blueprint)
    given = (None if sheet is None else sheet.blending_methods, seed.allowed_blending_methods)
    return all(methods is None or blending.method in methods for methods in given)
