"""What a policy says of steps on record, beside what is on record of them.

Shapes: ``B`` is the number of steps that are read at a time.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from policies.strategic.agreement import Agreement
from policies.strategic.heads import GraphPolicyResult
from policies.strategic.labels import Targets, observations_in
from policies.strategic.replay_store import Replay, held_out


class Student(Protocol):
    """Who is taught, or examined: a network, and how it reads what was recorded."""

    @property
    def network(self) -> nn.Module:
        """Has the weights."""
        ...

    def read(self, world: str, observations: Mapping[str, Tensor], imitating: bool = False) -> GraphPolicyResult:
        """What the network says of B steps.

        Args:
            world: Of the steps, as it stands in the store.
            observations: Leaves ``[B, ...]``, on the network's device.
            imitating: Whether to drop numbers at random.
        """
        ...


class Lessons:
    """A student with a record.

    Args:
        student: Who is taught.
        replay: The record.

    Attributes:
        targets: World → what its steps teach.
    """

    def __init__(self, student: Student, replay: Replay) -> None:
        self._student, self._replay = student, replay
        self._device = next(student.network.parameters()).device
        self.targets = {name: Targets.of(world) for name, world in replay.worlds.items()}

    def read(self, world: str, rows: Tensor, imitating: bool = False) -> tuple[GraphPolicyResult, Targets]:
        """What the student says of some steps of a world, int64 ``[B]``, and what they teach."""
        observations = observations_in(self._replay.worlds[world].take(rows))
        moved = {name: leaf.to(self._device) for name, leaf in observations.items()}
        return self._student.read(world, moved, imitating), self.targets[world].at(rows).to(self._device)


def rows_by_side(replay: Replay, share: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """World → rows to learn from, and world → rows of held-out hosts; worlds without any are left out.

    Args:
        replay: What is on record.
        share: Of the hosts that are held out.

    Raises:
        ValueError: there are none on one side.
    """
    learnt: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    for name, world in replay.worlds.items():
        apart = [held_out(host, share) for host in world.hosts]
        for side, wanted in ((learnt, False), (kept, True)):
            rows = world.rows_of([episode for episode, out in enumerate(apart) if out == wanted])
            if len(rows):
                side[name] = rows
    if not learnt or not kept:
        episodes = sum(len(world.hosts) for world in replay.worlds.values())
        raise ValueError(
            f"of {episodes} recorded episodes {'none' if learnt else 'all'} are of held-out hosts: collect more"
        )
    return learnt, kept


def measure(lessons: Lessons, rows: Mapping[str, Tensor], return_scale: float, batch_size: int) -> Agreement:
    """How far a policy agrees with what is on record.

    Args:
        lessons: The policy and the record.
        rows: World → rows; at least one in all.
        return_scale: Reward units per unit of the policy's values.
        batch_size: Steps that are read at a time.
    """
    with torch.no_grad():
        parts = [
            Agreement.of(*lessons.read(world, batch), return_scale)
            for world, of in rows.items()
            for batch in of.split(batch_size)
        ]
    return functools.reduce(operator.add, parts)
