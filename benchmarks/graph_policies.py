"""Two graph policies beside the LSTM, their teachers and the controls, in the worlds of their training and in others.

``studies/strategic.sh`` trains them and calls it::

    python -m benchmarks.graph_policies MIXED THREE --page docs/strategic.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from benchmarks.harness import Report, Table
from benchmarks.live import described
from esper_ray.live.policies import SHIPPED
from esper_ray.measuring.controls import BEST_SCHEDULE
from esper_ray.measuring.playing import Played, Playing, play_all
from esper_ray.measuring.search.schedule_files import read_schedule
from esper_ray.measuring.trained import Trained, World
from esper_ray.process import settle
from policies.learned import LEARNED

EPOCHS = 60
CONTROLS = ("never_grow", "heuristic", "random_valid")
MIXED, THREE, LSTM = "graph policy of `digits_mixed`", "graph policy of three worlds", "LSTM that ships for images"
DIGITS = {"digits_mixed": (MIXED, THREE, LSTM), "digits_scale": (MIXED, THREE), "digits_impaired": (MIXED, THREE, LSTM)}
BY_SCHEDULE = ("tabular", "text")
"""Tasks whose teacher is the schedule in ``studies/schedules``."""
SCHEDULES = Path(__file__).parents[1] / "studies/schedules"


@dataclass(frozen=True)
class GraphPolicies:
    """What is played.

    Attributes:
        mixed: Trained on ``digits_mixed``.
        three: Trained on ``digits_mixed``, ``tabular`` and ``text``.
        json: File for the results.
        page: Page to write the table into.
        episodes: Held-out hosts in each world.
        workers: Processes.
    """

    mixed: tyro.conf.Positional[Path]
    three: tyro.conf.Positional[Path]
    json: Path | None = None
    page: Path | None = None
    episodes: int = 128
    workers: int = 2

    def run(self, console: Console) -> None:
        """Play, print, write."""
        playings = self._playings()
        played = play_all(list(playings.values()), self.workers)
        names = {id(playing): key for key, playing in playings.items()}
        results = {
            (*names[id(playing)], policy): of
            for playing, of_policies in track(played, "episodes", len(playings), console=console, transient=True)
            for policy, of in of_policies.items()
        }
        order = sorted(results, key=lambda key: (_TASKS.index(key[0]), -np.mean(results[key].measures["score"])))
        rows = [_row(*key, results[key], results[key[0], "", CONTROLS[0]]) for key in order]
        report = Report("graph_policies", tables=[Table("Committed scores after 60 epochs", HEADER, rows)])
        report.notes.append(NOTE.format(self.episodes))
        report.headline = {f"{task}, {name or policy}": _mean(of) for (task, name, policy), of in results.items()}
        report.publish(console, self.json)
        if self.page is not None:
            report.write_into(self.page)

    def _playings(self) -> Mapping[tuple[str, str], Playing]:
        """By task and who has learnt; controls and teachers stand under no name."""
        paths = {MIXED: self.mixed, THREE: self.three, LSTM: SHIPPED / "images"}
        playings = {}
        for task in _TASKS:
            world, names = World(task=task, max_epochs=EPOCHS), DIGITS.get(task, (THREE,))
            trained = {name: Trained.open(paths[name], "latest", world) for name in names}
            for name, of in trained.items():
                playings[task, name] = Playing(of.env, (LEARNED,), of, None, self.episodes, evaluation_seed=0)
            controls: tuple[str, ...] = CONTROLS
            schedule = None
            if task in BY_SCHEDULE:
                controls += (BEST_SCHEDULE,)
                schedule = read_schedule(SCHEDULES / f"{task}.json")
            playings[task, ""] = Playing(trained[THREE].env, controls, None, schedule, self.episodes, evaluation_seed=0)
        return playings


_TASKS = ("digits_mixed", *BY_SCHEDULE, "digits_scale", "digits_impaired")
HEADER = ("task", "who", "score", "minus never grow", "accuracy, %", "parameters", "seeds fossilised, pruned, cut off")
NOTE = (
    "Means over {} held-out hosts, test split, with Student's 95 % intervals over hosts; differences host by host. A "
    "score is the committed network's accuracy minus rent for its parameters. best_schedule is a task's teacher."
)


def _mean(played: Played) -> float:
    return round(float(np.mean(played.measures["score"])), 4)


def _row(task: str, name: str, policy: str, played: Played, alone: Played) -> tuple[str, ...]:
    scores, theirs = played.measures["score"], alone.measures["score"]
    fates = (np.mean(played.fates[fate]) for fate in ("fossilized", "pruned", "unfinished"))
    return (
        f"`{task}`",
        name or policy,
        described(scores, 3),
        described([our - their for our, their in zip(scores, theirs, strict=True)], 3),
        f"{np.mean(played.measures['accuracy']):.1f}",
        f"{np.mean(played.measures['parameters']):,.0f}",
        ", ".join(f"{fate:.2f}" for fate in fates),
    )


if __name__ == "__main__":
    settle()
    tyro.cli(GraphPolicies).run(Console())
