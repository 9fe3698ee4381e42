"""``keys``: what the controller's messages are signed with (docs/security.md)."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from esper_ray.errors import UserError
from esper_ray.terminal import command

if TYPE_CHECKING:
    from esper_ray.controller.keys import KeyRing

Word = Literal["new", "rotate", "list"]


@dataclass(frozen=True)
class Keys:
    """Make, rotate or list the keys that the controller's messages are signed with (docs/security.md)."""

    word: tyro.conf.Positional[Word]
    """make a new key: the first one signs, any other one verifies; rotate: the new key signs and the one before only
    verifies, and the next time that goes; or list the keys, of which only ids, states and ages are shown."""
    file: Path = Path("var/controller/signing_keys.json")
    """Where they are; only its owner may use it."""
    at_once: bool = False
    """Let a retired key go though messages that it signed may be under way: when somebody else may have it."""

    def run(self, console: Console) -> None:
        """Do it."""
        from esper_ray.controller.key_file import change_key_file, read_keys

        if self.at_once and self.word != "rotate":
            raise UserError(f"--at-once is for {command('keys', 'rotate')}")
        if self.word == "list":
            console.print(_table(read_keys(self.file)))
            return
        self._check_no_variable()
        ring = change_key_file(self.file, self._new if self.word == "new" else self._rotated)
        console.print(_table(ring))
        console.print(f"written: {self.file}")
        console.print(self._next_step(ring))

    def _check_no_variable(self) -> None:
        from esper_ray.controller.key_file import KEY_VARIABLE

        if KEY_VARIABLE in os.environ:
            raise UserError(f"{KEY_VARIABLE} is set, and counts in place of a file: unset it to use one")

    def _new(self, ring: KeyRing | None) -> KeyRing:
        from esper_ray.controller.keys import KeyRing

        now = time.time_ns()
        return KeyRing.first(now) if ring is None else ring.with_new_key(now)

    def _rotated(self, ring: KeyRing | None) -> KeyRing:
        if ring is None:
            raise UserError(
                f"there is no key file {self.file} to rotate: {command('keys', 'new', '--file', self.file)} makes one"
            )
        return ring.rotated(time.time_ns(), self.at_once)

    def _next_step(self, ring: KeyRing) -> str:
        from esper_ray.controller.keys import KeyState
        from esper_ray.controller.message_ages import DAY_NS, LONGEST_AGE_NS

        states, rotate = {key.state for key in ring.keys}, command("keys", "rotate", "--file", self.file)
        then = "nothing else is to be done"
        if KeyState.NEW in states:
            then = f"when all have it, {rotate} lets the new key sign"
        elif KeyState.RETIRED in states:
            then = f"{LONGEST_AGE_NS / DAY_NS:g} days after all have it, {rotate} lets the retired key go"
        return f"copy the file to every machine that signs or verifies; {then}"


def _table(ring: KeyRing) -> Table:
    table = Table(title="signing keys", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("id", "state", "in it for", "made"):
        table.add_column(name)
    now = time.time_ns()
    for key in ring.keys:
        made = _ago(now, key.created_at_ns)
        table.add_row(
            key.key_id, key.state, _ago(now, key.since_ns), made if key.created_at_ns is None else f"{made} ago"
        )
    return table


def _ago(now_ns: int, then_ns: int | None) -> str:
    from esper_ray.controller.message_ages import SECOND_NS

    if then_ns is None:
        return "unknown"
    minutes = max(0, now_ns - then_ns) // (60 * SECOND_NS)
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min"
