"""How many decisions per second does the policy service answer, and how soon?

Run it with::

    python -m benchmarks.service --json service.json
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console

from benchmarks.harness import Report, Table
from benchmarks.load import Shown
from envs.morphogenesis import MorphogenesisVectorEnv
from esper_ray.config import EnvConfig, TrainConfig
from esper_ray.keeping.export import write_export
from esper_ray.keeping.run_directory import POLICY_FILE, RunDirectory
from esper_ray.process import settle
from esper_ray.serving.service import running
from esper_ray.serving.settings import ServiceConfig
from policies.bundle import PolicySettings
from policies.factory import build_policy
from policies.player import Player
from policies.weights import save_weights


@dataclass(frozen=True)
class Service:
    """Requests per second and their latency, by number of sessions that ask at once."""

    json: Path | None = None
    """Report to write; the tables are always printed."""
    sessions: tuple[int, ...] = (1, 8, 64)
    """Sessions that ask at once, each for its next step as soon as it has an answer."""
    seconds: float = 10.0
    """Timed part of each."""
    warmup_seconds: float = 3.0
    """Before it, not counted."""
    replicas: int = 1
    """Processes that decide."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with tempfile.TemporaryDirectory() as directory, console.status("asking a service on this machine"):
            export, observations = _export(Path(directory)), Path(directory) / "observations.json"
            observations.write_text(json.dumps(_episode()))
            with running(export, ServiceConfig(port=port, replicas=self.replicas)) as url:
                rows = [self._measure(url, observations, sessions) for sessions in self.sessions]
        report = Report(
            "service",
            headline={
                key: value
                for sessions, found in zip(self.sessions, rows, strict=True)
                for key, value in (
                    (f"requests_per_second_{sessions}", round(found["requests_per_second"], 1)),
                    (f"p95_ms_{sessions}", round(found["p95_ms"], 1)),
                )
            },
            tables=[
                Table(
                    f"Decisions of a policy of the default width over HTTP, {self.replicas} replica(s)",
                    ("sessions", "requests/s", "median, ms", "p95, ms", "cores of the load"),
                    [
                        (
                            f"{sessions}",
                            *(f"{found[name]:,.1f}" for name in ("requests_per_second", "median_ms", "p95_ms")),
                            f"{found['cores_of_the_load']:.2f}",
                        )
                        for sessions, found in zip(self.sessions, rows, strict=True)
                    ],
                )
            ],
            notes=[
                "Clients are threads of one process of their own on the same machine, whose cores they take too; each "
                "keeps its connection and asks again at once. Observations of one recorded episode; the network is "
                "untrained.",
            ],
        )
        report.publish(console, self.json)

    def _measure(self, url: str, observations: Path, sessions: int) -> dict[str, float]:
        """What a load of so many sessions found."""
        asked = {"sessions": sessions, "seconds": self.seconds, "warmup-seconds": self.warmup_seconds}
        flags = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "benchmarks.load", url, str(observations), *flags]
        found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        return found


CONFIG = TrainConfig(env=EnvConfig(max_epochs=30))


def _settings() -> PolicySettings:
    return PolicySettings(CONFIG.env.make_task().slots, CONFIG.env.longest, CONFIG.network)


def _episode() -> list[Shown]:
    """What one host shows while an untrained policy plays it."""
    env = MorphogenesisVectorEnv(1, **CONFIG.env.keywords())
    observation, _ = env.reset(seed=0)
    player, shown = Player(build_policy("learned", _settings()), 1, seed=0), []
    for _ in range(CONFIG.env.longest):
        shown.append({name: leaf[0].tolist() for name, leaf in observation.items()})
        observation = env.step(player.act(observation))[0]
    return shown


def _export(directory: Path) -> Path:
    """An untrained policy, exported."""
    run = RunDirectory.create(directory / "run", CONFIG)
    torch.manual_seed(0)
    state = build_policy("learned", _settings()).state_dict()
    run.save(1, 0.0, lambda path: save_weights(state, path / POLICY_FILE))
    write_export(run, "best", directory / "export")
    return directory / "export"


if __name__ == "__main__":
    settle()
    tyro.cli(Service).run(Console())
