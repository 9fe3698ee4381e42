"""Where the controller's signals begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from envs.ranges import Count, NotNegative, Positive, Range, Share, check_numbers
from esper_ray.errors import UserError
from policies.strategic.coverage import CRITICAL_AT_MOST, WARNING_BELOW

Percent = Annotated[float, Range(0.0, 100.0)]


@dataclass(frozen=True)
class Thresholds:
    """Where signals begin. What pauses is a HIGH or CRITICAL signal, what slows a WARNING."""

    expected_risk_pauses: Share = 0.98
    """Risk that the policy expects, from 0 (SAFE) to 1 (CRITICAL), from which on the run is paused."""
    expected_risk_slows: Share = 0.85
    """The same, from which on seeds are slowed instead of a policy's operation."""
    blueprint_risk_pauses: Share = 0.8
    """Risk of a blueprint that is to be added or committed to, from which on it is not."""
    blueprint_risk_slows: Share = 0.5
    """The same, from which on seeds are slowed instead."""
    loss_delta_pauses: Positive = 0.15
    """Rise of the validation loss from one epoch to the next, above which the run is paused."""
    loss_delta_slows: Positive = 0.075
    """The same, above which seeds are slowed."""
    hook_ms_pauses: Positive = 50.0
    """Time that the probe adds to a step and the executor to an epoch's end, milliseconds, above which the run is
    paused."""
    step_ms_pauses: Positive = 120.0
    """Time that deciding adds to a step, milliseconds, above which the run is paused."""
    apply_ms_slows: Positive = 30.0
    """Time that carrying out a decision takes, milliseconds, above which seeds are slowed."""
    gpu_util_percent: Percent = 95.0
    """Use of the accelerator from which on its memory counts."""
    gpu_free_gb_pauses: NotNegative = 0.2
    """Its free memory then, 10⁹ bytes, up to which nothing is added."""
    cpu_util_percent: Percent = 95.0
    """Use of the processors from which on the throughput counts."""
    throughput_drop_slows: Share = 0.25
    """Share by which throughput is then below the run's own median, from which on seeds are slowed."""
    stuck_epochs_slows: Count = 50
    """Epochs for which a seed's fate is open, above which seeds are slowed."""
    process_memory_pauses: Share = 0.95
    """Memory of the process as a share of what it may have, from which on nothing is added."""
    process_memory_slows: Share = 0.80
    """The same, from which on seeds are slowed."""
    loss_volatility_slows: Positive = 0.1125
    """Standard deviation of 10 differences of training losses, above which seeds are slowed."""
    gradient_variance_slows: Positive = 1.0
    """Variance of the gradient over steps, above which seeds are slowed."""
    gradient_conflict_slows: Share = 0.5
    """Share of gradients that point against each other, above which seeds are slowed."""
    coverage_pauses: Share = CRITICAL_AT_MOST
    """Share that was measured of what is declared, up to which the run is paused."""
    coverage_slows: Share = WARNING_BELOW
    """The same, below which seeds are slowed."""
    rate_factor: Annotated[float, Range(0.1, 1.0)] = 0.5
    """What seeds are slowed to: factor on their learning rates."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)
        for name in ("expected_risk", "blueprint_risk", "loss_delta", "process_memory"):
            pauses, slows = getattr(self, f"{name}_pauses"), getattr(self, f"{name}_slows")
            if slows > pauses:
                raise UserError(f"{name}_slows must be at most {name}_pauses, {pauses:g}, got {slows:g}")
        if self.coverage_slows < self.coverage_pauses:
            least, got = self.coverage_pauses, self.coverage_slows
            raise UserError(f"coverage_slows must be at least coverage_pauses, {least:g}, got {got:g}")
