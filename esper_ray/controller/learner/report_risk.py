"""Field reports as labels of risk, in the classes that recorded episodes have (:mod:`policies.strategic.labels`)."""

from __future__ import annotations

from bisect import bisect_left

from esper_ray.controller.reports.field_report import FieldReport, ReportOutcome
from policies.strategic.labels import RISES, UNKNOWN_RISK
from policies.strategic.schema import RISK_CLASSES

CRITICAL = RISK_CLASSES.index("CRITICAL")


def risk_of(report: FieldReport) -> int:
    """The class of ``RISK_CLASSES`` that an outcome stands for.

    A decision is as risky as the loss has risen by the end of its window, by the limits of recorded episodes: these
    call a loss that falls SAFE, though it is a regression wherever it falls more slowly than before, as every loss does
    in the end. A regression that no loss shows is something CRITICAL, and is that. A window that was aborted says
    nothing.

    Returns:
        A class, or ``UNKNOWN_RISK``.
    """
    outcome, rise = report.outcome, report.loss_delta_sum
    if outcome is ReportOutcome.REGRESSION and not _shown_by_loss(report):
        return CRITICAL
    if outcome is ReportOutcome.ABORTED or rise is None:
        return UNKNOWN_RISK
    return bisect_left(RISES, rise)


def _shown_by_loss(report: FieldReport) -> bool:
    return report.excess is not None and report.noise is not None and report.excess > report.noise
