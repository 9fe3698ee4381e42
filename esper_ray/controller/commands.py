"""What the controller sends to a run, and what comes back: one command per evaluation, one result per command.

Everything here is checked as it is made and never changes; fields that are unknown are refused. Of members of
enumerations JSON has the names, of identifiers their usual form.
"""

from __future__ import annotations

import math
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Self
from uuid import UUID, uuid4

from pydantic import Field, model_validator

from envs.vocabulary import (
    HEADS_NEEDED,
    AlphaCurve,
    AlphaSpeed,
    AlphaTarget,
    Blueprint,
    GerminationStyle,
    LifecycleOp,
    Tempo,
)
from esper_ray.controller.message_ages import RECEIVED_WITHIN_MS
from policies.strategic.coverage import Coverage
from policies.strategic.packet_values import (
    BlendingMethod,
    ByName,
    Count,
    Message,
    Name,
    Names,
    Natural,
    NotNegative,
    Number,
    Share,
    Stage,
)

BLENDED_BY = (LifecycleOp.GERMINATE, LifecycleOp.ADVANCE)
"""Ops that can say how their seed is to be blended in."""


class Severity(IntEnum):
    """How bad something is. The numbers are those of logging; HIGH has that of ERROR."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    HIGH = 40
    CRITICAL = 50


class Kind(StrEnum):
    """What a command asks of the run.

    SEED: carry out the operation, WAIT among them.
    OPTIMIZER: carry out no operation; the learning rates of all living seeds are multiplied by a factor.
    PAUSE: carry out no operation and freeze nothing else: a ramp that has begun completes, nothing is destroyed.
    CIRCUIT_BREAKER: the PAUSE that announces conservative mode.
    """

    SEED = "SEED"
    OPTIMIZER = "OPTIMIZER"
    CIRCUIT_BREAKER = "CIRCUIT_BREAKER"
    PAUSE = "PAUSE"


class Reason(StrEnum):
    """Why a command is what it is: one code. Those of signals are in the order of the risk table."""

    POLICY = "policy"
    """Nothing stood against what the policy proposed."""

    EXPECTED_RISK = "expected_risk"
    BLUEPRINT_QUARANTINED = "blueprint_quarantined"
    QUARANTINED_SEED = "quarantined_seed"
    BLUEPRINT_HAZARD = "blueprint_hazard"
    BLUEPRINT_RISK = "blueprint_risk"
    LOSS_DELTA = "loss_delta"
    HOOK_LATENCY = "hook_latency"
    STEP_LATENCY = "step_latency"
    APPLY_LATENCY = "apply_latency"
    ISOLATION_VIOLATIONS = "isolation_violations"
    GPU_EXHAUSTED = "gpu_exhausted"
    CPU_SATURATED = "cpu_saturated"
    OVER_BUDGET = "over_budget"
    SEED_STUCK = "seed_stuck"
    PROCESS_MEMORY = "process_memory"
    LOSS_VOLATILITY = "loss_volatility"
    GRADIENT_VARIANCE = "gradient_variance"
    GRADIENT_CONFLICT = "gradient_conflict"
    COVERAGE = "coverage"
    TIMEOUT_INFERENCE = "timeout_inference"
    TIMEOUT_CATALOGUE = "timeout_catalogue"
    TIMEOUT_BUS = "timeout_bus"
    TIMEOUT_EVALUATE = "timeout_evaluate"
    BREAKER_INFERENCE = "breaker_inference"
    BREAKER_CATALOGUE = "breaker_catalogue"
    BREAKER_BUS = "breaker_bus"
    STORE_FAILED = "store_failed"
    POLICY_FAILED = "policy_failed"
    POLICY_NOT_FINITE = "policy_not_finite"
    ACTION_MASKED = "action_masked"

    WORKER_STARTING = "worker_starting"
    """No worker is ready to run the policy yet."""
    CONSERVATIVE_MODE = "conservative_mode"
    """The mode alone stands against it."""
    OPERATOR = "operator"
    """Somebody paused the run by hand."""
    PACKET_REFUSED = "packet_refused"
    """What was given is no packet, or of a run that is over."""
    EVALUATION_FAILED = "evaluation_failed"
    """The controller itself failed; its log says how."""


class Outcome(StrEnum):
    """What became of a command at the run.

    APPLIED: it was carried out, at the host's end of an epoch.
    REFUSED: nothing was changed, as it does not fit the host, or a second time.
    EXPIRED: nothing was changed, as it came too late.
    """

    APPLIED = "applied"
    REFUSED = "refused"
    EXPIRED = "expired"


class Refusal(StrEnum):
    """Why a command was not applied: one code."""

    WRONG_RUN = "wrong_run"
    """It is for another run."""
    ALREADY_APPLIED = "already_applied"
    """A command of that id was."""
    EPOCH_CHANGED = "epoch_changed"
    """The host has done other epochs than it expects."""
    UNKNOWN_SLOT = "unknown_slot"
    """The host has no such slot."""
    SEED_CHANGED = "seed_changed"
    """Another seed lives there than it expects, or none."""
    STAGE_CHANGED = "stage_changed"
    """The slot is in another stage than it expects."""
    NOT_ADMITTED = "not_admitted"
    """The host's own rules do not admit the operation now, as its action mask says."""
    TOO_LATE = "too_late"
    """It was received more than its ``deadline_ms`` after it was issued; the one code of EXPIRED."""


