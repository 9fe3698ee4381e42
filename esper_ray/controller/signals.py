"""The signals that the controller watches for: what each measures, where it begins, and what it restricts.

``TABLE`` is the one place that says so. A signal that was not measured does not fire.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from envs.vocabulary import DEVELOPING_STAGES
from esper_ray.controller.case import BlueprintSheet, Case
from esper_ray.controller.commands import Reason, Severity, Signal
from esper_ray.controller.history import History
from esper_ray.controller.thresholds import Thresholds
from policies.strategic.packet_values import LARGEST_NUMBER


@dataclass(frozen=True)
class Situation:
    """What signals are measured in.

    Attributes:
        case: That is judged.
        history: Of the run, with the case's packet.
        thresholds: That hold.
    """

    case: Case
    history: History
    thresholds: Thresholds

    def metric(self, name: str) -> float | None:
        """Of the packet."""
        return self.case.packet.metrics.get(name)

    @property
    def hook_ms(self) -> float | None:
        """Time that probe and executor added, milliseconds: the longest that anybody measured."""
        return _largest(self.case.latencies.hook, self.metric("hook_latency_ms"))

    @property
    def apply_ms(self) -> float | None:
        """Time that carrying out a decision took, milliseconds, likewise."""
        return _largest(self.case.latencies.apply, self.metric("apply_ms"))

    @property
    def latency_ms(self) -> float | None:
        """The longest time that the controller added to anything, milliseconds."""
        return _largest(self.hook_ms, self.case.latencies.step, self.apply_ms)

    @property
    def loss_delta(self) -> float | None:
        """The packet's validation loss less that of the epoch before."""
        return None if self.case.packet.validation_loss is None else self.history.loss_delta

    @property
    def loss_volatility(self) -> float | None:
        """Standard deviation of the differences of training losses, the packet's the last."""
        return None if self.case.packet.training_loss is None else self.history.loss_volatility


Measured = tuple[float, str | None] | None
"""A value and what it is of; None where it was not measured."""


class Origin(Enum):
    """Where a signal comes from.

    PROPOSAL: what the policy proposes or expects.
    RUN: what the packet says of the run.
    LIFECYCLE: what it says of the number and age of seeds. These never count towards conservative mode.
    SERVICE: the controller itself.
    """

    PROPOSAL = "proposal"
    RUN = "run"
    LIFECYCLE = "lifecycle"
    SERVICE = "service"


SEEDS, RISK, SHEETS = "seeds", "policy.risk", "catalogue.sheets"
HOOK, STEP, APPLY, COVERED = "service.hook_ms", "service.step_ms", "service.apply_ms", "service.coverage"
NEEDS = (SEEDS, RISK, SHEETS, HOOK, STEP, APPLY, COVERED)
"""What rows need beside keys of packets: slots in the packet, and what stands beside it in a case."""


@dataclass(frozen=True)
class Limit:
    """Where a signal begins.

    Attributes:
        reached: Whether a value, the first, has reached the threshold.
        threshold: In the value's unit.
    """

    reached: Callable[[float, float], bool]
    threshold: Callable[[Thresholds], float]


@dataclass(frozen=True)
class Row:
    """One signal. CRITICAL and HIGH pause the run, WARNING slows seeds in place of what adds or commits.

    Attributes:
        reason: Its code.
        origin: Where it comes from.
        measure: Its value now.
        needs: What must be there, or it never fires: keys of packets, and ``NEEDS``. Of an entry one is enough.
        critical: Where it is CRITICAL.
        high: Where it is HIGH.
        warning: Where it is a WARNING.
        spares: Whatever its severity, it restricts only what adds or commits: a PRUNE passes.
    """

    reason: Reason
    origin: Origin
    measure: Callable[[Situation], Measured]
    needs: tuple[tuple[str, ...], ...] = ()
    critical: Limit | None = None
    high: Limit | None = None
    warning: Limit | None = None
    spares: bool = False

    def signal(self, now: Situation) -> Signal | None:
        """What it says; None where it does not fire."""
        measured = self.measure(now)
        return None if measured is None else self.of(*measured, now.thresholds)

    def of(self, value: float, subject: str | None, thresholds: Thresholds) -> Signal | None:
        """The signal of a value; None where no limit is reached."""
        limits = {Severity.CRITICAL: self.critical, Severity.HIGH: self.high, Severity.WARNING: self.warning}
        for severity, limit in limits.items():
            if limit is not None and limit.reached(value, threshold := limit.threshold(thresholds)):
                value = min(max(value, -LARGEST_NUMBER), LARGEST_NUMBER)
                return Signal(reason=self.reason, severity=severity, value=value, threshold=threshold, subject=subject)
        return None


