"""How full a bus is, for people."""

from __future__ import annotations

from rich import box
from rich.table import Table

from esper_ray.bus.interface import Bus
from esper_ray.bus.streams import Stream


def bus_table(bus: Bus) -> Table:
    """Every stream: how much it holds, who reads it and how far they are, and who is missing.

    Raises:
        BusUnavailable: it does not answer.
    """
    table = Table(title="bus", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("stream", "entries", "of", "groups: to handle, dead letters", "missing"):
        table.add_column(name, justify="right" if name in ("entries", "of") else "left")
    for stream in Stream:
        state = bus.state(stream)
        groups = ", ".join(
            f"{name}: {'?' if group.unread is None else group.unread + group.pending}, {group.dead}"
            for name, group in sorted(state.groups.items())
        )
        table.add_row(stream, f"{state.entries:,}", f"{state.capacity:,}", groups, ", ".join(state.missing))
    return table
