"""Seconds per env step on images of CIFAR-10's shape, in a setting for which another system's time is known.

Random pixels and labels, the CIFAR task's host at widths 8, 16 and 32 with 3×3 kernels, random-valid actions, no
augmentation (that system used none). Run it with::

    python -m benchmarks.cifar_shape --json cifar_shape.json
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console

from benchmarks.harness import Report, Table
from envs.hosts.cnn import CnnVariant
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.tasks import Split, Task
from envs.tasks.base import SplitName
from envs.tasks.cifar import CHANNELS, NUM_CLASSES, SIDE, cifar_task
from esper_ray.process import settle
from policies.player import Player
from policies.scripted import RandomValid

SAMPLES: dict[SplitName, int] = {"train": 2560, "validation": 512, "test": 512}
BATCH_SIZE = 512
HOST = CnnVariant(widths=(8, 16, 32), kernels=(3, 3, 3))


def random_images() -> Task:
    """The CIFAR task on noise; an epoch sees each training sample once."""
    generator = torch.Generator().manual_seed(0)
    splits = {
        name: Split(
            torch.randn(count, SIDE, SIDE, CHANNELS, generator=generator),
            torch.randint(NUM_CLASSES, (count,), generator=generator),
        )
        for name, count in SAMPLES.items()
    }
    task = cifar_task("cifar_shape", HOST, splits)
    return replace(task, batch_size=BATCH_SIZE, batches_per_epoch=SAMPLES["train"] // BATCH_SIZE, augment=None)


@dataclass(frozen=True)
class CifarShape:
    """Seconds per env step in the shape of CIFAR-10."""

    json: Path | None = None
    """Report to write; the table is always printed."""
    hosts: int = 4
    """Hosts in the env."""
    epochs: int = 10
    """Steps of an episode."""
    repeats: int = 7
    """Episodes, each with its own seed."""
    threads: int = 2
    """Torch threads in all."""

    def run(self, console: Console) -> None:
        """Play, print, write."""
        settle()
        env = MorphogenesisVectorEnv(self.hosts, task=random_images(), max_epochs=self.epochs, num_threads=self.threads)
        self._episode(env, seed=0)  # warm-up
        episodes = [self._episode(env, seed) for seed in range(1, self.repeats + 1)]
        means = [statistics.mean(episode) for episode in episodes]
        steps = [seconds for episode in episodes for seconds in episode]
        rows: list[tuple[str, ...]] = [
            (label, f"{seconds:.3f}", f"{seconds / self.hosts:.3f}")
            for label, seconds in (
                ("mean of an episode's steps, median of the episodes", statistics.median(means)),
                ("the same, fastest episode", min(means)),
                ("the same, slowest episode", max(means)),
                ("median step", statistics.median(steps)),
                ("slowest step", max(steps)),
            )
        ]
        report = Report(
            "cifar_shape",
            headline={"cifar_shape_seconds": round(statistics.median(means) / self.hosts, 3)},
            tables=[
                Table(
                    f"{self.hosts} hosts, {self.threads} threads",
                    ("", "seconds for all hosts", "seconds per env step"),
                    rows,
                )
            ],
            notes=[
                "A step trains and evaluates every host for one epoch and, where due, measures contributions. As in "
                f"all rates here, an env step is one host's epoch: a step of the vector env is {self.hosts} of them."
            ],
        )
        report.publish(console, self.json)

    def _episode(self, env: MorphogenesisVectorEnv, seed: int) -> list[float]:
        """Wall seconds of each step of one episode; choosing the actions is not counted."""
        player = Player(RandomValid(env.task.slots), env.num_envs, seed)
        observations, _ = env.reset(seed=seed)
        seconds = []
        for _ in range(self.epochs):
            actions = player.act(observations)
            started = time.perf_counter()
            observations, *_ = env.step(actions)
            seconds.append(time.perf_counter() - started)
        return seconds


if __name__ == "__main__":
    tyro.cli(CifarShape).run(Console())
