"""All that a decision is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from envs.vocabulary import ALPHA_TARGET_VALUES, LifecycleOp
from esper_ray.controller.commands import Reason, SeedOperation, Severity
from policies.strategic.measured import BLUEPRINT_NAMES
from policies.strategic.messages import SeedState, SystemState

ADDING_OPS = (LifecycleOp.GERMINATE, LifecycleOp.ADVANCE, LifecycleOp.FOSSILIZE, LifecycleOp.GROW_INTERNAL)
"""Ops that add to a host or commit to what was added, whatever their arguments."""


class BlueprintSheet(Protocol):
    """What the catalogue says of a blueprint."""

    @property
    def risk(self) -> float | None:
        """From 0 to 1, of recorded outcomes; None where nothing is recorded."""
        ...

    @property
    def quarantined(self) -> str | None:
        """Why it must not be planted; None where it may."""
        ...

    @property
    def hazard(self) -> Severity | None:
        """The worst of its hazards; None where there is none."""
        ...


@dataclass(frozen=True)
class Latencies:
    """Time that the controller added when it was last here, milliseconds; None where it is not known.

    Attributes:
        hook: Of the probe in a step and of the executor at an epoch's end. Not of measuring at an epoch's end, which
            is always long of a large model, nor of evaluating: one time-out would raise the next HIGH.
        step: Of evaluating at a step.
        apply: Of carrying out a decision.
    """

    hook: float | None = None
    step: float | None = None
    apply: float | None = None


@dataclass(frozen=True)
class Case:
    """All that a decision is judged by.

    Attributes:
        packet: Of the run.
        operation: That the policy proposes; None where it proposes nothing.
        expected_risk: That the policy expects, from 0 (SAFE) to 1 (CRITICAL); None of a policy that says nothing of it.
        sheets: The catalogue's, by blueprint as packets spell it; those of which it knows nothing are absent.
        coverage: Share that was measured of what the packet declares; None where it was not counted.
        latencies: That the service measured. What the packet says of them counts besides.
        faults: Of the service itself since the evaluation before, of :data:`esper_ray.controller.signals.FAULTS`.
    """

    packet: SystemState
    operation: SeedOperation | None = None
    expected_risk: float | None = None
    sheets: Mapping[str, BlueprintSheet] = field(default_factory=dict)
    coverage: float | None = None
    latencies: Latencies = Latencies()
    faults: frozenset[Reason] = frozenset()

    @property
    def adds(self) -> bool:
        """Whether the operation adds to the host, or commits to what was added.

        A new alpha target does where it is above the one that the alpha goes to or rests at, or that one is unknown.
        """
        if self.operation is None or self.operation.op is not LifecycleOp.SET_ALPHA_TARGET:
            return self.operation is not None and self.operation.op in ADDING_OPS
        seed, target = self.seed, self.operation.alpha_target
        now = None if seed is None else seed.alpha if seed.alpha_target is None else seed.alpha_target
        return now is None or target is None or ALPHA_TARGET_VALUES[target] > now

    @property
    def seed(self) -> SeedState | None:
        """The slot that the operation is done to."""
        slot = None if self.operation is None else self.operation.slot
        return next((seed for seed in self.packet.seeds if seed.slot == slot), None)

    @property
    def blueprint(self) -> str | None:
        """Kind of the seed that the operation adds or commits to."""
        if self.operation is None or not self.adds:
            return None
        if self.operation.blueprint is not None:
            return BLUEPRINT_NAMES[self.operation.blueprint]
        return None if self.seed is None else self.seed.blueprint

    @property
    def sheet(self) -> BlueprintSheet | None:
        """The catalogue's on that blueprint."""
        return None if self.blueprint is None else self.sheets.get(self.blueprint)
