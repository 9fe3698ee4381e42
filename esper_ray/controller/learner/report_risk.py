"""Field reports as labels of risk, in the classes that recorded episodes have (:mod:`policies.strategic.labels`)."""

from __future__ import annotations

from bisect import bisect_left

from esper_ray.controller.reports.field_report import FieldReport, ReportOutcome
from policies.strategic.labels import RISES, UNKNOWN_RISK
from policies.strategic.schema import RISK_CLASSES

SAFE, LOW, CRITICAL = (RISK_CLASSES.index(name) for name in ("SAFE", "LOW", "CRITICAL"))


def risk_of(report: FieldReport) -> int:
    """The class of ``RISK_CLASSES`` that an outcome stands for.

    - SUCCESS is SAFE.
    - NEUTRAL and REGRESSION are as risky as the loss rose by the end of the window, by the limits of recorded episodes;
      a regression is LOW at least.
    - A REGRESSION that no loss shows is something CRITICAL, and is that.
    - ABORTED says nothing.

    Returns:
        A class, or ``UNKNOWN_RISK``.
    """
    outcome, rise = report.outcome, report.loss_delta_sum
    if outcome is ReportOutcome.SUCCESS:
        return SAFE
    if outcome is ReportOutcome.REGRESSION and not _shown_by_loss(report):
        return CRITICAL
    if outcome is ReportOutcome.ABORTED or rise is None:
        return UNKNOWN_RISK
    return max(bisect_left(RISES, rise), LOW if outcome is ReportOutcome.REGRESSION else SAFE)


def _shown_by_loss(report: FieldReport) -> bool:
    return report.excess is not None and report.noise is not None and report.excess > report.noise
