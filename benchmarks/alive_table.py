"""Is every blueprint worth germinating somewhere? One scripted growth each, against the same hosts left alone.

Each blueprint germinates at epoch 5, advances at every gate, blends in fully and is fossilised, in one slot of one
task; the table gives what the committed network gained on the test split. Run it with::

    python -m benchmarks.alive_table --output docs/blueprints.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tyro
from rich.console import Console
from rich.progress import track

from envs.blueprints import blueprints_for
from envs.tasks import make_task
from envs.vocabulary import Blueprint
from esper_ray.config import EnvConfig
from esper_ray.measuring.episodes import EpisodeResults, held_out_seeds, run_episodes
from esper_ray.process import settle
from policies.schedule import GrowthPlan, GrowthSchedule
from policies.scripted import FixedSchedule, NeverGrow

HEADER = ("task", "slot", "blueprint", "added parameters", "accuracy, points", "score", "hosts that kept it")


NO_LIMIT = 10**9
"""Parameter budget: the usual one admits CONV_HEAVY only where it would fit in every free slot."""


@dataclass(frozen=True)
class AliveTable:
    """Score gained by each blueprint, germinated at epoch 5 by a script."""

    tasks: tuple[str, ...] = ("digits_impaired",)
    """Tasks to grow in; the first slot of each host is used."""
    hosts: int = 5
    """Hosts (seeds) per row."""
    max_epochs: int = 60
    """Length of an episode."""
    slot: int = 0
    """Index of the slot."""
    output: Path | None = None
    """Markdown page to write; the table is always printed."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        rows = [row for task in self.tasks for row in self._rows(task, console)]
        lines = [_line(HEADER), "|" + "---|" * len(HEADER), *(_line(row) for row in rows)]
        console.print("\n".join(lines), markup=False, soft_wrap=True)
        if self.output is not None:
            self.output.write_text(self._page(lines))
            console.print(f"written: {self.output}")

    def _rows(self, task: str, console: Console) -> list[Sequence[str]]:
        env = EnvConfig(task=task, max_epochs=self.max_epochs, parameter_budget=NO_LIMIT)
        host = make_task(task)
        seeds = held_out_seeds(0, self.hosts)
        alone = run_episodes(NeverGrow(host.slots), env, seeds)
        rows: list[Sequence[str]] = []
        kinds = blueprints_for(host.host.topology, host.slots.blueprints)
        for blueprint in track(list(kinds), description=task, console=console, transient=True):
            schedule = GrowthSchedule((GrowthPlan(slot=self.slot, blueprint=Blueprint(blueprint)),))
            grown = run_episodes(FixedSchedule(host.slots, self.max_epochs, schedule), env, seeds)
            rows.append((task, host.slots.slot_ids[self.slot], blueprint.name.lower(), *_gains(grown, alone)))
        return rows

    def _page(self, lines: list[str]) -> str:
        tasks = " ".join(self.tasks)
        return (
            "# What each blueprint gives\n\n"
            "Germinated at epoch 5, advanced at every gate, blended in fully and fossilised; "
            f"{self.hosts} held-out hosts,\n{self.max_epochs} epochs, test split, against the same hosts left alone: "
            "mean ± standard deviation over hosts.\n"
            "A gain in score is a gain in accuracy minus the rent for the added parameters.\n\n"
            + "\n".join(lines)
            + f"\n\nMade by `python -m benchmarks.alive_table --tasks {tasks} --hosts {self.hosts} "
            f"--max-epochs {self.max_epochs} --output {self.output}`.\n"
        )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _gains(grown: EpisodeResults, alone: EpisodeResults) -> tuple[str, str, str, str]:
    def gain(values: npt.NDArray[np.float64], digits: int) -> str:
        return f"{values.mean():+.{digits}f} ± {values.std(ddof=1):.{digits}f}"

    kept = grown.fates["fossilized"] > 0
    added = (grown.parameters - alone.parameters)[kept]
    return (
        f"{added.mean():,.0f}" if len(added) else "–",
        gain(grown.accuracy - alone.accuracy, 1),
        gain(grown.score - alone.score, 3),
        f"{int(kept.sum())} of {len(kept)}",
    )


if __name__ == "__main__":
    settle()
    tyro.cli(AliveTable).run(Console())
