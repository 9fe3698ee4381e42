"""SGD over rows of members: each row is clipped and moved as if it were alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.population.parameters import ParameterLayout

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

    def __init__(self, layout: ParameterLayout) -> None:
        self._layout = layout
        self._squares: Tensor | None = None
        self._batches = 0

    def add(self, gradient: Tensor) -> None:
        """Take in one batch's unclipped gradient ``[m, P]``."""
        if self._squares is None:
            self._squares = gradient.square()
        else:
            self._squares.addcmul_(gradient, gradient)
        self._batches += 1

    def read(self, in_use: Tensor) -> GradientHealth:
        """The epoch's statistics; empties the meter.

        Args:
            in_use: ``[m, num_parameters]`` tensors that count for each member.

        Raises:
            RuntimeError: nothing was collected.
        """
        if self._squares is None:
            raise RuntimeError("no gradient was collected in this epoch: nothing can be said about its health")
        norms = (self._layout.squared_norms(self._squares) / self._batches).sqrt()
        self._squares, self._batches = None, 0
        count = in_use.sum(1).clamp(min=1)
        vanishing = ((norms < VANISHING_NORM) & in_use).sum(1) / count
        exploding = (~(norms <= EXPLODING_NORM) & in_use).sum(1) / count  # not <=, so that NaN explodes
        health = (1.0 - 0.5 * vanishing - 0.8 * exploding).clamp(min=0.0)
        return GradientHealth((norms.square() * in_use).sum(1).sqrt(), vanishing, exploding, health)
