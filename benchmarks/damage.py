"""What becomes of a controller's store that is cut near its end, has flipped bits anywhere, or whose process is killed?

Run it with::

    python -m benchmarks.damage --flips 20000 --kills 50

Each trial must end with a store that is whole, or that is refused and left as it is; anything else ends it with an
error. The tests make a few hundred of the same trials.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.damaged_store import NAMES, cut, filled, flipped, flips, is_whole
from benchmarks.killed_service import service_kills
from benchmarks.killing import kills
from esper_ray.controller.head_file import HEAD_FILE
from esper_ray.controller.records import FILE
from esper_ray.controller.tables import PAGE
from esper_ray.terminal import output


@dataclass(frozen=True)
class Damage:
    """How much of it."""

    pages: int = 2
    """Of each file, counted from its end: it is cut at every byte of them."""
    flips: int = 20_000
    """Bits that are changed in each file, one at a time."""
    kills: int = 50
    """Of a process that records, and as many of a service that evaluates."""
    seed: int = 0
    """Of bits and moments."""

    def run(self) -> None:
        """Do it."""
        console = output()
        with tempfile.TemporaryDirectory() as made:
            files, content = filled(Path(made))
            rest = {name: Path(made, name).read_bytes() for name in (FILE, HEAD_FILE)}
        with tempfile.TemporaryDirectory() as made:
            place = Path(made)
            for when, files, name in (
                *(("at work", files, name) for name in NAMES),
                ("at rest", rest, FILE),
            ):
                length = len(files[name])
                trials: dict[str, Any] = {
                    "cut": (cut(files, name, at) for at in range(max(length - self.pages * PAGE, 0), length)),
                    "flipped": (flipped(files, name, *one) for one in flips(files, name, self.flips, self.seed)),
                }
                for what, damaged in trials.items():
                    found = Counter(is_whole(place, one, content) for one in damaged)
                    console.print(f"{when}, {name}, {what}: {found[True]} whole, {found[False]} refused")
        with tempfile.TemporaryDirectory() as made:
            told = kills(Path(made), self.kills, self.seed)
            console.print(f"{self.kills} kills: all {told} decisions that were told are there")
        with tempfile.TemporaryDirectory() as made:
            killed = service_kills(Path(made), self.kills, self.seed)
            console.print(
                f"{killed.kills} kills of a service: all {killed.told} commands that were sent are there, and every "
                f"packet once; {killed.untold} decisions were never sent"
            )


if __name__ == "__main__":
    tyro.cli(Damage).run()
