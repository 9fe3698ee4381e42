"""Hosts in inference mode, where those that begin alike are computed as one up to the slot in which they part.

A host whose seeds are measured is evaluated several times, each time with other seeds on. Before a slot, what was asked
for differs in the alphas of the slots before it alone: each distinct beginning is a *prefix*, and is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from envs.hosts.base import Host, Observe
from envs.population.blending import SlotSeeds, grow

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


EVALUATION_CELLS = 1 << 13
"""Predictions (samples, or tokens, × hosts) in one evaluation call on a CPU.

Enough to outweigh what a call costs, few enough to stay in cache.
"""

GPU_EVALUATION_CELLS = 1 << 16
"""The same on a GPU, which has to be filled: of 32×32 images a few gigabytes."""

SMALLEST_CHUNK = 16
"""Predictions of one host in an evaluation call, however many hosts there are: a convolution sums several at once."""


@dataclass(frozen=True)
class Prefixes:
    """The distinct beginnings up to and including a slot, sorted by host; R of them.

    Attributes:
        members: ``[R]`` host of each.
        alpha: ``[R]`` amplitude in that slot; 0 before the first slot.
        parents: ``[R]`` which of the prefixes one slot shorter each continues, in ascending order.
    """

    members: IntArray
    alpha: FloatArray
    parents: IntArray


def share_prefixes(members: IntArray, alpha: FloatArray) -> tuple[list[Prefixes], IntArray]:
    """What has to be computed for some members with given alphas.

    Args:
        members: ``[J]`` which hosts; one may occur several times.
        alpha: ``[J, S]`` blend amplitudes.

    Returns:
        The prefixes before the first slot and after each, S + 1 in all, and for each row that was asked for its place
        in the last of them, ``[J]``.
    """
    _, rows, place = np.unique(members, return_index=True, return_inverse=True)
    levels = [Prefixes(members[rows], np.zeros(len(rows)), np.arange(len(rows)))]
    for of_slot in alpha.T:
        parents = place
        if len(rows) < len(members):  # else nothing is shared any more
            values, rank = np.unique(of_slot, return_inverse=True)
            _, rows, place = np.unique(place * len(values) + rank, return_index=True, return_inverse=True)
        levels.append(Prefixes(members[rows], of_slot[rows], parents[rows]))
    return levels, place


class _Gathered(dict[str, Tensor]):
    """Some members' rows of named tensors ``[N, ...]``, each gathered when it is first asked for.

    A segment reads its own parameters only, so that of no level more is gathered than its segment needs.
    """

    def __init__(self, whole: dict[str, Tensor], index: Tensor) -> None:
        super().__init__()
        self._whole, self._index = whole, index

    def __missing__(self, name: str) -> Tensor:
        self[name] = self._whole[name].index_select(0, self._index)
        return self[name]


class SharedForward:
    """The forward of hosts, in batch norm's inference mode, that computes each prefix once.

    Where no two prefixes continue the same one nothing is copied; a whole population's parameters are read in place.

    Args:
        host: Of the population.
        parameters: Name → ``[N, *shape]``.
        buffers: Likewise.
        levels: As :func:`share_prefixes` gives them.
        seeds: Of each slot that has any; their places are those of the slot's prefixes.
    """

    def __init__(
        self,
        host: Host[Any],
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        levels: list[Prefixes],
        seeds: dict[int, SlotSeeds],
    ) -> None:
        self._host, self._seeds = host, seeds
        self._state: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        self._parents: list[Tensor | None] = []
        num_members, device = next((len(rows), rows.device) for rows in parameters.values())
        computed = np.arange(num_members)
        state = parameters, buffers
        for level in levels:
            # Sorted, each prefix having a child: as many children as prefixes are one child each, in the same order.
            grows = not np.array_equal(level.members, computed)
            if grows:
                index = torch.from_numpy(level.members).to(device)
                state = _Gathered(parameters, index), _Gathered(buffers, index)
            self._state.append(state)
            self._parents.append(torch.from_numpy(level.parents).to(device) if grows else None)
            computed = level.members

    def __call__(self, x: Tensor, observe: Observe | None = None) -> Tensor:
        """Logits of each of the last prefixes, see :meth:`envs.hosts.base.Host.head`; ``x`` is one batch for all."""
        activations = self._host.activations
        for slot in range(self._host.num_slots):
            x = self._host.segment(slot, *self._state[slot], x, training=False, observe=observe)
            if (parents := self._parents[slot + 1]) is not None:
                x = x.index_select(0, parents)
            if slot in self._seeds:
                x = grow(x, self._seeds[slot], activations)
        return self._host.head(self._state[-1][0], x)


def number_of_chunks(levels: list[Prefixes], y: Tensor) -> int:
    """In how many equal parts samples with labels ``y`` are evaluated; a call counts as the mean of its segments."""
    rows = sum(len(level.members) for level in levels[:-1]) // (len(levels) - 1)
    cells = EVALUATION_CELLS if y.device.type == "cpu" else GPU_EVALUATION_CELLS
    chunks = min(-(-y.numel() * rows // cells), y.numel() // SMALLEST_CHUNK, len(y))
    return max(1, chunks)


def loss_and_hits(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss ``[M]`` of each host, and its hits in each sample, ``[M, B]``: of an image at most one.

    Without a gradient to think of, the loss is not taken from ``log_softmax``, which is slow on few classes.

    Args:
        logits: ``[M, B, classes]``, of sequences ``[M, B, L, classes]``.
        y: ``[B]`` or ``[B, L]`` labels, the same for all hosts.
    """
    labels = y.expand(logits.shape[:-1])
    loss = logits.logsumexp(-1) - logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    hits = (logits.argmax(-1) == labels).float()
    return loss.flatten(1).mean(1), hits.flatten(2).sum(2) if hits.dim() > 2 else hits