# ------------------------------------------------------------------ what the signals measure
SHEET_VALUES: dict[Reason, Callable[[BlueprintSheet], float | None]] = {
    Reason.BLUEPRINT_QUARANTINED: lambda sheet: float(sheet.quarantined is not None),
    Reason.BLUEPRINT_HAZARD: lambda sheet: sheet.hazard,
    Reason.BLUEPRINT_RISK: lambda sheet: sheet.risk,
}
"""What the catalogue's sheets give to signals."""


def _of(value: float | None, subject: str | None = None) -> Measured:
    return None if value is None else (value, subject)


def _metric(name: str) -> Callable[[Situation], Measured]:
    return lambda now: _of(now.metric(name))


def _sheet_says(reason: Reason) -> Callable[[Situation], Measured]:
    """Of the blueprint that the operation adds or commits to."""

    def measure(now: Situation) -> Measured:
        sheet = now.case.sheet
        return None if sheet is None else _of(SHEET_VALUES[reason](sheet), now.case.blueprint)

    return measure


def _quarantined_seed(now: Situation) -> Measured:
    """Of the seeds whose fate is open: one that is FOSSILIZED no operation can remove."""
    for seed in now.case.packet.seeds:
        sheet = None if seed.blueprint is None else now.case.sheets.get(seed.blueprint)
        quarantined = seed.quarantine_only or (sheet is not None and sheet.quarantined is not None)
        if quarantined and seed.stage in DEVELOPING_STAGES:
            return 1.0, seed.slot
    return None


def _gpu_memory(now: Situation) -> Measured:
    used = now.metric("gpu_util_percent")
    busy = used is not None and used >= now.thresholds.gpu_util_percent
    return _of(now.metric("gpu_mem_free_gb")) if busy else None


def _throughput_drop(now: Situation) -> Measured:
    used, rate = now.metric("cpu_util_percent"), now.metric("samples_per_s")
    busy = used is not None and used >= now.thresholds.cpu_util_percent
    return _of(now.history.throughput_drop) if busy and rate is not None else None


def _over_budget(now: Situation) -> Measured:
    """Living seeds beyond those that may live."""
    packet = now.case.packet
    if packet.budgets is None or packet.budgets.living_seeds is None:
        return None
    return float(sum(seed.is_living for seed in packet.seeds) - packet.budgets.living_seeds), None


def _oldest(now: Situation) -> Measured:
    epoch = now.case.packet.epoch
    ages = [(float(epoch - seed.since), slot) for slot, seed in now.history.developing.items()]
    return max(ages, default=None)


def _largest(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)


# ------------------------------------------------------------------ the table
def at_least(threshold: Callable[[Thresholds], float]) -> Limit:
    """From the threshold on."""
    return Limit(operator.ge, threshold)


def above(threshold: Callable[[Thresholds], float]) -> Limit:
    """Beyond the threshold."""
    return Limit(operator.gt, threshold)


def at_most(threshold: Callable[[Thresholds], float]) -> Limit:
    """Up to the threshold."""
    return Limit(operator.le, threshold)


def below(threshold: Callable[[Thresholds], float]) -> Limit:
    """Short of the threshold."""
    return Limit(operator.lt, threshold)


_YES = at_least(lambda _: 1.0)


def _fault(reason: Reason) -> Row:
    return Row(reason, Origin.SERVICE, lambda now: (float(reason in now.case.faults), None), high=_YES)


