"""``reports``: what a controller's decisions led to, and how far the reports are on their way (docs/operating.md)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import UUID

import tyro
from rich.console import Console

from esper_ray.errors import UserError
from esper_ray.terminal import command

Word = Literal["list", "show", "requeue"]


@dataclass(frozen=True)
class Reports:
    """Look at a controller's field reports, or put parked ones back; the controller may be at work."""

    word: tyro.conf.Positional[Word] = "list"
    """list all reports; show all of one; or requeue parked ones, which are sent again then."""
    report: tyro.conf.Positional[str] = ""
    """Id of the report that is shown, or put back; without one all parked reports are."""
    directory: Path = Path("var/controller")
    """Where the controller keeps its records."""
    run_id: str = ""
    """List only those of this run."""
    state: Literal["pending", "delivered", "parked"] | None = None
    """List only those that are so far."""

    def run(self, console: Console) -> None:
        """Do it."""
        if self.word != "list" and (self.run_id or self.state is not None):
            raise UserError(f"--run-id and --state are for {command('reports', 'list')}")
        if self.word == "list":
            self._list(console)
        elif self.word == "show":
            self._show(console)
        else:
            self._requeue(console)

    def _list(self, console: Console) -> None:
        from esper_ray.controller.records import Records
        from esper_ray.controller.reports.explaining import report_table
        from esper_ray.controller.reports.outbox import DeliveryState, entries

        if self.report:
            raise UserError(f"to see one report: {command('reports', 'show', self.report)}")
        state = None if self.state is None else DeliveryState(self.state)
        with Records.open(self.directory) as records:
            console.print(report_table(entries(records, state), self.run_id, time.time_ns()))

    def _show(self, console: Console) -> None:
        from esper_ray.controller.records import Records
        from esper_ray.controller.reports.explaining import field_table
        from esper_ray.controller.reports.outbox import read_entry

        report_id = self._report_id()
        with Records.open(self.directory) as records, records.snapshot() as connection:
            entry = read_entry(connection, report_id)
        if entry is None:
            raise UserError(
                f"there is no report {report_id} in {self.directory}: {command('reports', 'list')} lists them"
            )
        console.print(field_table(entry, time.time_ns()))

    def _requeue(self, console: Console) -> None:
        from esper_ray.controller.reports.outbox import requeue

        back = requeue(self.directory, time.time_ns(), self._report_id() if self.report else None)
        for report_id in back:
            console.print(report_id)
        console.print(f"{len(back)} put back" if back else "no report is parked")

    def _report_id(self) -> str:
        if not self.report:
            raise UserError(f"{self.word} which report? {command('reports', 'list')} lists them")
        try:
            return str(UUID(self.report))
        except ValueError:
            raise UserError(f"a report has an id such as {UUID(int=0)}, got {self.report!r}") from None
