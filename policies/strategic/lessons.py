"""What a policy says of steps on record, beside what is on record of them.

Shapes: ``B`` is the number of steps that are read at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from policies.strategic.agreement import Agreement
from policies.strategic.heads import GraphPolicyResult
from policies.strategic.labels import Targets, observations_in
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.replay_store import Replay, held_out


class Student(Protocol):
    """Who is taught, or examined: a network, and how it reads what was recorded."""

    @property
    def network(self) -> GraphPolicyNetwork:
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


def held_out_rows(replay: Replay, share: float, wanted: bool = True) -> dict[str, Tensor]:
    """World → rows of held-out hosts, or of the others, int64 ``[n]``; worlds without any are left out.

    Args:
        replay: What is on record.
        share: Of the hosts that are held out.
        wanted: Whether those are wanted, and not the others.

    Raises:
        ValueError: no example is among them.
    """
    rows, examples = {}, 0
    for name, world in replay.worlds.items():
        chosen = [at for at, host in enumerate(world.hosts) if held_out(host, share) == wanted]
        examples += sum(world.exemplary[at] for at in chosen)
        if chosen:
            rows[name] = world.rows_of(chosen)
    if not examples:
        total = sum(sum(world.exemplary) for world in replay.worlds.values())
        lacking = "held out" if wanted else "left to learn from"
        raise ValueError(f"of the {total} recorded episodes that are examples none is {lacking}: collect more")
    return rows


def measure(lessons: Lessons, rows: Mapping[str, Tensor], return_scale: float, batch_size: int) -> Agreement:
    """How far a policy agrees with what is on record.

    Args:
        lessons: The policy and the record.
        rows: World → rows, int64 ``[n]``; at least one in all.
        return_scale: Reward units per unit of the policy's values.
        batch_size: Steps that are read at a time.
    """
    with torch.no_grad():
        return Agreement.sum(
            [
                Agreement.of(*lessons.read(world, batch), return_scale)
                for world, of in rows.items()
                for batch in of.split(batch_size)
            ]
        )
