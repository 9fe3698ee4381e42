"""SGD over members: each host, and each seed, is clipped and moved as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from envs.batched.kernels.operators import compiled
from envs.batched.parameters import ParameterLayout, packed, unpacked

MOMENTUM = 0.9
CLIP_NORM = 1.0
VANISHING_NORM = 1e-7
EXPLODING_NORM = 10 * CLIP_NORM


def sgd_step(flat: Tensor, gradient: Tensor, momentum: Tensor, lr: Tensor, norm: Tensor | None = None) -> None:
    """One step of SGD with momentum on every row, in place.

    Args:
        flat: Parameters ``[M, P]``.
        gradient: ``[M, P]``; a row longer than ``CLIP_NORM`` is shortened to it.
        momentum: ``[M, P]``.
        lr: Learning rate per row, ``[M, 1]``.
        norm: Of each row's gradient, ``[M, 1]``; by default it is computed. With it and ``lr`` given for each scalar,
            rows may lie in one flat ``[P]``.
    """
    if norm is None:
        norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    momentum.mul_(MOMENTUM).addcmul_(gradient, CLIP_NORM / norm.clamp(min=CLIP_NORM))
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


class GradientMeter:
    """Collects squared gradients over an epoch's batches."""

    def __init__(self) -> None:
        self._squares: Tensor | None = None
        self._batches: Tensor | None = None  # a tensor, so that a recorded step counts too

    def add(self, squares: Tensor) -> None:
        """Take in one batch's squared norms of the unclipped gradient, ``[m, num_parameters]``."""
        self.collector(squares).add_(squares)

    def collector(self, like: Tensor) -> Tensor:
        """The sums so far, ``[m, num_parameters]``, to which one more batch's squared norms are to be added.

        Args:
            like: A tensor of that shape, on the device at hand.
        """
        if self._squares is None or self._batches is None:
            self._squares, self._batches = torch.zeros_like(like), like.new_zeros(())
        self._batches += 1.0
        return self._squares

    def read(self, in_use: Tensor, first: int = 0) -> GradientHealth:
        """The epoch's statistics; empties the meter.

        Args:
            in_use: ``[m, num_parameters]`` tensors that count for each member.
            first: Row of the first of them.

        Raises:
            RuntimeError: nothing was collected.
        """
        if self._squares is None or self._batches is None:
            raise RuntimeError("no gradient was collected in this epoch: nothing can be said about its health")
        norms = (self._squares[first : first + len(in_use)] / self._batches).sqrt()
        self._squares = self._batches = None
        count = in_use.sum(1).clamp(min=1)
        vanishing = ((norms < VANISHING_NORM) & in_use).sum(1) / count
        exploding = (~(norms <= EXPLODING_NORM) & in_use).sum(1) / count  # not >, so that NaN explodes
        health = (1.0 - 0.5 * vanishing - 0.8 * exploding).clamp(min=0.0)
        return GradientHealth((norms.square() * in_use).sum(1).sqrt(), vanishing, exploding, health)


@dataclass(frozen=True)
class TrainedRows:
    """Parameters of some rows (hosts, or one blueprint's seeds in one slot) that an epoch trains.

    Attributes:
        layout: Names of the flat parameters.
        flat: ``[rows, P]``, replaced in place at the end of the epoch.
        momentum: ``[rows, P]``, likewise.
        lr: ``[rows]`` learning rates.
        held: ``[rows, P]`` bool, scalars that must not move; None where all may.
    """

    layout: ParameterLayout
    flat: Tensor
    momentum: Tensor
    lr: Tensor
    held: Tensor | None


Part = tuple[int, str]
"""A group of rows, and the name of one of its parameters."""


