"""Does it pay to look at the host? The best schedule for each host of a mixture against the best one for all of them.

A search tries every schedule on one host of each kind, the same for all schedules, and goes on from those that lead:
on average over the kinds, or on any of them. The leaders meet more hosts. Then the best single schedule is the one
with the highest mean over the kinds, and the own best of a kind the one with the highest mean there: both choices are
made among the same schedules, on the same hosts. What is reported was measured on other hosts. Everything is
committed score on the validation split. Run it with::

    python -m benchmarks.looking_pays --output docs/looking-pays.md
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tyro
from rich.console import Console

from envs.tasks.handwritten import DRAWN
from envs.vocabulary import Blueprint
from esper_ray.config import EnvConfig
from esper_ray.measuring.episodes import search_seeds
from esper_ray.measuring.search.schedule_episodes import play
from esper_ray.measuring.search.search_report import search_progress
from esper_ray.measuring.search.space import VARIED_SHARE, ScheduleSpace
from esper_ray.process import host_processes, settle
from policies.schedule import BY_HAND, GrowthPlan, GrowthSchedule

FloatArray = npt.NDArray[np.float64]

TASK = "digits_mixed"
LEADERS = 2
"""Schedules that lead on average, and on each kind of host."""

HANDICAP = 0.03
"""Standard deviation of a score over hosts of a kind, about: what a schedule may owe to chance on a single host."""

FIRST_STREAM = 1 << 20
"""Of host seeds; no search of a schedule comes to it."""

NOTHING = GrowthSchedule()


@dataclass(frozen=True)
class LookingPays:
    """The best schedule for each host against the best one for all."""

    variants: tuple[str, ...] = DRAWN
    """Kinds of host in the mixture, by name."""
    rounds: int = 3
    """Of schedules tried: the first is random, the others mostly vary the leaders."""
    schedules: int = 32
    """New ones in each round."""
    choice_hosts: int = 6
    """Of each kind, on which the leaders are compared in the end."""
    report_hosts: int = 16
    """Of each kind, on which the chosen ones are measured."""
    max_epochs: int = 60
    """Length of an episode."""
    path_rent: float | None = None
    """Score lost per living seed; the task's own by default."""
    seed: int = 0
    """Of all schedules and hosts."""
    workers: int = 1
    """Processes that train hosts."""
    output: Path | None = None
    """Markdown page to write; the table is always printed."""

    def run(self, console: Console) -> None:
        """Search, compare, print, write."""
        began = time.perf_counter()
        with (
            host_processes(self.workers) as pool,
            search_progress(console) as on_progress,
        ):
            hosts = _Hosts(self, pool, on_progress)
            leaders = self._search(hosts)
            kinds = len(self.variants)
            choice = hosts.scores("choice", [leaders] * kinds, self.choice_hosts).mean(axis=2)
            single = leaders[int(choice.mean(axis=0).argmax())]
            own = [leaders[int(row.argmax())] for row in choice]
            measured = hosts.scores("report", [[NOTHING, single, best] for best in own], self.report_hosts)
        page = self._page(measured, single, own, hosts, (time.perf_counter() - began) / 60)
        console.print(page, markup=False, soft_wrap=True)
        if self.output is not None:
            self.output.write_text(page)
            console.print(f"written: {self.output}")

    def _search(self, hosts: _Hosts) -> list[GrowthSchedule]:
        """The schedules that lead after all rounds."""
        rng = np.random.default_rng(self.seed)
        space = ScheduleSpace.of(hosts.env(",".join(self.variants)).make_task(), self.max_epochs)
        scores: dict[GrowthSchedule, list[FloatArray]] = {}
        leaders: list[GrowthSchedule] = []
        for number in range(1, self.rounds + 1):
            new = list(_usual(space)) if number == 1 else []
            while len(new) < self.schedules:
                vary = bool(leaders) and rng.random() < VARIED_SHARE
                schedule = space.varied(leaders, rng) if vary else space.drawn(rng)
                new += [schedule] if schedule not in scores and schedule not in new else []
            self._try(new, f"round {number}", hosts, scores)
            self._try(_leaders(scores), f"leaders of round {number}", hosts, scores)
            leaders = _leaders(scores)
        return leaders

    def _try(
        self,
        schedules: Sequence[GrowthSchedule],
        name: str,
        hosts: _Hosts,
        scores: dict[GrowthSchedule, list[FloatArray]],
    ) -> None:
        """Add to ``scores`` what the schedules reach on one more host of every kind."""
        reached = hosts.scores(name, [schedules] * len(self.variants), 1)[:, :, 0]
        for schedule, column in zip(schedules, reached.T, strict=True):
            scores.setdefault(schedule, []).append(column)

    def _page(
        self,
        measured: FloatArray,
        single: GrowthSchedule,
        own: Sequence[GrowthSchedule],
        hosts: _Hosts,
        minutes: float,
    ) -> str:
        """The table of ``[variants, (nothing, single, own), hosts]`` scores, and how it came about."""
        gain = measured[:, 2] - measured[:, 1]
        errors = gain.std(axis=1, ddof=1) / gain.shape[1] ** 0.5
        rows = [
            f"| {name} | {scores[0].mean():.3f} | {scores[1].mean():.3f} | {scores[2].mean():.3f} | "
            f"{row.mean():+.3f} ± {error:.3f} | {best.described(hosts.slot_ids)} |"
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
            f"Hosts of the task `{TASK}`: {', '.join(self.variants)}; a living seed costs {hosts.path_rent:g}.",
            "What is it worth to know which one it is, if one may only choose a schedule by it? Committed score on the",
            f"validation split after {self.max_epochs} epochs, mean over {self.report_hosts} hosts of each kind on",
            "which nothing was chosen; ± is a standard error of the difference, host by host.",
            "",
            "| host | nothing grown | best single schedule | its own best | gained | its own best grows |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"The best single schedule grows {single.described(hosts.slot_ids)}.",
            "",
            f"{self.rounds} rounds of {self.schedules} new schedules, each tried on one host of every kind, the later",
            "rounds mostly variations of those that led on average or on any kind. The single schedule and the own",
            f"best ones are chosen among the same leaders, on the same {self.choice_hosts} hosts of each kind. In all",
            f"{hosts.spent:,} host epochs; {minutes:.0f} minutes.",
            "",
            f"Made by `python -m benchmarks.looking_pays --variants {' '.join(self.variants)}",
            f"--rounds {self.rounds} --schedules {self.schedules} --choice-hosts {self.choice_hosts} "
            f"--report-hosts {self.report_hosts} --max-epochs {self.max_epochs} --path-rent {hosts.path_rent:g}",
            f"--seed {self.seed} --output {self.output}`.",
        ]
        return "\n".join(lines) + "\n"


