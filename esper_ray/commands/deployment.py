"""``export`` and ``serve``: a trained policy for others."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console

from esper_ray.keeping.run_directory import RunDirectory, Which
from esper_ray.serving.settings import ServiceConfig


@dataclass(frozen=True)
class Export:
    """Write a trained policy, as safetensors with a JSON card, to hand on; evaluate and replay accept it."""

    run_dir: tyro.conf.Positional[str]
    """Directory of the run; a path, or a URI (s3://, gs://, hdfs://, file://)."""
    out: tyro.conf.Positional[Path]
    """Directory to write, new or empty."""
    checkpoint: Which = "latest"
    """latest is what training ended with; best had the highest moving average of scores in it, should they have fallen
    since."""

    def run(self, console: Console) -> None:
        """Write it."""
        from esper_ray.keeping.export import write_export
        from esper_ray.keeping.storage import at_hand

        with at_hand(self.run_dir) as path:
            card = write_export(RunDirectory.open(path), self.checkpoint, self.out)
        console.print(f"written: {self.out} ({card.sizes.parameters:,} parameters, iteration {card.iteration})")


@dataclass(frozen=True)
class Serve:
    """Answer actions for observations or packets over HTTP, each session with its own memory (docs/serving.md)."""

    export: tyro.conf.Positional[str]
    """What `esper-ray export` or `strategic imitate` wrote; a path, or a URI (s3://, gs://, hdfs://, file://)."""
    service: tyro.conf.OmitArgPrefixes[ServiceConfig] = field(default_factory=ServiceConfig)

    def run(self, console: Console) -> None:
        """Serve until Ctrl-C."""
        from esper_ray.keeping.storage import at_hand
        from esper_ray.serving.service import serve_until_interrupted

        with at_hand(self.export) as path:
            serve_until_interrupted(path, self.service, console)
