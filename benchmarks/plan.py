"""How fast would training be on hardware that is not at hand? Measured pieces, put together by arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.harness import Table

HOSTS_TRAIN, ROLLOUTS_MOVE, POLICY_LEARNS, WEIGHTS_MOVE = (
    "hosts train",
    "rollouts to the driver",
    "update",
    "weights to the nodes",
)


@dataclass(frozen=True)
class Pieces:
    """What was measured, on one core each.

    Attributes:
        steps_per_second: Env steps of one runner.
        bytes_per_step: Of a rollout as it travels.
        unpack_seconds_per_step: Of the driver, to make episodes of those bytes.
        learner_seconds_per_step: Of an update, all of its passes.
        weight_bytes: That every node with a runner gets once per iteration.
    """

    steps_per_second: float
    bytes_per_step: float
    unpack_seconds_per_step: float
    learner_seconds_per_step: float
    weight_bytes: float


@dataclass(frozen=True)
class Machines:
    """What was not measured: a cluster of GPU nodes, a runner on every GPU, and the driver on a node beside them.

    Attributes:
        gpus: Of all nodes, each with one runner.
        gpus_per_node: They share the node's copy of the weights.
        gpu_factor: Speed of hosts on a GPU, against one core.
        learner_factor: Speed of an update, against one core.
        network_bytes_per_second: That the driver's node sends or receives.
    """

    gpus: int
    gpus_per_node: int = 8
    gpu_factor: float = 1.0
    learner_factor: float = 1.0
    network_bytes_per_second: float = 1.25e9


def iteration(pieces: Pieces, machines: Machines, hosts_per_runner: int, epochs: int) -> dict[str, float]:
    """Seconds of each part of one iteration of PPO, which come one after the other.

    Args:
        pieces: What was measured.
        machines: What is assumed.
        hosts_per_runner: Hosts on every GPU.
        epochs: Steps of an episode; a rollout is one of every host.
    """
    rollout = hosts_per_runner * epochs
    steps = machines.gpus * rollout
    nodes = -(-machines.gpus // machines.gpus_per_node)
    bandwidth = machines.network_bytes_per_second
    return {
        HOSTS_TRAIN: rollout / (machines.gpu_factor * pieces.steps_per_second),
        ROLLOUTS_MOVE: steps * (pieces.bytes_per_step / bandwidth + pieces.unpack_seconds_per_step),
        POLICY_LEARNS: steps * pieces.learner_seconds_per_step / machines.learner_factor,
        WEIGHTS_MOVE: nodes * pieces.weight_bytes / bandwidth,
    }


def table(
    pieces: Pieces,
    gpus: Sequence[int],
    factors: Mapping[str, tuple[float, float]],
    hosts_per_runner: int,
    epochs: int,
) -> Table:
    """One row per number of GPUs and assumption.

    Args:
        pieces: What was measured.
        gpus: Numbers of GPUs.
        factors: What is assumed in words → factors of hosts and of the update, against one core.
        hosts_per_runner: Hosts on every GPU.
        epochs: Steps of an episode.
    """
    rows = []
    for assumed, (gpu_factor, learner_factor) in factors.items():
        for number in gpus:
            machines = Machines(number, gpu_factor=gpu_factor, learner_factor=learner_factor)
            seconds = iteration(pieces, machines, hosts_per_runner, epochs)
            steps, largest = number * hosts_per_runner * epochs, max(seconds, key=seconds.__getitem__)
            parts = (f"{part:.2f}" for part in seconds.values())
            rates = (f"{steps / sum(seconds.values()):,.0f}", f"{steps / seconds[largest]:,.0f}")
            rows.append((assumed, str(number), *parts, *rates, largest))
    parts = (f"{part}, s" for part in (HOSTS_TRAIN, ROLLOUTS_MOVE, POLICY_LEARNS, WEIGHTS_MOVE))
    header = ("assumed", "GPUs", *parts, "env steps/s, one after the other", "all at once", "bound by")
    return Table(f"Planned, {hosts_per_runner} hosts on every GPU, episodes of {epochs} epochs", header, rows)
