"""Ask a policy service from many sessions at once: a process of its own, which shares nothing with what it measures.

Run it with::

    python -m benchmarks.load http://127.0.0.1:8000 observations.json --sessions 64
"""

from __future__ import annotations

import itertools
import json
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

from esper_ray.serving.client import PolicyClient

Shown = dict[str, list[float]]

READY_SECONDS = 60.0
"""For all sessions to be open."""


@dataclass(frozen=True)
class Load:
    """Requests per second, and how long they take. Prints one line of JSON."""

    url: tyro.conf.Positional[str]
    """Of the service."""
    observations: tyro.conf.Positional[Path]
    """JSON: a list of what a host shows, step by step; every session sends it again and again."""
    sessions: int = 8
    """Each asks for its next step as soon as it has an answer."""
    seconds: float = 10.0
    """Timed part."""
    warmup_seconds: float = 3.0
    """Before it, not counted."""

    def run(self) -> None:
        """Ask, print."""
        shown: list[Shown] = json.loads(self.observations.read_text())
        ready = threading.Barrier(self.sessions, timeout=READY_SECONDS)
        began, busy = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(self.sessions) as threads:
            found = threads.map(lambda seed: self._ask(shown, seed, ready), range(self.sessions))
            taken = [seconds for each in found for seconds in each]
        figures = {
            "requests_per_second": len(taken) / self.seconds,
            "median_ms": 1000 * statistics.median(taken),
            "p95_ms": 1000 * statistics.quantiles(taken, n=20)[-1],
            # Near 1 the clients, threads of one Python, are the limit.
            "cores_of_the_load": (time.process_time() - busy) / (time.perf_counter() - began),
        }
        print(json.dumps(figures))

    def _ask(self, shown: Sequence[Shown], seed: int, ready: threading.Barrier) -> list[float]:
        """Seconds of each request of one session that was answered in the timed part."""
        taken = []
        with PolicyClient(self.url) as client, client.open(seed) as session:
            ready.wait()
            start = time.perf_counter() + self.warmup_seconds
            end = start + self.seconds
            for observation in itertools.cycle(shown):
                asked = time.perf_counter()
                session.act(observation)
                answered = time.perf_counter()
                if answered > end:
                    break
                if answered >= start:
                    taken.append(answered - asked)
        return taken


if __name__ == "__main__":
    tyro.cli(Load).run()
