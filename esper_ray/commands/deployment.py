"""``export`` and ``serve``: a trained policy for others."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console

from esper_ray.run_directory import RunDirectory, Which
from esper_ray.serving.settings import ServiceConfig


@dataclass(frozen=True)
class Export:
    """Write a trained policy, as safetensors with a JSON card, to hand on; evaluate and replay accept it."""

    run_dir: tyro.conf.Positional[Path]
    """Directory of the run."""
    out: tyro.conf.Positional[Path]
    """Directory to write, new or empty."""
    checkpoint: Which = "best"
    """Which of the run's checkpoints."""

    def run(self, console: Console) -> None:
        """Write it."""
        from esper_ray.export import write_export

        card = write_export(RunDirectory.open(self.run_dir), self.checkpoint, self.out)
        console.print(f"written: {self.out} ({card.sizes.parameters:,} parameters, iteration {card.iteration})")


@dataclass(frozen=True)
class Serve:
    """Answer actions for observations over HTTP, each session with its own memory (docs/serving.md)."""

    export: tyro.conf.Positional[Path]
    """What `esper-ray export` wrote."""
    service: tyro.conf.OmitArgPrefixes[ServiceConfig] = field(default_factory=ServiceConfig)

    def run(self, console: Console) -> None:
        """Serve until Ctrl-C."""
        from esper_ray.serving.service import serve_until_interrupted

        serve_until_interrupted(self.export, self.service, console)
