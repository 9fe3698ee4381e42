"""The policies that ship with the package, in the worlds of their training, at four horizons.

``python -m benchmarks.shipped --json FILE --page docs/grow.md``; ``studies/shipped.sh`` trains them and calls it. The
results are kept in the file after every task and horizon, and a run that was cut off goes on from what it has.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from benchmarks.harness import Report, Table
from benchmarks.live import described, interval
from esper_ray.config import EnvConfig
from esper_ray.keeping.writing import replace_text
from esper_ray.live.policies import SHIPPED
from esper_ray.measuring.playing import Played, Playing, play_all
from esper_ray.measuring.trained import Trained, World
from esper_ray.process import settle
from policies.learned import LEARNED

HORIZONS, POLICIES = (15, 25, 60, 150), (LEARNED, "never_grow", "heuristic")


@dataclass(frozen=True)
class Shipped:
    """What is played.

    Attributes:
        json: File for the results.
        page: Page to write the table into.
        episodes: Held-out hosts at each horizon.
        workers: Processes.
    """

    json: Path | None = None
    page: Path | None = None
    episodes: int = 64
    workers: int = 2

    def run(self, console: Console) -> None:
        """Play, print, write."""
        playings = [
            Playing(world.lasting(epochs), POLICIES, trained, None, self.episodes, evaluation_seed=0)
            for path in sorted(SHIPPED.iterdir())
            for trained in [Trained.open(path, "latest")]
            for world in _worlds(trained)
            for epochs in HORIZONS
        ]
        kept = self._kept()
        missing = [playing for playing in playings if _name(playing.env) not in kept]
        played = play_all(missing, self.workers)
        for playing, results in track(played, "episodes", len(missing), console=console, transient=True):
            row = _row(playing.env.task, playing.env.longest, results)
            kept[_name(playing.env)] = {"row": row, "ahead": _ahead(results)}
            if self.json is not None:
                replace_text(self.json, json.dumps({"cut off": True, "kept": kept}, indent=2) + "\n")
        rows = [tuple(kept[_name(playing.env)]["row"]) for playing in playings]
        report = Report("shipped", tables=[Table("Committed scores", HEADER, rows)], notes=[NOTE])
        report.headline = {"shipped_minus_never_grow": {name: kept[name]["ahead"] for name in sorted(kept)}}
        report.publish(console, self.json)
        if self.page is not None:
            report.write_into(self.page)

    def _kept(self) -> dict[str, dict[str, Any]]:
        """What a run before has found, by task and horizon, if it was cut off."""
        if self.json is None or not self.json.exists():
            return {}
        found: dict[str, dict[str, Any]] = json.loads(self.json.read_text()).get("kept", {})
        return found


HEADER = (
    "task",
    "epochs",
    "shipped policy",
    "never grow",
    "heuristic",
    "shipped minus never grow",
    "accuracy, shipped and never grow, %",
    "seeds fossilised, pruned, cut off",
)
NOTE = (
    "Means over 64 held-out hosts, test split, with Student's 95 % intervals over hosts. A score is the committed "
    "network's accuracy minus rent for its parameters. Cut off are seeds that were unfinished when the episode ended: "
    "they are removed there, where `commit()` would have asked first."
)


def _name(env: EnvConfig) -> str:
    return f"{env.task} {env.longest}"


def _worlds(trained: Trained) -> list[EnvConfig]:
    return [World(task=task).of(trained.env) for task in trained.tasks]


def _row(task: str, epochs: int, results: dict[str, Played]) -> tuple[str, ...]:
    learned, alone = results[LEARNED], results["never_grow"]
    scores = (described(results[name].measures["score"], 3) for name in POLICIES)
    low, high = _ahead(results)
    ahead = np.mean(learned.measures["score"]) - np.mean(alone.measures["score"])
    fates = (np.mean(learned.fates[name]) for name in ("fossilized", "pruned", "unfinished"))
    return (
        task,
        str(epochs),
        *scores,
        f"{ahead:+.3f} [{low:+.3f}, {high:+.3f}]",
        f"{np.mean(learned.measures['accuracy']):.1f}, {np.mean(alone.measures['accuracy']):.1f}",
        ", ".join(f"{fate:.2f}" for fate in fates),
    )


def _ahead(results: dict[str, Played]) -> tuple[float, float]:
    """Interval of the shipped policy's score minus never-grow's, host by host."""
    pairs = zip(results[LEARNED].measures["score"], results["never_grow"].measures["score"], strict=True)
    low, high = interval([ours - theirs for ours, theirs in pairs])
    return round(low, 4), round(high, 4)


if __name__ == "__main__":
    settle()
    tyro.cli(Shipped).run(Console())