class Blending(Message):
    """How a seed is blended in, in place of its style's curve: :func:`envs.alpha.ramp_value` computes it.

    Start and end are put into [0, 1] and into order as they are given.
    """

    method: BlendingMethod
    """Shape of the ramp."""
    schedule_start: Share = 0.0
    """Share of the seed's blending window, which its tempo says in epochs, that passes before the shape begins."""
    schedule_end: Share = 1.0
    """Share of it at which the shape ends; above the start."""

    @model_validator(mode="before")
    @classmethod
    def _clamped_and_ordered(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        ends = [given.get("schedule_start", 0.0), given.get("schedule_end", 1.0)]
        if not all(type(end) in (int, float) and math.isfinite(end) for end in ends):
            return given  # the fields refuse it
        start, end = sorted(min(max(float(end), 0.0), 1.0) for end in ends)
        return {**given, "schedule_start": start, "schedule_end": end}

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.schedule_start >= self.schedule_end:
            raise ValueError(
                f"a blending window must have schedule_start < schedule_end within [0, 1], got "
                f"{self.schedule_start:g} and {self.schedule_end:g}"
            )
        return self


class SeedOperation(Message):
    """One operation on a slot, as the heads of the joint action say it; exactly what its op needs is given."""

    op: Annotated[LifecycleOp, ByName()]
    """What to do; WAIT needs nothing else."""
    slot: Name | None = None
    """Id of the slot."""
    blueprint: Annotated[Blueprint, ByName()] | None = None
    """Of GERMINATE: kind of the seed."""
    style: Annotated[GerminationStyle, ByName()] | None = None
    """Of GERMINATE and SET_ALPHA_TARGET: how its delta enters the host."""
    tempo: Annotated[Tempo, ByName()] | None = None
    """Of GERMINATE: length of the blending window."""
    alpha_target: Annotated[AlphaTarget, ByName()] | None = None
    """Of GERMINATE and SET_ALPHA_TARGET: the amplitude to reach."""
    alpha_speed: Annotated[AlphaSpeed, ByName()] | None = None
    """Of SET_ALPHA_TARGET and PRUNE: length of the ramp to it, or to 0."""
    alpha_curve: Annotated[AlphaCurve, ByName()] | None = None
    """Of SET_ALPHA_TARGET and PRUNE: shape of that ramp."""
    blending: Blending | None = None
    """Of GERMINATE, and of ADVANCE from TRAINING: how the seed is blended in when it is. None leaves what an earlier
    command said, or the style's curve where none did."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = HEADS_NEEDED[self.op]
        for head in HEADS_NEEDED[LifecycleOp.GERMINATE] + HEADS_NEEDED[LifecycleOp.SET_ALPHA_TARGET]:
            if (getattr(self, head) is not None) != (head in needed):
                raise ValueError(f"{self.op.name} needs {', '.join(needed)} and no others: {head} is wrong here")
        if self.blending is not None and self.op not in BLENDED_BY:
            raise ValueError(f"{self.op.name} blends no seed in: leave blending out")
        return self


class OptimizerChange(Message):
    """Slower steps for seeds.

    The learning rate of every living seed's parameters is ``rate_factor`` times what it would be without. A later
    factor takes the place of an earlier one; the first command that :attr:`AdaptationCommand.is_clean` ends it.
    """

    rate_factor: Annotated[float, Field(ge=0.1, le=1.0)] = 0.5
    """Factor on learning rates."""


class Expectation(Message):
    """What the command was decided on. The run compares it with the host before it changes anything."""

    epoch: Natural
    """Epochs done, as the packet said."""
    slot: Name | None = None
    """Slot of the operation; None where there is none, and then only the epoch is compared."""
    seed_id: Name | None = None
    """Individual that lives in the slot; None where none lives there, or the packet names none."""
    stage: Stage | None = None
    """Stage of the slot."""

    @model_validator(mode="after")
    def _of_a_slot(self) -> Self:
        if (self.slot is None) != (self.stage is None) or (self.slot is None and self.seed_id is not None):
            raise ValueError("a slot is expected in a stage: give slot and stage, and seed_id with them alone")
        return self


class PolicyStamp(Message):
    """Which policy proposed."""

    version: Name
    """Of the policy, as its seeds carry it: SHA-256 of what describes it, or the name of a control."""
    architecture: Name | None = None
    """Version of its architecture; None of a policy that says none."""


class Signal(Message):
    """One row of the risk table that fired."""

    reason: Reason
    """Which."""
    severity: Annotated[Severity, ByName()]
    """How bad."""
    value: Number
    """What was measured, in the unit of the threshold; 1 of what either is or is not."""
    threshold: Number
    """At or beyond which it fires so."""
    subject: Name | None = None
    """What it is of, such as a slot or a blueprint."""


class RiskReport(Message):
    """What the risk table says."""

    severity: Annotated[Severity, ByName()] = Severity.INFO
    """The highest of the signals'."""
    signals: tuple[Signal, ...] = ()
    """All that fired, in the order of the table."""
    expected: Share | None = None
    """Risk that the policy itself expects, 0 is SAFE and 1 is CRITICAL."""
    conservative: bool = False
    """Whether the run was in conservative mode once this was decided."""


class CoverageReport(Message):
    """How much was measured of what the source declared."""

    average: Share
    """Of all entries."""
    types: dict[str, Share] = Field(default_factory=dict)
    """Of every type of node, edge or other part."""
    keys: dict[str, Share] = Field(default_factory=dict)
    """Of every declared key of which there is something to measure."""

    @classmethod
    def of(cls, coverage: Coverage) -> Self:
        """Of a packet's."""
        return cls(average=coverage.average, types=coverage.types, keys=coverage.keys)


class Selection(Message):
    """What the policy proposed, before the risk table was asked."""

    proposed: SeedOperation
    """The operation."""
    log_probability: Number | None = None
    """Joint, under the policy; None of one that draws nothing."""
    masked: Names = ()
    """Blueprints that were taken from its choice."""


class AdaptationCommand(Message):
    """One command to one run.

    It is applied at the host's next end of an epoch, if ``expects`` holds there. How long it lay between receipt and
    that boundary does not matter: an epoch may last longer than ``deadline_ms``.
    """

    command_id: UUID = Field(default_factory=uuid4)
    """Of this command; a run carries out no id twice."""
    run_id: Name
    """Of the run that it is for."""
    kind: Kind
    """What it asks."""
    operation: SeedOperation | None = None
    """Of SEED."""
    optimizer: OptimizerChange | None = None
    """Of OPTIMIZER."""
    reason: Reason
    """Why it is what it is."""
    issued_at_ns: Annotated[int, Field(ge=0, lt=2**63)]
    """When it was made, nanoseconds since 1970."""
    deadline_ms: Count = RECEIVED_WITHIN_MS
    """Time after ``issued_at_ns`` within which it must be received, milliseconds; later it is EXPIRED."""
    expects: Expectation
    """State of the host that it was decided on."""
    policy: PolicyStamp | None = None
    """Which policy proposed; None where none did."""
    risk: RiskReport = RiskReport()
    """What the risk table says."""
    coverage: CoverageReport | None = None
    """Of the packet."""
    selection: Selection | None = None
    """What the policy proposed; None where none did."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        parts = {"operation": (self.operation, Kind.SEED), "optimizer": (self.optimizer, Kind.OPTIMIZER)}
        for name, (part, kind) in parts.items():
            if (part is not None) != (self.kind is kind):
                raise ValueError(f"{kind} has {name} and no other kind has: this is {self.kind}")
        slot = self.operation.slot if self.operation is not None else None
        if self.expects.slot != slot:
            raise ValueError(f"expects must be of the operation's slot {slot!r}, got {self.expects.slot!r}")
        return self

    @property
    def is_clean(self) -> bool:
        """Whether it ends what an OPTIMIZER command began: it passes the policy's operation on, and nothing fired."""
        return self.kind is Kind.SEED and self.risk.severity < Severity.WARNING


class CommandResult(Message):
    """What became of a command at its run; every command that is received has exactly one."""

    command_id: UUID
    """Of the command."""
    run_id: Name
    """Of the run that says so."""
    outcome: Outcome
    """What became of it."""
    reason: Refusal | None = None
    """Why it was not applied."""
    detail: Annotated[str, Field(max_length=500)] = ""
    """The same in words, with what was expected and what was found."""
    epoch: Natural
    """Epochs that the host had done."""
    stages_before: dict[Name, Stage]
    """Stage of every slot before it."""
    stages_after: dict[Name, Stage]
    """Stage of every slot after it; the same where it was not applied."""
    apply_ms: NotNegative | None = None
    """Time that carrying it out took, milliseconds."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.reason is None) != (self.outcome is Outcome.APPLIED):
            raise ValueError(f"a reason says why a command was not applied: outcome is {self.outcome}")
        if (self.reason is Refusal.TOO_LATE) != (self.outcome is Outcome.EXPIRED):
            raise ValueError(f"{Refusal.TOO_LATE} and {Outcome.EXPIRED} go together: outcome is {self.outcome}")
        return self
