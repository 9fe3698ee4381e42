"""Does it pay to look at the host? The best schedule for each host of a mixture against the best one for all of them.

Each host of ``digits_mixed`` alone gets a search, and the mixture gets one, all with the same budget. What they end
with is compared on every host: the best single schedule is the one with the highest mean over the hosts, whichever
search found it, and the best of each host the one with the highest mean there. Both are chosen on the same hosts, and
what is reported was measured on others. Everything is committed score on the validation split. Run it with::

    python -m benchmarks.looking_pays --output docs/looking-pays.md
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tyro
from rich.console import Console

from envs.tasks.digits import MIXED
from esper_ray.config import EnvConfig
from esper_ray.episodes import search_seeds
from esper_ray.process import settle
from esper_ray.report import search_progress
from esper_ray.search import SearchResult, SearchSettings, play, search_schedule
from policies.schedule import BY_HAND, GrowthSchedule

FloatArray = npt.NDArray[np.float64]

TASK = "digits_mixed"
CHOICE, REPORT = 1 << 20, 1 << 21
"""Streams of host seeds that no search comes to."""

FINALISTS = 3
"""Of each host's search that are tried on the other hosts too."""

NOTHING = GrowthSchedule()


@dataclass(frozen=True)
class LookingPays:
    """The best schedule for each host against the best one for all."""

    variants: tuple[str, ...] = tuple(MIXED)
    """Hosts of the mixture, by name."""
    host_epochs: int = 15_000
    """Budget of each search."""
    max_epochs: int = 60
    """Length of an episode."""
    choice_hosts: int = 8
    """Hosts of each variant on which the schedules are compared."""
    report_hosts: int = 24
    """Fresh hosts of each variant on which the chosen ones are measured."""
    seed: int = 0
    """Of all searches and hosts."""
    workers: int = 1
    """Processes that train hosts."""
    output: Path | None = None
    """Markdown page to write; the table is always printed."""

    def run(self, console: Console) -> None:
        """Search, compare, print, write."""
        began = time.perf_counter()
        alone = [self._search(name, (NOTHING, BY_HAND), console) for name in self.variants]
        winners = tuple(dict.fromkeys((NOTHING, BY_HAND, *(result.best for result in alone))))
        mixed = self._search(",".join(self.variants), winners, console)
        found = [result.finalists[:FINALISTS] for result in alone]
        candidates = list(dict.fromkeys([s for row in (*found, mixed.finalists) for s, _ in row] + [NOTHING]))
        with ProcessPoolExecutor(self.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            choice = np.stack(
                [self._scores(pool, name, candidates, self.choice_hosts, CHOICE).mean(axis=1) for name in self.variants]
            )
            single = candidates[int(choice.mean(axis=0).argmax())]
            own = [candidates[int(row.argmax())] for row in choice]
            measured = np.stack(
                [
                    self._scores(pool, name, [NOTHING, single, best], self.report_hosts, REPORT)
                    for name, best in zip(self.variants, own, strict=True)
                ]
            )
        spent = sum(result.host_epochs for result in (*alone, mixed))
        spent += self.max_epochs * (choice.size * self.choice_hosts + measured.size)
        page = self._page(measured, single, own, spent, (time.perf_counter() - began) / 60)
        console.print(page, markup=False, soft_wrap=True)
        if self.output is not None:
            self.output.write_text(page)
            console.print(f"written: {self.output}")

    def _env(self, variants: str) -> EnvConfig:
        return EnvConfig(task=TASK, task_args={"variants": variants}, max_epochs=self.max_epochs)

    def _search(self, variants: str, start: tuple[GrowthSchedule, ...], console: Console) -> SearchResult:
        settings = SearchSettings(self.host_epochs, self.seed, self.workers, start)
        with search_progress(console) as on_progress:
            result = search_schedule(self._env(variants), settings, on_progress)
        scores = result.finalists[0][1]
        console.print(f"{variants}: {scores.mean():.3f} with {self._described(result.best)}", highlight=False)
        return result

    def _scores(
        self, pool: Executor, variant: str, schedules: list[GrowthSchedule], num_hosts: int, stream: int
    ) -> FloatArray:
        """``[schedules, num_hosts]``; all schedules meet the same hosts."""
        seeds = search_seeds(self.seed, num_hosts, stream)
        episodes = [(schedule, seed) for schedule in schedules for seed in seeds]
        parts = list(play(pool, self._env(variant), episodes))
        return np.concatenate(parts).reshape(len(schedules), num_hosts)

    def _described(self, schedule: GrowthSchedule) -> str:
        return schedule.described(self._env(self.variants[0]).make_task().slots.slot_ids)

    def _page(
        self, measured: FloatArray, single: GrowthSchedule, own: list[GrowthSchedule], spent: int, minutes: float
    ) -> str:
        """The table of ``[variants, (nothing, single, own), hosts]`` scores, and how it came about."""
        gain = measured[:, 2] - measured[:, 1]
        errors = gain.std(axis=1, ddof=1) / gain.shape[1] ** 0.5
        rows = [
            f"| {name} | {scores[0].mean():.3f} | {scores[1].mean():.3f} | {scores[2].mean():.3f} | "
            f"{row.mean():+.3f} ± {error:.3f} | {self._described(best)} |"
            for name, scores, row, error, best in zip(self.variants, measured, gain, errors, own, strict=True)
        ]
        means = measured.mean(axis=(0, 2))
        total = float((errors**2).sum() ** 0.5) / len(errors)
        rows.append(
            f"| **all** | {means[0]:.3f} | {means[1]:.3f} | {means[2]:.3f} | **{gain.mean():+.3f} ± {total:.3f}** | |"
        )
        lines = [
            "# Where looking pays",
            "",
            f"The task `{TASK}` draws its hosts from {', '.join(self.variants)}.",
            "What is it worth to know which one it is, if one may only choose a schedule by it? Committed score on the",
            f"validation split after {self.max_epochs} epochs, mean over {self.report_hosts} hosts of each kind on",
            "which nothing was chosen; ± is a standard error of the difference, host by host.",
            "",
            "| host | nothing grown | best single schedule | its own best | gained | its own best grows |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"The best single schedule grows {self._described(single)}.",
            "",
            f"One search for each host and one for the mixture, with {self.host_epochs:,} host epochs each; the last",
            "one starts with the winners of the others. The single schedule and each host's own are then chosen among",
            f"the finalists of all searches on {self.choice_hosts} hosts of each kind: so the single one is at no",
            f"disadvantage. In all {spent:,} host epochs, {minutes:.0f} minutes on one core shared with other work.",
            "",
            f"Made by `python -m benchmarks.looking_pays --host-epochs {self.host_epochs} --max-epochs "
            f"{self.max_epochs} --seed {self.seed} --output {self.output}`.",
        ]
        return "\n".join(lines) + "\n"


if __name__ == "__main__":
    settle()
    tyro.cli(LookingPays).run(Console())
