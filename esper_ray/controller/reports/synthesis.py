"""From a window that has closed to the report of what its decision led to. All here is values in, values out."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

from esper_ray.controller.history import Series
from esper_ray.controller.reports.field_report import FieldReport, ReportOutcome
from esper_ray.controller.reports.windows import BEFORE, Closed, Closing
from policies.strategic.packet_values import LARGEST_NUMBER

LEAST_DIFFERENCES = 2
"""Before a decision, without which nobody can say how much the loss moves by itself."""
ROUNDING = 1e-9
"""Share of the largest loss by which an excess must be beyond its noise: less is rounding."""
_REPORTS = UUID("7b0a7d0f-3d2c-5c39-9c11-2f5b1c6f6a54")
_MOST_NOTE = 200


@dataclass(frozen=True)
class Course:
    """What the validation loss did around a decision.

    Attributes:
        before: Differences of it up to the decision, from one epoch with a loss to the next, at most five.
        within: Those of the window.
        excess: Sum of those within, less the window's length times the mean of those before; None of a window that is
            not full, or where there are none before.
        noise: 2σ√window of those before; None of fewer than two.
        rounding: What is too little to count.
    """

    before: tuple[float, ...]
    within: tuple[float, ...]
    excess: float | None
    noise: float | None
    rounding: float


def report_id_of(command_id: UUID) -> UUID:
    """Of the one report about a command: the same whoever makes it, and whenever."""
    return uuid5(_REPORTS, str(command_id))


def course_of(losses: Series, epoch: int, epochs: int) -> Course:
    """What the validation loss did around a decision.

    Args:
        losses: Epochs, rising, and losses.
        epoch: Of the decision.
        epochs: With a loss, that its window has.
    """
    past = [loss for at, loss in losses if at <= epoch][-BEFORE - 1 :]
    future = [loss for at, loss in losses if at > epoch][:epochs]
    before, within = _differences(past), _differences([*past[-1:], *future])
    excess = noise = None
    if before and len(within) == epochs:
        excess = math.fsum(within) - epochs * statistics.fmean(before)
    if len(before) >= LEAST_DIFFERENCES:
        noise = 2.0 * statistics.stdev(before) * math.sqrt(epochs)
    return Course(before, within, excess, noise, ROUNDING * max(map(abs, [*past, *future]), default=0.0))


def outcome_of(course: Course, how: Closing, is_critical: bool) -> ReportOutcome:
    """What a decision led to. Where nobody knows how much the loss moves by itself, it is neither good nor bad.

    Args:
        course: Of the validation loss.
        how: The window closed.
        is_critical: Whether something CRITICAL happened in it that had not at the decision.
    """
    if how is not Closing.WATCHED:
        return ReportOutcome.ABORTED
    if is_critical:
        return ReportOutcome.REGRESSION
    if course.excess is None or course.noise is None:
        return ReportOutcome.NEUTRAL
    limit = course.noise + course.rounding
    if course.excess > limit:
        return ReportOutcome.REGRESSION
    return ReportOutcome.SUCCESS if course.excess < -limit else ReportOutcome.NEUTRAL


def synthesise(closed: Closed, run_id: str, applied: bool | None = None, notes: Sequence[str] = ()) -> FieldReport:
    """The report of a window.

    Args:
        closed: The window.
        run_id: Of its run.
        applied: Whether its command was carried out, as far as is known.
        notes: What else there is to say, first.
    """
    window = closed.window
    course = course_of(closed.losses, window.epoch, window.epochs)
    numbers = {
        "loss_delta_sum": math.fsum(course.within) if course.within else None,
        "loss_delta_min": min(course.within, default=None),
        "loss_delta_max": max(course.within, default=None),
        "excess": course.excess,
        "noise": course.noise,
    }
    told = {name: value for name, value in numbers.items() if value is not None and abs(value) <= LARGEST_NUMBER}
    said = [*notes, *_notes(closed, course)]
    if len(told) < sum(value is not None for value in numbers.values()):
        said.append(f"numbers beyond {LARGEST_NUMBER:g} are left out")
    return FieldReport(
        report_id=report_id_of(window.command_id),
        command_id=window.command_id,
        run_id=run_id,
        epoch=window.epoch,
        op=window.op,
        slot=window.slot,
        seed_id=window.seed_id,
        blueprint=window.blueprint,
        applied=applied,
        outcome=outcome_of(course, closed.how, bool(window.new_critical)),
        window_epochs=window.epochs,
        seen_epochs=min(sum(at > window.epoch for at, _ in closed.losses), window.epochs),
        overlaps=closed.overlaps,
        policy_version=window.policy_version,
        architecture_version=window.architecture_version,
        notes=tuple(note[:_MOST_NOTE] for note in said),
        **told,
    )


def _notes(closed: Closed, course: Course) -> list[str]:
    window, known = closed.window, len(course.before)
    notes = []
    if closed.how is not Closing.WATCHED:
        notes.append(f"aborted: {closed.how}")
    if window.new_critical:
        notes.append(f"CRITICAL since: {', '.join(window.new_critical)}")
    if known < LEAST_DIFFERENCES:
        notes.append(f"no noise is known: {known} differences of losses before it, and it takes {LEAST_DIFFERENCES}")
    elif known < BEFORE:
        notes.append(f"compared with {known} differences of losses before it in place of {BEFORE}")
    return notes


def _differences(losses: Sequence[float]) -> tuple[float, ...]:
    return tuple(now - before for before, now in itertools.pairwise(losses))
