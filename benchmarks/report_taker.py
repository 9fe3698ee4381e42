"""Who takes field reports, in a process of its own, which may be killed at any moment.

``python -m benchmarks.report_taker URL KEYS FILE`` takes them from that bus into a table of that file; it says so as
soon as it can, and does not end by itself.
"""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from benchmarks.nodes import ROOT
from benchmarks.redis_server import end_with_starter
from esper_ray.bus.errors import BusError
from esper_ray.bus.opening import open_bus
from esper_ray.controller.key_file import CurrentKeys
from esper_ray.controller.reports.field_report import Experience
from esper_ray.controller.reports.taking import TakesReports

CLAIM_AFTER_S = 1.0
"""What a taker that was killed had in its hands comes again after that."""
WAIT_S = 1.0
"""Between two tries on a bus that is away, as of ``esper-ray learn``."""


def insert(connection: sqlite3.Connection, experience: Experience) -> None:
    """The effect of a report; nothing in this table keeps it from happening twice."""
    connection.execute("INSERT INTO effects VALUES (?)", (str(experience.report.report_id),))


class Taker:
    """Such a process, killed at the end.

    Args:
        url: Of the bus.
        keys: File of the keys.
        file: For what is taken.
    """

    def __init__(self, url: str, keys: Path, file: Path) -> None:
        self._command = [sys.executable, "-m", "benchmarks.report_taker", url, str(keys), str(file)]
        self.start()

    def start(self) -> None:
        """Start it, after it was killed once more, and wait until it takes reports."""
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, preexec_fn=end_with_starter
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError("the process that takes reports has ended")

    def kill(self) -> None:
        """With SIGKILL."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Taker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def main(url: str, keys: str, file: str) -> None:
    """Take reports."""
    logging.getLogger("esper_ray").setLevel(logging.CRITICAL)  # what goes wrong here is meant to
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS effects (report_id TEXT)")
    with (
        open_bus(url, claim_after_s=CLAIM_AFTER_S, on_event=lambda _: None) as bus,
        TakesReports(bus, CurrentKeys(Path(keys)), file, insert) as takes,
    ):
        print("ready", flush=True)
        while True:
            try:
                takes.step(WAIT_S)
            except BusError:
                time.sleep(WAIT_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
