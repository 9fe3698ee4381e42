"""What is mixed into every update: recorded episodes, so that a few runs in the field do not make a policy forget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from esper_ray.errors import UserError
from esper_ray.learning.imitating import open_replay
from esper_ray.measuring.recording import RecordedWorld
from policies.strategic.builder import GraphBuilder
from policies.strategic.checkpoint import Checkpoint
from policies.strategic.heads import GraphPolicyResult
from policies.strategic.labels import Targets
from policies.strategic.lessons import Lessons, held_out_rows
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.replay_store import minibatches
from policies.strategic.student import GraphStudent

_REFUSED = torch.finfo(torch.float32).min / 2
"""Log-probabilities below are of choices that the mask refuses."""


class Greenhouse:
    """Recorded episodes as a policy reads them in use.

    Args:
        store: What ``esper-ray strategic collect`` recorded.
        network: Is taught.
        checkpoint: What it reads with.
        held_out: Share of the hosts that are left out.

    Raises:
        UserError: nothing is recorded there, or nothing that can be learnt from.

    Attributes:
        tasks: Of the episodes.
        risks: Classes of what followed each decision, int64 ``[n]``.
        has_ramps: Whether any ramp of an example was drawn.
        decisions: That can be learnt from.
    """

    def __init__(self, store: Path, network: GraphPolicyNetwork, checkpoint: Checkpoint, held_out: float) -> None:
        replay = open_replay(store)
        worlds = {world: RecordedWorld.read(world) for world in replay.worlds}
        readers = {world: of.reader() for world, of in worlds.items()}
        builder = GraphBuilder(checkpoint.registries, checkpoint.normaliser)
        self._lessons = Lessons(GraphStudent(network, builder, readers, checkpoint.seen), replay)
        try:
            self._rows = held_out_rows(replay, held_out, wanted=False)
        except ValueError as error:
            raise UserError(str(error)) from error
        targets = [self._lessons.targets[world].at(rows) for world, rows in self._rows.items()]
        self.tasks = tuple(sorted({of.task for of in worlds.values()}))
        self.risks = torch.cat([of.risk for of in targets])
        self.has_ramps = any(bool(of.ramp_drawn.any()) for of in targets)
        self.decisions = len(self.risks)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """Batches without end: world, and rows of it, for :meth:`read`.

        Args:
            size: Decisions of a batch, at most.
            generator: Draws the order.
        """
        while True:
            yield from minibatches(self._rows, size, generator)

    def read(self, world: str, rows: Tensor) -> tuple[GraphPolicyResult, Targets]:
        """What the network says of some decisions, and what they teach.

        What it may never do, as its first training never showed it, is no example to it.
        """
        result, targets = self._lessons.read(world, rows)
        refused = (result.distribution.log_prob(targets.actions) < _REFUSED).any(dim=-1)
        waiting = torch.zeros_like(targets.actions)
        actions = torch.where(refused.unsqueeze(-1), waiting, targets.actions)
        return result, replace(targets, actions=actions, exemplary=targets.exemplary & ~refused)
