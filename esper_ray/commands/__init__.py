"""What ``esper-ray`` can be asked to do: a class per command, its fields the flags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Command(Protocol):
    """What the command line asks for."""

    def run(self, console: Console) -> None:
        """Do it.

        Args:
            console: Where it is told.
        """
