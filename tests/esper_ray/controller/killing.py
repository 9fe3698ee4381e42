"""A process that records as fast as it can, killed at any moment, again and again.

``python -m tests.esper_ray.controller.killing DIRECTORY`` starts a recorder for each line that it reads. Each tells its
process number, then what is committed.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from esper_ray.controller.records import StoredRun
from esper_ray.controller.store import Store
from tests.esper_ray.controller.damage import content_of
from tests.esper_ray.controller.test_store import decision
from tests.places import ROOT

LONGEST = 0.15
"""Seconds that a recorder lives after it began to record, at most."""


def record(directory, first):
    """Decisions from a number on, each told as soon as it may leave; it never ends by itself."""
    with Store(directory) as store:
        at = first
        while True:
            store.record(decision(at, packet=os.urandom(2000)), StoredRun(memory=b"%d" % at, hidden=None))
            os.write(1, b"%d\n" % at)
            store.mark_sent(f"run {at}")
            store.attach_result(f"run {at}", b"applied")
            if at % 7 == 0:
                store.checkpoint()
            at += 1


def kills(directory, times, seed=0):
    """Kill recorders, and look after each.

    Returns:
        How many decisions were told in all.
    """
    draw, told = random.Random(seed), []
    command = [sys.executable, "-m", "tests.esper_ray.controller.killing", str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nursery:
        for killed in range(times):
            print(told[-1] + 100 if told else 0, file=nursery.stdin, flush=True)
            pid = int(nursery.stdout.readline())
            told.append(int(nursery.stdout.readline()))
            time.sleep(draw.random() * LONGEST)
            os.kill(pid, signal.SIGKILL)
            while (line := nursery.stdout.readline()) != "ended\n":
                told.append(int(line))
            with Store(directory) as store:  # refused, were it not whole
                found = {record.sequence: record for record in store.records("run")}
            epochs = [record.decision.epoch for record in found.values()]
            assert set(told) <= set(epochs), "what was told is there"
            assert len(epochs) - len(told) <= killed + 1, "no more than one of each was committed and not told"
            ((_, state, _, _),) = content_of(directory)
            assert state.memory == b"%d" % epochs[-1], "a state is that of its decision"
        nursery.stdin.close()
    return len(told)


def main():
    assert "torch" not in sys.modules
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            os.write(1, b"%d\n" % os.getpid())
            record(Path(sys.argv[1]), int(line))
        os.waitpid(child, 0)
        os.write(1, b"ended\n")


if __name__ == "__main__":
    main()
