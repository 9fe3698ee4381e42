"""How much of the env's speed is left when RLlib and the policy play it?

Run it with::

    python -m benchmarks.rollout --json rollout.json
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from rich.console import Console

from benchmarks.harness import Report, Table, median_ratio, paired_seconds
from benchmarks.quickstart import quickstart
from envs.morphogenesis import MorphogenesisVectorEnv
from esper_ray.process import settle


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
    repeats: int = 3
    """Timed rounds."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        config = quickstart(num_env_runners=0, hosts_per_runner=self.hosts, epochs=self.epochs, task=self.task)
        runner = SingleAgentEnvRunner(config=config, worker_index=0)
        recorded = _Recorder(runner)
        alone = MorphogenesisVectorEnv(self.hosts, **config.env_config)
        with console.status("the same episodes through RLlib and without it, in turns"):
            seconds = paired_seconds(
                {"rollout": recorded.sample, "env alone": lambda: recorded.replay(alone)}, self.repeats
            )
        ratio = median_ratio(seconds["env alone"], seconds["rollout"])
        steps = recorded.steps[-self.repeats :]
        rates = {
            name: statistics.median(count / value for count, value in zip(steps, values, strict=True))
            for name, values in seconds.items()
        }
        parts = {name: values[-self.repeats :] for name, values in recorded.seconds.items()}
        shares = {name: 1.0 / median_ratio(seconds["rollout"], values) for name, values in parts.items()}
        rest = 1.0 - sum(shares.values())
        report = Report(
            "rollout",
            headline={"rollout_share_of_engine": round(ratio, 3)},
            tables=[
                Table(
                    f"Env steps of {self.hosts} hosts per second ({self.task}, episodes of {self.epochs} epochs)",
                    ("through RLlib", "env alone", "ratio"),
                    [(f"{rates['rollout']:,.1f}", f"{rates['env alone']:,.1f}", f"{ratio:.3f}")],
                ),
                Table(
                    "Where the time of a rollout goes",
                    (*shares, "rest: connectors, episodes, metrics"),
                    [(*(f"{share:.1%}" for share in shares.values()), f"{rest:.1%}")],
                ),
            ],
            notes=[
                "A step is one epoch of one host. The env alone gets the actions that the policy chose, and the seeds, "
                "so that the same seeds grow; that its rewards are the same is checked. One thread, local runner, the "
                "quickstart preset's network, untrained.",
            ],
        )
        report.publish(console, self.json)


class _Recorder:
    """Plays rounds of a runner and keeps what a bare env needs to repeat them.

    Attributes:
        seconds: Part of a rollout → wall seconds that it took in each round.
        steps: Steps of hosts in each round.
    """

    def __init__(self, runner: SingleAgentEnvRunner) -> None:
        self._runner = runner
        self.seconds: dict[str, list[float]] = {"env step": [], "policy": []}
        self.steps: list[int] = []
        self._calls: list[tuple[str, Any]] = []
        self._rewards: list[npt.NDArray[np.float64]] = []
        env, module = runner.env.unwrapped, runner.module
        self._step, self._reset = env.step, env.reset
        env.step, env.reset = self._record_step, self._record_reset
        module.forward_exploration = self._timed("policy", module.forward_exploration)

    def sample(self) -> None:
        """One round through RLlib."""
        self._calls.clear()
        self._rewards.clear()
        for values in self.seconds.values():
            values.append(0.0)
        self.steps.append(sum(len(episode) for episode in self._runner.sample()))

    def replay(self, env: MorphogenesisVectorEnv) -> None:
        """The same round without RLlib.

        Raises:
            RuntimeError: the env did not do what the runner's did.
        """
        rewards = []
        for name, argument in self._calls:
            if name == "reset":
                env.reset(seed=argument)
            else:
                rewards.append(env.step(argument)[1])
        if not np.array_equal(rewards, self._rewards):
            raise RuntimeError("the env alone was rewarded otherwise than the runner's: the times do not compare")

    def _record_step(self, actions: npt.NDArray[np.int64]) -> Any:
        self._calls.append(("step", np.array(actions)))
        result = self._timed("env step", self._step)(actions)
        self._rewards.append(result[1])
        return result

    def _record_reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self._calls.append(("reset", seed))
        return self._timed("env step", self._reset)(seed=seed, options=options)

    def _timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = work(*args, **kwargs)
            self.seconds[part][-1] += time.perf_counter() - started
            return result

        return timed


if __name__ == "__main__":
    settle()
    tyro.cli(Rollout).run(Console())
