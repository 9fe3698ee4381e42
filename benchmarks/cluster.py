"""What does a cluster add, what does a death cost, how fast does the service answer, and what would more machines give?

Run it with::

    python -m benchmarks.cluster --json cluster.json --page docs/scaling.md

A head and worker nodes run on this machine's loopback, as in ``make test-cluster``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from benchmarks import plan
from benchmarks.harness import Report, Table, median_ratio
from benchmarks.nodes import ROOT, Nodes

GPUS = (8, 64, 512)
HOSTS, EPOCHS = 512, 60
"""Of a GPU's runner in the plan, and the steps of its episodes."""
ASSUMED = {
    "hosts ×1, update ×1 (as measured)": (1.0, 1.0),
    "hosts ×10, update ×1": (10.0, 1.0),
    "hosts ×10, update ×50": (10.0, 50.0),
    "hosts ×100, update ×50": (100.0, 50.0),
}
"""Speed of a GPU against one core."""
PART_SECONDS = 300

NOTES = (
    "Nodes are groups of processes on one machine with an address each; what they send each other crosses its loopback "
    "and is copied between their object stores. Every node has one CPU by its own account, so that a second node's "
    "runner gets the second core. Its rate is taken in turns with that of both.",
    "A death is a SIGKILL at half of an iteration: of the runner, then of every process of its node, with a third node "
    "idle. Recovered is when the new process answers, its hosts and networks made; the other runner has filled the "
    "iteration by then, or does after.",
)


@dataclass(frozen=True)
class Cluster:
    """Rates on one node and two, recovery, the policy service, and the pieces of a plan."""

    json: Path | None = None
    """Report to write; the tables are always printed."""
    page: Path | None = None
    """Markdown page whose measured part is replaced by the tables."""
    hosts: int = 16
    """Of each runner."""
    epochs: int = 30
    """Steps of an episode."""
    repeats: int = 8
    """Timed rounds or iterations."""
    service_seconds: float = 10.0
    """Timed part of each number of sessions."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        began = time.monotonic()

        def say(what: str) -> None:
            console.print(f"{time.monotonic() - began:4.0f} s  {what}", highlight=False)

        report = Report("cluster", notes=list(NOTES))
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            say("a head and two nodes start")
            nodes = Nodes("--num-cpus=0")
            try:
                workers = [nodes.add(cpus=1), nodes.add(cpus=1)]
                say("rates and sizes")
                pieces = self._drive(nodes, folder, "pieces")
                say("a third node starts")
                workers.append(nodes.add(cpus=1))
                say("deaths")
                deaths = self._drive(nodes, folder, "deaths", *(str(node.pid) for node in workers))
            finally:
                nodes.close()
            say("policy service")
            service = self._service(folder)
        say("done")
        self._tell(report, pieces, deaths, service)
        report.publish(console, self.json)
        if self.page is not None:
            report.write_into(self.page)

    def _drive(self, nodes: Nodes, folder: Path, what: str, *pids: str) -> dict[str, Any]:
        sizes = {"hosts": self.hosts, "epochs": self.epochs, "repeats": self.repeats}
        flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
        out = folder / f"{what}.json"
        command = [sys.executable, "-m", "benchmarks.cluster_driver", what, nodes.address, str(out), *flags]
        if pids:
            command += ["--nodes", *pids]
        subprocess.run(command, env=nodes.environment, cwd=ROOT, check=True, timeout=PART_SECONDS)
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    def _service(self, folder: Path) -> dict[str, Any]:
        out = folder / "service.json"
        command = [sys.executable, "-m", "benchmarks.service", "--json", str(out)]
        subprocess.run([*command, "--seconds", str(self.service_seconds)], cwd=ROOT, check=True, timeout=PART_SECONDS)
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    # ------------------------------------------------------------------ report
    def _tell(self, report: Report, pieces: dict[str, Any], deaths: dict[str, Any], service: dict[str, Any]) -> None:
        rollouts, steps = pieces["seconds_of_a_rollout"], pieces["steps_of_a_rollout"]
        one, two = (steps * runners / statistics.median(rollouts[name]) for name, runners in (("one", 1), ("all", 2)))
        ratio = 2 * median_ratio(rollouts["one"], rollouts["all"])
        report.tables.append(
            Table(
                f"Env steps per second ({self.hosts} hosts per runner, digits_impaired, {self.epochs} epochs)",
                ("one node's runner", "two nodes' runners", "ratio"),
                [(f"{one:,.1f}", f"{two:,.1f}", f"{ratio:.2f}")],
            )
        )
        quiet, dropped = deaths["undisturbed_seconds"], steps // 2
        report.tables.append(
            Table(
                f"Deaths in mid-iteration (an undisturbed iteration takes {quiet:.1f} s)",
                ("death of a", "recovered after, s", "that iteration took longer by, s", "steps played in vain, about"),
                [
                    (
                        name,
                        f"{deaths[name]['recovered_seconds']:.1f}",
                        f"{deaths[name]['iteration_seconds'] - quiet:.1f}",
                        f"{dropped}",
                    )
                    for name in ("runner", "node")
                ],
            )
        )
        report.notes.append(
            f"Over the {deaths['iterations']} iterations with these deaths {deaths['steps_missing']} steps were "
            "missing in what was counted and learnt from."
        )
        report.tables += [Table(each["title"], tuple(each["header"]), each["rows"]) for each in service["tables"]]
        report.notes += service["notes"]
        known = plan.Pieces(
            steps_per_second=one,
            bytes_per_step=pieces["bytes_per_step"],
            unpack_seconds_per_step=pieces["unpack_seconds_per_step"],
            learner_seconds_per_step=pieces["update_seconds"] / (2 * steps),
            weight_bytes=pieces["weight_bytes"],
        )
        report.tables.append(
            Table(
                "Pieces of an iteration",
                ("piece", "measured"),
                [
                    ("env steps/s of one runner", f"{known.steps_per_second:,.1f}"),
                    ("bytes of an env step in a rollout", f"{known.bytes_per_step:,.0f}"),
                    ("driver's time to unpack a step", f"{1e6 * known.unpack_seconds_per_step:.1f} µs"),
                    ("learner's time per step, all passes", f"{1e3 * known.learner_seconds_per_step:.2f} ms"),
                    ("weights", f"{known.weight_bytes / 1e6:.1f} MB"),
                    ("weights to two nodes' runners", f"{1e3 * pieces['broadcast_seconds']:.0f} ms"),
                    ("iteration of two runners", f"{pieces['iteration_seconds']:.2f} s"),
                ],
            )
        )
        report.tables.append(plan.table(known, GPUS, ASSUMED, HOSTS, EPOCHS))
        report.headline = {
            "two_node_ratio": round(ratio, 2),
            **{f"{name}_recovered_seconds": round(deaths[name]["recovered_seconds"], 1) for name in ("runner", "node")},
            "steps_missing": deaths["steps_missing"],
            **service["headline"],
            "bytes_per_step": round(known.bytes_per_step),
            "learner_ms_per_step": round(1e3 * known.learner_seconds_per_step, 3),
            "weight_mb": round(known.weight_bytes / 1e6, 1),
        }


if __name__ == "__main__":
    tyro.cli(Cluster).run(Console())
