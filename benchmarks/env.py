"""What does an env step cost beside the training and evaluation of its hosts, and what do counterfactuals cost?

Run it with::

    python -m benchmarks.env --json env.json
"""

from __future__ import annotations

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from benchmarks.grown_hosts import GrownHosts
from benchmarks.harness import Report, Table, median_ratio, paired_seconds
from benchmarks.plain_hosts import PlainHost
from envs.action_masks import build_mask
from envs.morphogenesis import MorphogenesisVectorEnv
from esper_ray.process import settle
from policies.player import Player
from policies.scripted import RandomValid

P = ParamSpec("P")
T = TypeVar("T")

TASKS = ("digits_impaired", "digits_mixed")
HEADLINE_HOSTS = 32
WARMUP_STEPS = 3
ENGINE = ("train_epoch", "evaluate")
"""Methods of the population that are host training and evaluation, counterfactuals included."""
PARTS = ("sync", "start", "encode", "take", "apply")
"""Other methods that are timed; none of them calls another one."""
GROWN_TASK, GROWN_SIZES, GROWN_EPOCHS = "digits_impaired", (16, 128), 60
"""Where counterfactuals are timed: the quickstart's task and length of an episode."""


@dataclass(frozen=True)
class Env:
    """Share of an env step that is not host training or evaluation."""

    json: Path | None = None
    """Report to write; the tables are always printed."""
    sizes: tuple[int, ...] = (1, 8, 32, 128)
    """Numbers of hosts, N."""
    epochs: int = 24
    """Steps of an episode; a timed round is one episode and the step that starts the next."""
    repeats: int = 2
    """Rounds; fewer where N is large, but at least one."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        report = Report("env", notes=list(NOTES))
        shares: dict[tuple[str, int], float] = {}
        rows, loops = [], []
        cells = [(task, size) for task in TASKS for size in self.sizes]
        for task, num_hosts in track(cells, description="episodes", console=console, transient=True):
            player = _Player(task, num_hosts, self.epochs)
            rounds = max(1, min(self.repeats, self.repeats * HEADLINE_HOSTS // num_hosts))
            shares[task, num_hosts], cells_of_row = player.shares(rounds)
            rows.append((task, str(num_hosts), *cells_of_row))
            if num_hosts == HEADLINE_HOSTS:
                loops += player.against_loop()
        grown = {}
        for num_hosts in track(GROWN_SIZES, description="counterfactuals", console=console, transient=True):
            grown[num_hosts] = GrownHosts(GROWN_TASK, num_hosts, GROWN_EPOCHS).shares()
        report.headline["counterfactual_share"] = round(max(share for share, _ in grown.values()), 3)
        if HEADLINE_HOSTS in self.sizes:
            worst = max(shares[task, HEADLINE_HOSTS] for task in TASKS)
            report.headline["env_overhead_share"] = round(worst, 3)
        report.tables = [Table("An env step and what it is spent on", SHARES, rows)]
        seeded = [(GROWN_TASK, str(num_hosts), *cells) for num_hosts, (_, cells) in grown.items()]
        report.tables.append(Table("Hosts with a seed in every slot", GROWN, seeded))
        if loops:
            report.tables.append(Table(f"{HEADLINE_HOSTS} hosts: arrays against a loop over hosts", LOOPS, loops))
        report.publish(console, self.json)


SHARES = ("task", "N", "ms per step", "train", "evaluate", "overhead", *PARTS, "rest", "overhead, µs per host")
GROWN = ("task", "N", "blended seeds a host", "ms per step", "train", "evaluate", "counterfactuals")
LOOPS = ("task", "", "arrays, ms", "loop, ms", "ratio")

NOTES = (
    "Random-valid actions, chosen outside of the time. Overhead is everything in `step` but the calls of "
    "`population.train_epoch` and `population.evaluate`: sync draws and deals out the seeds' weights, start draws "
    "hosts at an episode's start, encode makes the features, take saves the governor's snapshots, apply executes "
    "the actions, and rest is masks, rewards, measurements and reports.",
    "Hosts with a seed in every slot: an episode in which each host germinates one per slot as early as it may, "
    "blueprints and styles in turn, and keeps them. Counterfactuals are what evaluations with some take longer than "
    "evaluations of the same hosts as they are, made right after them and outside of the step; counterfactual_share is "
    "the larger of the two sizes' shares. In a runner the policy and RLlib come on top.",
    "The loop over hosts is plain Python on numbers and lists, one host and one slot after another; it makes the same "
    "masks and features, which is checked.",
)


class _Player:
    """A played env whose parts are timed."""

    def __init__(self, task: str, num_hosts: int, epochs: int) -> None:
        self.task, self.num_hosts, self.epochs = task, num_hosts, epochs
        self.env = MorphogenesisVectorEnv(num_hosts, task=task, max_epochs=epochs)
        self.seconds: dict[str, float] = defaultdict(float)
        for owner in (self.env.population, self.env.layout, self.env.watch.snapshots, self.env.lifecycle):
            for name in (*ENGINE, *PARTS):
                if hasattr(owner, name):
                    setattr(owner, name, self._timed(name, getattr(owner, name)))
        self.player = Player(RandomValid(self.env.task.slots), num_hosts, seed=0)
        self.observations, _ = self.env.reset(seed=0)
        for _ in range(WARMUP_STEPS):
            self._step()
        self.observations, _ = self.env.reset(seed=1)

    def shares(self, rounds: int) -> tuple[float, tuple[str, ...]]:
        """Median share of the overhead, and the cells of a row."""
        played = []
        for _ in range(rounds):
            self.seconds.clear()
            self._play()
            played.append(dict(self.seconds))
        overhead = [1.0 - sum(seconds[name] for name in ENGINE) / seconds["step"] for seconds in played]
        median = {name: statistics.median(seconds[name] / seconds["step"] for seconds in played) for name in played[0]}
        rest = 1.0 - sum(median[name] for name in (*ENGINE, *PARTS))
        step = statistics.median(seconds["step"] for seconds in played) / (self.epochs + 1)
        share = statistics.median(overhead)
        percents = (*(median[name] for name in ENGINE), share, *(median[name] for name in PARTS), rest)
        per_host = f"{1e6 * step * share / self.num_hosts:,.0f}"
        return share, (f"{1e3 * step:,.1f}", *(f"{percent:.1%}" for percent in percents), per_host)

    def against_loop(self) -> list[tuple[str, ...]]:
        """Masks and features of all hosts in one call, and host by host, in the middle of an episode."""
        for _ in range(self.epochs // 2):
            self._step()
        env = self.env
        plain = [PlainHost(env, host) for host in range(self.num_hosts)]
        last_op, last_success = np.zeros_like(env.epoch), np.ones(self.num_hosts, bool)
        encode = functools.partial(type(env.layout).encode, env.layout)
        state = (env.progress, env.lifecycle, env.measurements, env.epoch, env.max_epochs, last_op, last_success)
        # Both ways end in an array of the observation's type, which is what a policy takes.
        ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "mask": (
                functools.partial(build_mask, env.lifecycle),
                lambda: np.array([host.mask() for host in plain], np.int8),
            ),
            "features": (
                functools.partial(encode, *state),
                lambda: np.array([host.features(0, True) for host in plain], np.float32),
            ),
        }
        rows = []
        for name, (arrays, loop) in ways.items():
            np.testing.assert_allclose(loop(), arrays(), rtol=1e-6, atol=1e-6)
            seconds = paired_seconds({"arrays": arrays, "loop": loop}, 30, warmup=3)
            medians = [f"{1e3 * statistics.median(seconds[key]):.3f}" for key in ("arrays", "loop")]
            ratio = median_ratio(seconds["loop"], seconds["arrays"])
            rows.append((self.task, name, *medians, f"{ratio:.1f}"))
        return rows

    def _play(self) -> None:
        for _ in range(self.epochs + 1):
            self._step()

    def _step(self) -> None:
        actions = self.player.act(self.observations)
        self.observations, *_ = self._timed("step", self.env.step)(actions)

    def _timed(self, name: str, work: Callable[P, T]) -> Callable[P, T]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            started = time.perf_counter()
            result = work(*args, **kwargs)
            self.seconds[name] += time.perf_counter() - started
            return result

        return timed


if __name__ == "__main__":
    settle()
    tyro.cli(Env).run(Console())