class EpochOptimizer:
    """Trains hosts and the seeds of all slots for one epoch, their parameters side by side in one flat tensor.

    A *segment* is one parameter of one row, a *leaf* is what one call of a forward computes with: one parameter of one
    group, or of several. A row's norm is taken over all its segments, wherever they lie.

    Args:
        groups: Whose rows are trained.
        leaves: The parts of each leaf, in order.

    Attributes:
        leaves: What to compute with and differentiate by, ``[rows, *shape]``.
        squares: Squared norms of each parameter's gradients, summed over the steps so far, ``[rows, most parameters]``;
            before clipping, and what must not move counts for nothing.
        squared_norms: The same of whole rows in the last step, ``[rows]``.
    """

    def __init__(self, groups: Sequence[TrainedRows], leaves: Sequence[Sequence[Part]]) -> None:
        self._groups, self._parts = groups, leaves
        counts = [len(group.flat) for group in groups]
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._flat = self._gathered([group.flat for group in groups])
        self._momentum = self._gathered([group.momentum for group in groups])
        self._sizes = [sum(len(groups[g].flat) * groups[g].layout.specs[n].size for g, n in parts) for parts in leaves]
        self.leaves = [leaf.requires_grad_() for leaf in self._views(self._flat)]
        columns = [list(group.layout.specs) for group in groups]
        self._columns = max(len(names) for names in columns)
        segments = [part for parts in leaves for part in parts]
        owner = np.concatenate([self._first[g] + np.arange(counts[g]) for g, _ in segments])
        column = np.repeat([columns[g].index(name) for g, name in segments], [counts[g] for g, _ in segments])
        sizes = np.repeat([groups[g].layout.specs[name].size for g, name in segments], [counts[g] for g, _ in segments])
        device = self._flat.device
        self._owner = torch.from_numpy(owner).to(device)
        self._cells = torch.from_numpy(owner * self._columns + column).to(device)
        self._lengths = torch.from_numpy(sizes).to(device)
        self._lr = torch.cat([group.lr for group in groups])
        self._held = None
        if any(group.held is not None for group in groups):
            held = [torch.zeros_like(g.flat, dtype=torch.bool) if g.held is None else g.held for g in groups]
            self._held = self._gathered(held)
        self._meter = GradientMeter()
        self._table = self._flat.new_zeros(len(self._lr), self._columns)
        self.squares, self.squared_norms = torch.zeros_like(self._table), torch.zeros_like(self._lr)
        if not compiled(self._flat):
            self._row_of = torch.repeat_interleave(self._owner, self._lengths, output_size=len(self._flat))
            self._lr_of = self._lr[self._row_of]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step of SGD with momentum for every row; ``gradients`` are those of the leaves."""
        lying = [packed(gradient).contiguous() for gradient in gradients]
        if compiled(self._flat):
            torch.ops.esper.sgd_step(
                *(self._flat, self._momentum, self._meter.collector(self._table), self.squares, self.squared_norms),
                *(lying, self._lengths, self._owner, self._cells, self._held, self._lr, CLIP_NORM, MOMENTUM),
            )
            return
        gradient = _flattened(lying)
        squares = self._squared_norms(gradient.square())
        self._meter.add(squares)  # what is held as well: it may be broken
        if self._held is not None:
            gradient = gradient.masked_fill(self._held, 0.0)
            squares = self._squared_norms(gradient.square())
        self.squares += squares
        torch.sum(squares, 1, out=self.squared_norms)
        norm = self.squared_norms.sqrt().index_select(0, self._row_of)
        sgd_step(self._flat, gradient, self._momentum, self._lr_of, norm)

    def _squared_norms(self, squares: Tensor) -> Tensor:
        """Sum of ``squares`` within each parameter, ``[rows, columns]``; 0 where a row has fewer than others."""
        per_segment = torch.segment_reduce(squares, "sum", lengths=self._lengths, unsafe=True)
        return torch.zeros_like(self._table).flatten().index_copy_(0, self._cells, per_segment).view_as(self._table)

    def store(self) -> None:
        """Write parameters and momentum back to the groups."""
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for flat, rows in (
            (self._flat, [group.flat for group in self._groups]),
            (self._momentum, [group.momentum for group in self._groups]),
        ):
            views = [group.layout.views(values) for group, values in zip(self._groups, rows, strict=True)]
            for leaf, parts in zip(self._views(flat), self._parts, strict=True):
                of_parts = [views[group][name] for group, name in parts]
                targets += of_parts
                sources += leaf.split([len(values) for values in of_parts])
        torch._foreach_copy_(targets, sources)

    def health(self, in_use: Tensor, first: int) -> GradientHealth:
        """What the epoch's gradients were like, one entry per row from the group ``first`` on.

        Args:
            in_use: ``[rows, most parameters of a row]`` tensors that count.
            first: Index of the first group that is asked for.
        """
        return self._meter.read(in_use, int(self._first[first]))

    def _gathered(self, rows: Sequence[Tensor]) -> Tensor:
        """One flat tensor, leaf by leaf, of each group's ``[rows, P]``."""
        views = [group.layout.views(values) for group, values in zip(self._groups, rows, strict=True)]
        return _flattened([packed(views[group][name]) for parts in self._parts for group, name in parts])

    def _views(self, flat: Tensor) -> list[Tensor]:
        shapes = [self._groups[parts[0][0]].layout.specs[parts[0][1]].shape for parts in self._parts]
        pieces = torch.split(flat, self._sizes)
        return [_leaf(piece.detach(), shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _leaf(piece: Tensor, shape: tuple[int, ...]) -> Tensor:
    if len(shape) == 4:
        outputs, inputs, *kernel = shape
        return unpacked(piece.view(-1, *kernel, inputs, outputs))
    return piece.view(-1, *shape)


def _flattened(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
