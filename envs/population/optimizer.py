"""SGD over members: each host, and each seed, is clipped and moved as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from envs.population.bank import SeedBank
from envs.population.blending import SlotSeeds

MOMENTUM = 0.9
CLIP_NORM = 1.0
VANISHING_NORM = 1e-7
EXPLODING_NORM = 10 * CLIP_NORM


def sgd_step(flat: Tensor, gradient: Tensor, momentum: Tensor, lr: Tensor) -> None:
    """One step of SGD with momentum on every row, in place.

    Args:
        flat: Parameters ``[M, P]``.
        gradient: ``[M, P]``; a row longer than ``CLIP_NORM`` is shortened to it.
        momentum: ``[M, P]``.
        lr: Learning rate per row, ``[M, 1]``.
    """
    _move(flat, gradient, momentum, _shortening(torch.linalg.vector_norm(gradient, dim=1, keepdim=True)), lr)


def _shortening(norm: Tensor) -> Tensor:
    """Factor that clips a gradient of this norm."""
    return CLIP_NORM / norm.clamp(min=CLIP_NORM)


def _move(flat: Tensor, gradient: Tensor, momentum: Tensor, factor: Tensor, lr: Tensor) -> None:
    momentum.mul_(MOMENTUM).addcmul_(gradient, factor)
    flat.addcmul_(momentum, lr, value=-1.0)


@dataclass(frozen=True)
class GradientHealth:
    """Statistics of the gradients of m seeds over an epoch, each ``[m]``.

    Attributes:
        norm: Root mean square, over the batches, of the unclipped gradient's norm.
        vanishing: Share of the seed's tensors whose gradient norm is below 1e-7.
        exploding: Share whose norm is above ten times the clip or not finite.
        health: ``max(0, 1 − 0.5·vanishing − 0.8·exploding)``.
    """

    norm: Tensor
    vanishing: Tensor
    exploding: Tensor
    health: Tensor


class SummableLayout(Protocol):
    """Where the parameters of m seeds lie in a flat gradient."""

    def squared_norms(self, squares: Tensor) -> Tensor:
        """Sum of the gradient's ``squares`` within each parameter: ``[m, num_parameters]``."""
        ...


class GradientMeter:
    """Collects squared gradients over an epoch's batches."""

    def __init__(self, layout: SummableLayout) -> None:
        self._layout = layout
        self._squares: Tensor | None = None
        self._batches = 0

    def add(self, gradient: Tensor) -> Tensor:
        """Take in one batch's unclipped gradient; returns its squared norms, ``[m, num_parameters]``."""
        squares = self._layout.squared_norms(gradient.square())
        self._squares = squares if self._squares is None else self._squares + squares
        self._batches += 1
        return squares

    def read(self, in_use: Tensor) -> GradientHealth:
        """The epoch's statistics; empties the meter.

        Args:
            in_use: ``[m, num_parameters]`` tensors that count for each member.

        Raises:
            RuntimeError: nothing was collected.
        """
        if self._squares is None:
            raise RuntimeError("no gradient was collected in this epoch: nothing can be said about its health")
        norms = (self._squares / self._batches).sqrt()
        self._squares, self._batches = None, 0
        count = in_use.sum(1).clamp(min=1)
        vanishing = ((norms < VANISHING_NORM) & in_use).sum(1) / count
        exploding = (~(norms <= EXPLODING_NORM) & in_use).sum(1) / count  # not >, so that NaN explodes
        health = (1.0 - 0.5 * vanishing - 0.8 * exploding).clamp(min=0.0)
        return GradientHealth((norms.square() * in_use).sum(1).sqrt(), vanishing, exploding, health)


@dataclass(frozen=True)
class _Segments:
    """One parameter of the seeds of one bank, which lie one after the other in the flat tensor.

    Attributes:
        bank: Index of the bank.
        name: Of the parameter.
        place: Index of the merged parameter.
        start: First row in it.
    """

    bank: int
    name: str
    place: int
    start: int


