"""What becomes of a controller's store that is cut at every byte, has flipped bits anywhere, or is killed often?

Run it with::

    python -m benchmarks.damage --flips 20000 --kills 50

Each trial must end with a store that is whole, or that is refused and left as it is; anything else ends it with an
error. The tests make a few hundred of the same trials.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from esper_ray.controller.head_file import HEAD_FILE
from esper_ray.controller.opening import check_whole
from esper_ray.controller.records import FILE, Decision, Order, Record, Records, StoredRun, StoreFailed, Unreadable
from esper_ray.controller.store import Store, give_order
from esper_ray.controller.tables import PAGE
from esper_ray.terminal import output

LOG = f"{FILE}-wal"
NAMES = (FILE, LOG, HEAD_FILE)

Files = Mapping[str, bytes]
Content = list[tuple[str, StoredRun | None, Order, list[Record | Unreadable]]]


def some_decision(at: int, run_id: str = "run", packet: bytes = b"packet") -> Decision:
    """A decision on an epoch; its command's id is of run and epoch."""
    return Decision(
        run_id=run_id,
        packet_id=str(at),
        epoch=at,
        command_id=f"{run_id} {at}",
        decided_at_ns=at,
        level="GREEN",
        policy_version="heuristic",
        action=(1, 0, 2),
        log_prob=-at / 7,
        proposal=b"proposal",
        mask=(1, 0, 1),
        signals=b"[]",
        breakers=b"{}",
        command=b"command",
        packet=packet,
    )


def filled(directory: Path, count: int = 6) -> tuple[dict[str, bytes], Content]:
    """The files of a store at work, half of which is in its log; and what it holds."""
    with Store(directory) as store:
        for at in range(count):
            state = StoredRun(memory=b"m%d" % at, hidden=bytes([at]) * 40)
            store.record(some_decision(at, ("run", "other")[at % 2], bytes([at]) * 3000), state)
            store.mark_sent(f"run {at}")
            if at % 3 == 0:
                store.attach_result(f"run {at}", b"applied")
            if at == count // 2:
                give_order(directory, "run", paused=True)
                store.checkpoint()
        return {name: (directory / name).read_bytes() for name in NAMES}, content_of(directory)


def content_of(directory: Path) -> Content:
    """All that can be read of a store."""
    with Records.open(directory) as records:
        return [(run, records.state(run), records.order(run), list(records.records(run))) for run in records.runs()]


def put(directory: Path, files: Files) -> None:
    """Make these the files of a store."""
    for name in (*NAMES, f"{FILE}-shm"):
        (directory / name).unlink(missing_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)


def is_whole(directory: Path, files: Files, content: Content) -> bool:
    """Whether a store of these files is as it was written.

    Raises:
        AssertionError: it is less or other without a word, or what was refused was changed.
    """
    put(directory, files)
    try:
        is_new, refused = check_whole(directory), ""
    except StoreFailed as error:
        is_new, refused = False, str(error)
    assert not is_new, "it is taken for a new one"
    if refused:
        assert "\n" not in refused, refused
        assert {name: (directory / name).read_bytes() for name in files} == files, "what was refused was changed"
        return False
    assert content_of(directory) == content, "it is silently less or other"
    return True


def cut(files: Files, name: str, length: int) -> dict[str, bytes]:
    """The files, one of which ends early."""
    return {**files, name: files[name][:length]}


def flipped(files: Files, name: str, at: int, bit: int) -> dict[str, bytes]:
    """The files, one of which has another bit."""
    content = bytearray(files[name])
    content[at] ^= 1 << bit
    return {**files, name: bytes(content)}


def flips(files: Files, name: str, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Places and bits of a file, drawn."""
    draw = random.Random(f"{name} {seed}")
    return [(draw.randrange(len(files[name])), draw.randrange(8)) for _ in range(count)]


@dataclass(frozen=True)
class Damage:
    """How much of it."""

    pages: int = 2
    """Of each file, counted from its end: it is cut at every byte of them."""
    flips: int = 20_000
    """Bits that are changed in each file, one at a time."""
    kills: int = 50
    """Of a process that records."""
    seed: int = 0
    """Of bits and moments."""

    def run(self) -> None:
        """Do it."""
        from benchmarks.killing import kills

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
                    console.print(
                        f"{when}, {name}, {what}: {found[True]} whole, {found[False]} refused, 0 silently other"
                    )
        with tempfile.TemporaryDirectory() as made:
            told = kills(Path(made), self.kills, self.seed)
            console.print(f"{self.kills} kills: all {told} decisions that were told are there")


if __name__ == "__main__":
    tyro.cli(Damage).run()
