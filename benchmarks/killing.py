"""A process that records as fast as it can, killed at any moment, again and again.

``python -m benchmarks.killing`` starts a recorder for each line that it reads, the number of its first decision and its
directory. Each recorder tells its process number, then what is committed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

from benchmarks.damaged_store import content_of, some_decision
from benchmarks.nodes import ROOT
from esper_ray.controller.records import Record, StoredRun
from esper_ray.controller.store import Store

LONGEST = 0.25
"""Seconds that a recorder lives, at most; the first of them are the opening of its store."""
A_STORE = 5
"""Recorders of each store, one after the other, the first of which makes it."""


def record(directory: Path, first: int) -> None:
    """Decisions from a number on, each told as soon as its command may leave; it never ends by itself."""
    with Store(directory) as store:
        at = first
        while True:
            store.record(some_decision(at, packet=os.urandom(2000)), StoredRun(memory=b"%d" % at, hidden=None))
            os.write(1, b"%d\n" % at)
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
    command = [sys.executable, "-m", "benchmarks.killing"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        for killed in range(times):
            if killed % A_STORE == 0:
                place, told = directory / str(killed), list[int]()
            print(told[-1] + 100 if told else 100 * killed, place, file=nursery.stdin, flush=True)
            recorder, before = int(nursery.stdout.readline()), len(told)
            time.sleep(draw.random() * LONGEST)
            os.kill(recorder, signal.SIGKILL)
            while (line := nursery.stdout.readline()) != "ended\n":
                told.append(int(line))
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
        nursery.stdin.close()
    return in_all


def main() -> None:
    """Start recorders, each in a process of its own that had not to import anything."""
    assert "torch" not in sys.modules
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            os.write(1, b"%d\n" % os.getpid())
            first, _, place = line.strip().partition(" ")
            record(Path(place), int(first))
        os.waitpid(child, 0)
        os.write(1, b"ended\n")


if __name__ == "__main__":
    main()
