"""A process that records as fast as it can, killed at any moment, again and again.

``python -m benchmarks.killing`` is a nursery of recorders (:mod:`benchmarks.nursery`), each of which is given the
number of its first decision and its directory, and tells what is committed.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from threading import Thread

from benchmarks.damaged_store import content_of, some_decision
from benchmarks.nursery import Nursery, raise_children, tell
from esper_ray.controller.records import Record, StoredRun
from esper_ray.controller.store import Store

LONGEST = 0.25
"""Seconds that a recorder lives, at most; the first of them are the opening of its store."""
MOST = 10_000
"""Decisions of a recorder; none makes as many in its time."""
A_STORE = 5
"""Recorders of each store, one after the other, the first of which makes it."""


def record(directory: Path, first: int) -> None:
    """Decisions from a number on, each told as soon as its command may leave; it never ends by itself."""
    with Store(directory) as store:
        at = first
        while True:
            store.record(some_decision(at, packet=os.urandom(2000)), StoredRun(memory=b"%d" % at, hidden=None))
            tell(str(at))
            store.mark_sent(f"run {at}")
            store.attach_result(f"run {at}", b"applied")
            if at % 7 == 0:
                Thread(target=store.checkpoint).start()  # as of a service, beside who records
            at += 1


def kills(directory: Path, times: int, seed: int = 0) -> int:
    """Kill recorders, and look after each whether all that it told is there.

    Returns:
        How many decisions were told in all.

    Raises:
        AssertionError: one is not.
        StoreFailed: the store is not whole.
    """
    draw, in_all = random.Random(seed), 0
    with Nursery("benchmarks.killing") as nursery:
        for killed in range(times):
            if killed % A_STORE == 0:
                place, told = directory / str(killed), list[int]()
            first, before = MOST * killed, len(told)  # above what one before may have committed and never told
            told += map(int, nursery.killed(f"{first} {place}", draw.random() * LONGEST))
            in_all += len(told) - before
            with Store(place) as store:
                found = [one for one in store.records("run") if isinstance(one, Record)]
            epochs = [one.decision.epoch for one in found]
            assert set(told) <= set(epochs), "what was told is gone"
            untold = killed % A_STORE + 1
            assert len(epochs) - len(told) <= untold, "more was committed than one of each that was not told yet"
            states = [state for _, state, _, _ in content_of(place)]
            expected = [StoredRun(memory=b"%d" % epochs[-1], hidden=None)] if epochs else []
            assert states == expected, "a state is not its decision's"
    return in_all


def main() -> None:
    """A nursery of recorders."""
    assert "torch" not in sys.modules

    def live(line: str) -> None:
        first, _, place = line.partition(" ")
        record(Path(place), int(first))

    raise_children(live)


if __name__ == "__main__":
    main()
