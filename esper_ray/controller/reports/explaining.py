"""Field reports for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table

from esper_ray.controller.message_ages import SECOND_NS
from esper_ray.controller.reports.field_report import FieldReport
from esper_ray.controller.reports.outbox import DeliveryState, Entry, UnreadableEntry

_MARGIN = (0, 1, 0, 0)


def report_table(entries: Iterable[Entry | UnreadableEntry], run_id: str, now_ns: int) -> Table:
    """What decisions led to, and how far each report is.

    Args:
        entries: Of a store.
        run_id: Only of that run; of all where it is empty. What cannot be read is shown in any case.
        now_ns: Nanoseconds since 1970.
    """
    table = Table(title="field reports", box=box.SIMPLE_HEAD, padding=_MARGIN)
    table.add_column("report", no_wrap=True)
    table.add_column("run")
    table.add_column("epoch", justify="right")
    for name in ("commanded", "outcome", "excess (noise)", "on its way"):
        table.add_column(name)
    for entry in entries:
        if isinstance(entry, UnreadableEntry):
            table.add_row(entry.report_id, "", "", "", "", "", f"cannot be read: {entry.reason}")
        elif run_id in ("", entry.report.run_id):
            report = entry.report
            table.add_row(
                str(report.report_id),
                report.run_id,
                str(report.epoch),
                _commanded(report),
                report.outcome.value,
                f"{_number(report.excess)} ({_number(report.noise)})",
                _way(entry, now_ns),
            )
    return table


def field_table(entry: Entry, now_ns: int) -> Table:
    """All of a report.

    Args:
        entry: It.
        now_ns: Nanoseconds since 1970.
    """
    table = Table(title=f"field report {entry.report.report_id}", box=box.SIMPLE_HEAD, padding=_MARGIN)
    table.add_column("field")
    table.add_column("value")
    for name, value in entry.report.model_dump(mode="json").items():
        if isinstance(value, list):
            for at, each in enumerate(value):
                table.add_row("" if at else name, str(each))
        elif value is not None:
            table.add_row(name, f"{value:.6g}" if isinstance(value, float) else str(value))
    table.add_row("decision", f"row {entry.sequence}")
    table.add_row("on its way", _way(entry, now_ns))
    return table


def _commanded(report: FieldReport) -> str:
    if report.op is None:
        return "–"
    blueprint = "" if report.blueprint is None else report.blueprint.name
    return " ".join(filter(None, (report.op.name, blueprint, report.slot or "")))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _way(entry: Entry, now_ns: int) -> str:
    seconds = max(entry.due_ns - now_ns, 0) / SECOND_NS
    if entry.state is DeliveryState.DELIVERED:
        return f"delivered, goes in {seconds / 3600:.1f} h"
    if entry.state is DeliveryState.PARKED:
        return f"parked: {entry.note}"
    return f"pending, sent {entry.attempts} times, due in {seconds:.0f} s"
