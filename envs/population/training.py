"""One epoch of training: what its mini-batches share is made once, and each of them is the same function of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from envs.batched.augmentation import CropAndFlip
from envs.hosts.base import Host, forward
from envs.population.blending import SlotSeeds, grow
from envs.population.capture import Repeater
from envs.population.optimizer import EpochOptimizer
from envs.population.record import EpochRecord


@dataclass(frozen=True)
class TrainingData:
    """What an epoch's mini-batches are drawn from.

    Attributes:
        x: Training samples ``[n, ...]``.
        y: Labels ``[n, ...]``.
        order: ``[batches, M, B]`` sample indices.
        changes: ``[batches, M, B]`` codes of the augmentation.
        augment: What they mean; None where images stay as they are.
    """

    x: Tensor
    y: Tensor
    order: Tensor
    changes: Tensor
    augment: CropAndFlip | None


class TrainingEpoch:
    """Trains hosts and their seeds, mini-batch by mini-batch.

    A step reads and writes nothing but tensors that live through the epoch, and asks no tensor for a number: it can be
    recorded once and replayed.

    Args:
        host: The base network.
        names: Its parameters, in the order of the optimiser's first leaves.
        buffers: Its running statistics, updated in place.
        seeds: Slot → its seeds; they compute with the optimiser's other leaves.
        optimizer: Of hosts and seeds.
        data: Mini-batches.
        record: Is told of every step, if somebody asks.
    """

    def __init__(
        self,
        host: Host[Any],
        names: Sequence[str],
        buffers: dict[str, Tensor],
        seeds: dict[int, SlotSeeds],
        optimizer: EpochOptimizer,
        data: TrainingData,
        record: EpochRecord | None = None,
    ) -> None:
        self._host, self._buffers, self._seeds = host, buffers, seeds
        self._optimizer, self._data, self._record = optimizer, data, record
        self._parameters = dict(zip(names, optimizer.leaves, strict=False))
        rest = iter(optimizer.leaves[len(names) :])
        for of_slot in seeds.values():
            of_slot.run_with([next(rest) for _ in of_slot.parts])
        self._batch = torch.zeros(1, dtype=torch.int64, device=data.order.device)

    def run(self, repeater: Repeater) -> None:
        """Take all steps, and write what was learnt back to hosts and seeds."""
        repeater.repeat(self.step, len(self._data.order))
        self._optimizer.store()

    def step(self) -> None:
        """Train on the next mini-batch."""
        data = self._data
        index = data.order.index_select(0, self._batch).squeeze(0)
        x, y = self._samples(index), data.y[index]
        logits = forward(self._host, self._parameters, self._buffers, x, self._grow_slot, True)
        # Each member's own mean; added up, so that one backward gives each of them its own gradient.
        losses = F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(len(y), -1).mean(1)
        gradients = torch.autograd.grad(losses.sum(), self._optimizer.leaves)
        self._optimizer.step(gradients)
        if self._record is not None:
            self._record.add(losses.detach(), gradients[: len(self._parameters)], self._optimizer)
        self._batch += 1

    def _samples(self, index: Tensor) -> Tensor:
        data = self._data
        if data.augment is None:
            return data.x[index]
        return data.augment.gather(data.x, index, data.changes.index_select(0, self._batch).squeeze(0))

    def _grow_slot(self, slot: int, h: Tensor) -> Tensor:
        return grow(h, self._seeds[slot], self._host.activations) if slot in self._seeds else h