TABLE: tuple[Row, ...] = (
    Row(
        Reason.EXPECTED_RISK,
        Origin.PROPOSAL,
        lambda now: _of(now.case.expected_risk),
        ((RISK,),),
        critical=at_least(lambda t: t.expected_risk_pauses),
        warning=at_least(lambda t: t.expected_risk_slows),
    ),
    Row(
        Reason.BLUEPRINT_QUARANTINED,
        Origin.PROPOSAL,
        _sheet_says(Reason.BLUEPRINT_QUARANTINED),
        ((SHEETS,),),
        critical=_YES,
        spares=True,
    ),
    Row(
        Reason.QUARANTINED_SEED,
        Origin.RUN,
        _quarantined_seed,
        ((SEEDS,), ("seeds.quarantine_only", "seeds.blueprint")),
        critical=_YES,
        spares=True,
    ),
    Row(
        Reason.BLUEPRINT_HAZARD,
        Origin.PROPOSAL,
        _sheet_says(Reason.BLUEPRINT_HAZARD),
        ((SHEETS,),),
        critical=at_least(lambda _: Severity.CRITICAL),
        warning=at_least(lambda _: Severity.HIGH),
        spares=True,
    ),
    Row(
        Reason.BLUEPRINT_RISK,
        Origin.PROPOSAL,
        _sheet_says(Reason.BLUEPRINT_RISK),
        ((SHEETS,),),
        critical=at_least(lambda t: t.blueprint_risk_pauses),
        warning=at_least(lambda t: t.blueprint_risk_slows),
        spares=True,
    ),
    Row(
        Reason.LOSS_DELTA,
        Origin.RUN,
        lambda now: _of(now.loss_delta),
        (("run.validation_loss",),),
        high=above(lambda t: t.loss_delta_pauses),
        warning=above(lambda t: t.loss_delta_slows),
    ),
    Row(
        Reason.HOOK_LATENCY,
        Origin.RUN,
        lambda now: _of(now.hook_ms),
        ((HOOK, "metrics.hook_latency_ms"),),
        high=above(lambda t: t.hook_ms_pauses),
    ),
    Row(
        Reason.STEP_LATENCY,
        Origin.RUN,
        lambda now: _of(now.case.latencies.step),
        ((STEP,),),
        high=above(lambda t: t.step_ms_pauses),
    ),
    Row(
        Reason.APPLY_LATENCY,
        Origin.RUN,
        lambda now: _of(now.apply_ms),
        ((APPLY, "metrics.apply_ms"),),
        warning=above(lambda t: t.apply_ms_slows),
    ),
    Row(
        Reason.ISOLATION_VIOLATIONS,
        Origin.RUN,
        _metric("isolation_violations"),
        (("metrics.isolation_violations",),),
        high=above(lambda _: 0.0),
    ),
    Row(
        Reason.GPU_EXHAUSTED,
        Origin.RUN,
        _gpu_memory,
        (("metrics.gpu_util_percent",), ("metrics.gpu_mem_free_gb",)),
        high=at_most(lambda t: t.gpu_free_gb_pauses),
        spares=True,
    ),
    Row(
        Reason.CPU_SATURATED,
        Origin.RUN,
        _throughput_drop,
        (("metrics.cpu_util_percent",), ("metrics.samples_per_s",)),
        warning=at_least(lambda t: t.throughput_drop_slows),
    ),
    Row(
        Reason.OVER_BUDGET,
        Origin.LIFECYCLE,
        _over_budget,
        ((SEEDS,), ("run.budgets",)),
        high=above(lambda _: 0.0),
        spares=True,
    ),
    Row(
        Reason.SEED_STUCK,
        Origin.LIFECYCLE,
        _oldest,
        ((SEEDS,),),
        warning=above(lambda t: t.stuck_epochs_slows),
        spares=True,
    ),
    Row(
        Reason.PROCESS_MEMORY,
        Origin.RUN,
        _metric("process_memory_share"),
        (("metrics.process_memory_share",),),
        high=at_least(lambda t: t.process_memory_pauses),
        warning=at_least(lambda t: t.process_memory_slows),
        spares=True,
    ),
    Row(
        Reason.LOSS_VOLATILITY,
        Origin.RUN,
        lambda now: _of(now.loss_volatility),
        (("run.training_loss",),),
        warning=above(lambda t: t.loss_volatility_slows),
    ),
    Row(
        Reason.GRADIENT_VARIANCE,
        Origin.RUN,
        _metric("grad_var"),
        (("metrics.grad_var",),),
        warning=above(lambda t: t.gradient_variance_slows),
    ),
    Row(
        Reason.GRADIENT_CONFLICT,
        Origin.RUN,
        _metric("grad_conflict_rate"),
        (("metrics.grad_conflict_rate",),),
        warning=above(lambda t: t.gradient_conflict_slows),
    ),
    Row(
        Reason.COVERAGE,
        Origin.RUN,
        lambda now: _of(now.case.coverage),
        ((COVERED,),),
        critical=at_most(lambda t: t.coverage_pauses),
        warning=below(lambda t: t.coverage_slows),
    ),
    _fault(Reason.TIMEOUT_INFERENCE),
    _fault(Reason.TIMEOUT_CATALOGUE),
    _fault(Reason.TIMEOUT_BUS),
    _fault(Reason.TIMEOUT_EVALUATE),
    _fault(Reason.BREAKER_INFERENCE),
    _fault(Reason.BREAKER_CATALOGUE),
    _fault(Reason.BREAKER_BUS),
    _fault(Reason.STORE_FAILED),
    _fault(Reason.POLICY_FAILED),
    _fault(Reason.POLICY_NOT_FINITE),
    _fault(Reason.ACTION_MASKED),
)
"""Every signal. Of equally severe ones the first is the reason."""

FAULTS = frozenset(row.reason for row in TABLE if row.origin is Origin.SERVICE)
"""What :attr:`Case.faults` can have."""
OPEN_BREAKERS = frozenset({Reason.BREAKER_INFERENCE, Reason.BREAKER_CATALOGUE, Reason.BREAKER_BUS})
ROWS = {row.reason: row for row in TABLE}