class SeedOptimizer:
    """Trains the seeds of all slots for one epoch, their parameters side by side in one flat tensor.

    A *segment* is one parameter of one seed. A seed's norm is taken over all its segments, wherever they lie.

    Args:
        slots: All seeds; their parameters are replaced by leaves that share the flat tensor's memory.
        banks: For each slot the banks that its runs come from.
        lr: Learning rate of each member, ``[N, 1]``.

    Attributes:
        leaves: What to differentiate by.
        members: ``[R]`` member of each seed.
        slots: ``[R]`` its slot.
    """

    def __init__(self, slots: Sequence[SlotSeeds], banks: Sequence[Sequence[SeedBank]], lr: Tensor) -> None:
        device = lr.device
        self._banks = [bank for of_slot in banks for bank in of_slot]
        self._segments = _segments(slots)
        counts = [len(bank.rows.members) for bank in self._banks]
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self.members = np.concatenate([bank.rows.members for bank in self._banks])
        self.slots = np.repeat([bank.slot for bank in self._banks], counts)
        values = [value for slot in slots for value in slot.parameters]
        momentum = [
            value
            for slot, of_slot in zip(slots, banks, strict=True)
            for value in slot.merge([bank.rows.momentum for bank in of_slot])
        ]
        self._flat, self._momentum = _flattened(values), _flattened(momentum)
        self._shapes, self._sizes = [value.shape for value in values], [value.numel() for value in values]
        self.leaves = [leaf.requires_grad_() for leaf in self._views(self._flat)]
        leaves = iter(self.leaves)
        for slot in slots:
            slot.run_with([next(leaves) for _ in slot.parameters])
        sizes = [self._banks[s.bank].layout.specs[s.name].size for s in self._segments]
        rows = [counts[s.bank] for s in self._segments]
        columns = [list(bank.layout.specs) for bank in self._banks]
        self._columns = max(len(names) for names in columns)
        owner = [self._first[s.bank] + np.arange(n) for s, n in zip(self._segments, rows, strict=True)]
        column = [columns[s.bank].index(s.name) for s in self._segments]
        self._owner = torch.from_numpy(np.concatenate(owner)).to(device)
        self._cells = self._owner * self._columns + torch.from_numpy(np.repeat(column, rows)).to(device)
        self._lengths = torch.from_numpy(np.repeat(sizes, rows)).to(device)
        self._lr = self._spread(lr[torch.from_numpy(self.members).to(device), 0])
        self._switched_on = self._mask(slots, banks)
        self._meter = GradientMeter(self)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step of SGD with momentum for every seed; ``gradients`` are those of the leaves."""
        gradient = _flattened(gradients)
        squares = self._meter.add(gradient)
        if self._switched_on is not None:
            gradient = torch.where(self._switched_on, gradient, 0.0)
            squares = self.squared_norms(gradient.square())
        factor = _shortening(squares.sum(1).sqrt())
        _move(self._flat, gradient, self._momentum, self._spread(factor), self._lr)

    def squared_norms(self, squares: Tensor) -> Tensor:
        """See :class:`SummableLayout`; 0 where a seed has fewer parameters than others."""
        per_segment = torch.segment_reduce(squares, "sum", lengths=self._lengths, unsafe=True)
        table = squares.new_zeros(len(self.members) * self._columns)
        return table.index_copy_(0, self._cells, per_segment).view(-1, self._columns)

    def store(self) -> None:
        """Write parameters and momentum back to the banks."""
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for flat, rows in (
            (self._flat, [bank.rows.flat for bank in self._banks]),
            (self._momentum, [bank.rows.momentum for bank in self._banks]),
        ):
            merged = self._views(flat)
            views = [bank.layout.views(values) for bank, values in zip(self._banks, rows, strict=True)]
            for s in self._segments:
                target = views[s.bank][s.name]
                targets.append(target)
                sources.append(merged[s.place].narrow(0, s.start, len(target)))
        torch._foreach_copy_(targets, sources)

    def health(self) -> GradientHealth:
        """What the epoch's gradients were like; one entry per seed."""
        in_use = torch.zeros(len(self.members), self._columns, dtype=torch.bool, device=self._flat.device)
        for first, bank in zip(self._first, self._banks, strict=False):
            used = bank.parameters_in_use()
            in_use[first : first + len(used), : used.shape[1]] = used
        return self._meter.read(in_use)

    def _views(self, flat: Tensor) -> list[Tensor]:
        pieces = torch.split(flat, self._sizes)
        return [piece.detach().view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def _spread(self, per_seed: Tensor) -> Tensor:
        """A value per seed for each of its scalars."""
        return torch.repeat_interleave(per_seed[self._owner], self._lengths, output_size=len(self._flat))

    def _mask(self, slots: Sequence[SlotSeeds], banks: Sequence[Sequence[SeedBank]]) -> Tensor | None:
        """Which scalars may move; None where no internal level holds any back."""
        masks = [bank.switched_on() for bank in self._banks]
        if all(mask is None for mask in masks):
            return None
        rows = iter(
            torch.ones_like(bank.rows.flat, dtype=torch.bool) if mask is None else mask
            for bank, mask in zip(self._banks, masks, strict=True)
        )
        merged = [slot.merge([next(rows) for _ in of_slot]) for slot, of_slot in zip(slots, banks, strict=True)]
        return _flattened([value for of_slot in merged for value in of_slot])


def _segments(slots: Sequence[SlotSeeds]) -> list[_Segments]:
    segments: list[_Segments] = []
    place = first_bank = 0
    for slot in slots:
        for parts in slot.parts:
            start = 0
            for run, name in parts:
                segments.append(_Segments(first_bank + run, name, place, start))
                start += len(slot.runs[run].members)
            place += 1
        first_bank += len(slot.runs)
    return segments


def _flattened(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