class _Hosts:
    """Fresh hosts of every kind, and how many epochs they have been trained for."""

    def __init__(self, options: LookingPays, pool: Executor, on_progress: Callable[[str, int, int], None]) -> None:
        self.options, self._pool, self._on_progress = options, pool, on_progress
        self.spent, self._stream = 0, itertools.count(FIRST_STREAM)
        task = self.env(options.variants[0]).make_task()
        self.slot_ids = task.slots.slot_ids
        self.path_rent = task.path_rent if options.path_rent is None else options.path_rent

    def env(self, variants: str) -> EnvConfig:
        """The task with some of its kinds of host."""
        options = self.options
        arguments = {"variants": variants}
        return EnvConfig(task=TASK, task_args=arguments, max_epochs=options.max_epochs, path_rent=options.path_rent)

    def scores(self, name: str, schedules: Sequence[Sequence[GrowthSchedule]], num_hosts: int) -> FloatArray:
        """Scores of equally many schedules on each kind of host.

        Args:
            name: What for, in words.
            schedules: For each kind.
            num_hosts: Of each kind. All schedules meet the same ones, whom none has met before.

        Returns:
            ``[variants, schedules, num_hosts]``.
        """
        seeds = search_seeds(self.options.seed, num_hosts, next(self._stream))
        rows = []
        for variant, tried in zip(self.options.variants, schedules, strict=True):
            episodes = [(schedule, seed) for schedule in tried for seed in seeds]
            rows.append(np.concatenate(list(play(self._pool, self.env(variant), episodes))).reshape(-1, num_hosts))
            self.spent += len(episodes) * self.options.max_epochs
            self._on_progress(f"{name}, {variant}", self.spent, max(self.spent, self._planned()))
        return np.stack(rows)

    def _planned(self) -> int:
        """Host epochs in all, if the leaders are as many as they can be."""
        options, kinds = self.options, len(self.options.variants)
        most = LEADERS * (kinds + 1)
        episodes = options.rounds * (options.schedules + most) + most * options.choice_hosts
        return options.max_epochs * kinds * (episodes + 3 * options.report_hosts)


def _leaders(scores: dict[GrowthSchedule, list[FloatArray]]) -> list[GrowthSchedule]:
    """The best on average over the kinds of host, and the best on each.

    Args:
        scores: ``[variants]`` for each host that a schedule has met of every kind.
    """
    schedules, counts = list(scores), np.array([len(rows) for rows in scores.values()])
    means = np.stack([np.mean(rows, axis=0) for rows in scores.values()])
    likely = means - HANDICAP / np.sqrt(counts)[:, None]
    views = (likely.mean(axis=1), *likely.T)
    best = [index for view in views for index in np.argsort(-view, kind="stable")[:LEADERS]]
    return [schedules[index] for index in dict.fromkeys(best)]


def _usual(space: ScheduleSpace) -> Iterator[GrowthSchedule]:
    """What anybody would try: nothing, the schedule made by hand, one early kind of seed in any set of slots."""
    yield from (NOTHING, BY_HAND)
    for count in range(1, len(space.slots) + 1):
        for slots in itertools.combinations(space.slots, count):
            yield GrowthSchedule(tuple(GrowthPlan(slot, Blueprint.DEPTHWISE, 0) for slot in slots))


if __name__ == "__main__":
    settle()
    tyro.cli(LookingPays).run(Console())
