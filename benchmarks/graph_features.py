"""What it costs an env to measure its hosts as graphs: episodes with the graph and without, taken in turns.

Part of ``python -m benchmarks.strategic``. Both envs play the same episode, bit for bit, of random-valid actions.
"""

from __future__ import annotations

import functools
import statistics
import time

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.harness import Table, median_ratio, paired_seconds
from envs.graph.layout import GraphLayout
from envs.morphogenesis import MorphogenesisVectorEnv
from policies.player import Player
from policies.scripted import RandomValid
from policies.strategic.greenhouse import GreenhouseReader

CELLS = (("digits_mixed", 32), ("digits_mixed", 8), ("digits_scale", 32), ("tabular", 32), ("text", 32))
"""Tasks and hosts; the first cell is a runner's default, and the headline."""
EPOCHS, SEED = 20, 0


def feature_costs(rounds: int) -> tuple[float, Table]:
    """The headline's share of an epoch, and the table.

    Args:
        rounds: Pairs of episodes per cell.
    """
    rows, shares = [], []
    for task, hosts in CELLS:
        actions = _actions(task, hosts)
        candidates = {
            name: functools.partial(
                _play, MorphogenesisVectorEnv(hosts, task=task, max_epochs=EPOCHS, graph=graph), actions
            )
            for name, graph in (("without", False), ("with", True))
        }
        # Seconds of the processor: what the features cost does not depend on who else computes beside them.
        seconds = paired_seconds(candidates, rounds, clock=time.process_time)
        shares.append(median_ratio(seconds["with"], seconds["without"]) - 1.0)
        epoch = [f"{1e3 * statistics.median(seconds[name]) / EPOCHS:,.1f}" for name in candidates]
        rows.append((task, str(hosts), *epoch, f"{shares[-1]:.1%}"))
    header = ("task", "hosts", "ms an epoch without", "with", "share")
    return shares[0], Table("Measuring hosts as graphs, seconds of the processor", header, rows)


def one_host(task: str) -> tuple[GreenhouseReader, dict[str, torch.Tensor]]:
    """A host of a task after half an episode of random-valid actions: who reads it, and what is observed of it."""
    env = MorphogenesisVectorEnv(1, task=task, max_epochs=2 * EPOCHS, graph=True)
    observation, _ = env.reset(seed=SEED)
    for action in _actions(task, 1):
        observation, *_ = env.step(action)
    leaves = {name: torch.from_numpy(leaf) for name, leaf in observation.items()}
    return GreenhouseReader(GraphLayout.of(env.task)), leaves


def _actions(task: str, hosts: int) -> list[npt.NDArray[np.int64]]:
    """What a random-valid policy does in an episode."""
    env = MorphogenesisVectorEnv(hosts, task=task, max_epochs=EPOCHS)
    player = Player(RandomValid(env.task.slots), hosts, seed=SEED)
    observation, _ = env.reset(seed=SEED)
    actions = []
    for _ in range(EPOCHS):
        actions.append(player.act(observation))
        observation, *_ = env.step(actions[-1])
    return actions


def _play(env: MorphogenesisVectorEnv, actions: list[npt.NDArray[np.int64]]) -> None:
    env.reset(seed=SEED)
    for action in actions:
        env.step(action)
