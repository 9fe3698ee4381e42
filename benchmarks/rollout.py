"""How much of the env's speed is left when RLlib and the policy play it?

Run it with::

    python -m benchmarks.rollout --json rollout.json
"""

from __future__ import annotations

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from rich.console import Console

from benchmarks.harness import Report, Table
from benchmarks.quickstart import quickstart
from envs.morphogenesis import MorphogenesisVectorEnv
from esper_ray.process import settle

WARMUP = 1
"""Rounds that do not count."""


@dataclass(frozen=True)
class Rollout:
    """Env steps per second through RLlib, against the env alone."""

    json: Path | None = None
    """Report to write; the tables are always printed."""
    hosts: int = 32
    """Hosts of the runner, N."""
    epochs: int = 60
    """Steps of an episode; a round is one episode of every host."""
    task: str = "digits_impaired"
    """Data and host."""
    repeats: int = 2
    """Timed rounds."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        config = quickstart(num_env_runners=0, hosts_per_runner=self.hosts, epochs=self.epochs, task=self.task)
        runner = SingleAgentEnvRunner(config=config, worker_index=0)
        shadowed = _Shadowed(runner, MorphogenesisVectorEnv(self.hosts, **config.env_config))
        with console.status("the same episodes through RLlib and without it, in turns"):
            rounds = [shadowed.sample() for _ in range(WARMUP + self.repeats)][WARMUP:]
        names = ("rollout", "env alone")
        rates = [statistics.median(seconds["steps"] / seconds[name] for seconds in rounds) for name in names]
        of_rollout = {
            name: statistics.median(seconds[name] / seconds["rollout"] for seconds in rounds)
            for name in ("env alone", "env in rollout", "policy")
        }
        ratio, shares = of_rollout.pop("env alone"), of_rollout
        rest = 1.0 - sum(shares.values())
        report = Report(
            "rollout",
            headline={"rollout_share_of_engine": round(ratio, 3)},
            tables=[
                Table(
                    f"Env steps of {self.hosts} hosts per second ({self.task}, episodes of {self.epochs} epochs)",
                    ("through RLlib", "env alone", "ratio"),
                    [(*(f"{rate:,.1f}" for rate in rates), f"{ratio:.3f}")],
                ),
                Table(
                    "Where the time of a rollout goes",
                    (*shares, "rest: connectors, episodes, metrics"),
                    [(*(f"{share:.1%}" for share in shares.values()), f"{rest:.1%}")],
                ),
            ],
            notes=[
                "A step is one epoch of one host. The env alone is a second one that repeats every call of the "
                "runner's right before or after it, so that the same seeds grow and a busy moment of the machine hits "
                "both; that it observes the same is checked. One thread, local runner, the quickstart preset's "
                "network, untrained.",
            ],
        )
        report.publish(console, self.json)


class _Shadowed:
    """A runner whose env is followed, call by call, by a second one without RLlib around it.

    Args:
        runner: Has not been reset yet.
        shadow: An env like the runner's.
    """

    def __init__(self, runner: SingleAgentEnvRunner, shadow: MorphogenesisVectorEnv) -> None:
        self._runner = runner
        self._seconds: dict[str, float] = defaultdict(float)
        self._calls = 0
        env, module = runner.env.unwrapped, runner.module
        for name in ("reset", "step"):
            pair = {"env in rollout": getattr(env, name), "env alone": getattr(shadow, name)}
            setattr(env, name, functools.partial(self._both, pair))
        module.forward_exploration = functools.partial(self._timed, "policy", module.forward_exploration)

    def sample(self) -> dict[str, float]:
        """One round: wall seconds by name (``rollout`` is without those of the env alone), and ``steps``."""
        self._seconds.clear()
        episodes = self._timed("rollout", self._runner.sample)
        self._seconds["rollout"] -= self._seconds["env alone"]
        return self._seconds | {"steps": float(sum(len(episode) for episode in episodes))}

    def _both(self, pair: dict[str, Callable[..., Any]], *args: Any, **kwargs: Any) -> Any:
        """The same call of both envs, each the first one at every other call.

        Raises:
            RuntimeError: they differ in what they did.
        """
        self._calls += 1
        order = sorted(pair, reverse=bool(self._calls % 2))
        results = {name: self._timed(name, pair[name], *args, **kwargs) for name in order}
        seen, alone = results["env in rollout"], results["env alone"]
        if not np.array_equal(seen[0]["obs"], alone[0]["obs"]):
            raise RuntimeError("the env alone did otherwise than the runner's: the times do not compare")
        return seen

    def _timed(self, name: str, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = work(*args, **kwargs)
        self._seconds[name] += time.perf_counter() - started
        return result


if __name__ == "__main__":
    settle()
    tyro.cli(Rollout).run(Console())
