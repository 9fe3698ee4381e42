"""``updates``: which policy updates came to a controller, and back from one (docs/operating.md)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from envs.ranges import Range, check_numbers
from esper_ray.errors import UserError
from esper_ray.terminal import command

if TYPE_CHECKING:
    from esper_ray.controller.updates.history import UpdateRecord

Word = Literal["list", "show", "rollback"]


@dataclass(frozen=True)
class Updates:
    """List the policy updates that a controller got, show one, or go back from the one that decides."""

    word: tyro.conf.Positional[Word]
    """list all updates; show one; or roll the one that decides back: the policy before it decides from the next
    evaluation on, or from the next start if no controller is at work."""
    number: tyro.conf.Positional[Annotated[int, Range(1, 2**53, whole=True)] | None] = None
    """The update that is shown: its number in the list."""
    directory: Path = Path("var/controller")
    """Where the controller keeps its records."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)

    def run(self, console: Console) -> None:
        """Do it."""
        from esper_ray.controller.records import Records
        from esper_ray.controller.updates.history import order_rollback, updates_in

        if (self.number is None) is (self.word == "show"):
            raise UserError(f"a number is for show, and show needs one: {command('updates', 'list')} has them")
        if self.word == "rollback":
            update = order_rollback(self.directory)
            console.print(
                f"update {update.version}: rolled back from the next evaluation on, or from the next start; "
                f"policy {_short(update.before)} decides then"
            )
            return
        with Records.open(self.directory) as records:
            updates = updates_in(records)
        console.print(_list(updates) if self.number is None else _one(updates, self.number))


def _list(updates: list[UpdateRecord]) -> Table:
    table = _table("policy updates")
    for name in ("number", "version"):
        table.add_column(name, justify="right")
    for name in ("policy", "state", "reason", "considered"):
        table.add_column(name)
    for one in updates:
        version = "–" if one.version is None else str(one.version)
        row = (str(one.sequence), version, _short(one.policy), _state(one), one.reason, _time(one.at_ns))
        table.add_row(*row)
    return table


def _one(updates: list[UpdateRecord], number: int) -> Table:
    found = next((one for one in updates if one.sequence == number), None)
    if found is None:
        raise UserError(f"there is no update {number}: {command('updates', 'list')} has them all")
    table = _table(f"update {number}")
    table.show_header = False
    table.add_column("what")
    table.add_column("value", overflow="fold")
    rows = {
        "version": "–" if found.version is None else str(found.version),
        "policy": found.policy or "–",
        "weights' SHA-256": found.sha256 or "–",
        "took the place of": found.before or "–",
        "state": _state(found),
        "reason": found.reason or "–",
        "detail": found.detail or "–",
        "trained on": found.trained_on or "–",
        "considered": _time(found.at_ns),
        "rolled back": "–" if found.ended_at_ns is None else _time(found.ended_at_ns),
        "probation": f"{found.anomalies} anomalies in {found.inferences} evaluations",
        "envelope": found.envelope,
    }
    for what, value in rows.items():
        table.add_row(what, value)
    return table


def _state(update: UpdateRecord) -> str:
    return f"{update.state}, to be rolled back" if update.ordered else update.state.value


def _short(policy: str | None) -> str:
    return "–" if policy is None else policy[:16]


def _time(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
