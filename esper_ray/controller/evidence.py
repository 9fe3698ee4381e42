"""All that a decision is judged by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    def quarantined(self) -> bool:
        """Whether it must not be used."""
        ...

    @property
    def worst_hazard(self) -> Severity | None:
        """Of its hazards; None where there is none."""
        ...


@dataclass(frozen=True)
class Latencies:
    """Time that the controller added when it was last here, milliseconds; None where it is not known.

    Attributes:
        hook: Of probe and executor at an epoch's end, without evaluating: one time-out would raise the next HIGH.
        step: Of evaluating at a step.
        apply: Of carrying out a decision.
    """

    hook: float | None = None
    step: float | None = None
    apply: float | None = None


@dataclass(frozen=True)
class Evidence:
    """All that a decision is judged by.

    Attributes:
        packet: Of the run.
        operation: That the policy proposes; None where it proposes nothing.
        expected_risk: That the policy expects, see :func:`expected_risk`; None of a policy that says nothing of it.
        sheets: The catalogue's, by blueprint as packets spell it; those of which it knows nothing are absent.
        coverage: Share that was measured of what the packet declares; None where it was not counted.
        latencies: That the service measured. What the packet says of them counts besides.
        faults: Of the service itself since the evaluation before: reasons whose origin is :attr:`Origin.SERVICE`.
    """

    packet: SystemState
    operation: SeedOperation | None = None
    expected_risk: float | None = None
    sheets: Mapping[str, BlueprintSheet] = field(default_factory=dict)
    coverage: float | None = None
    latencies: Latencies = Latencies()
    faults: frozenset[Reason] = frozenset()

    @property
    def risk_is_sound(self) -> bool:
        """Whether the risk that the policy expects is one, if it says one: from 0 to 1, and not NaN."""
        return self.expected_risk is None or 0.0 <= self.expected_risk <= 1.0

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


def expected_risk(risk_logits: Sequence[float]) -> float:
    """Mean of the risk classes under their softmax, 0 the first and 1 the last; NaN of logits that are not finite."""
    if not all(math.isfinite(logit) for logit in risk_logits):
        return math.nan
    highest = max(risk_logits)
    weights = [math.exp(logit - highest) for logit in risk_logits]
    mean = sum(rank * weight for rank, weight in enumerate(weights)) / sum(weights)
    return min(mean / (len(weights) - 1), 1.0)
