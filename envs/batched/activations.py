"""How the activations of a topology lie in memory: the members first, so that everything of one member lies together.

| topology | axes |
|---|---|
| images | ``[M, B, H, W, C]`` |
| sequences | ``[M, B, L, D]`` |
| vectors | ``[M, B, D]`` |

Features are the last axis everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ActivationLayout:
    """What blending has to know of a topology's activations.

    Attributes:
        num_axes: Axes of an activation.
        pooled_axes: Axes that a seed's size and gate are taken over as one. Space belongs to one sample; time does
            not, since a token must not see the future: a sequence is limited and gated token by token.
    """

    num_axes: int
    pooled_axes: tuple[int, ...] = ()

    def per_member(self, values: Tensor) -> Tensor:
        """``[m]``, or ``[m, C]`` with features, in the shape that broadcasts against an activation."""
        features = values.shape[1:] if values.dim() == 2 else (1,)
        return values.view(len(values), *[1] * (self.num_axes - 2), *features)

    def inner(self, x: Tensor, y: Tensor) -> Tensor:
        """Inner product over what belongs together, with the summed axes kept at size 1."""
        return (x * y).sum((*self.pooled_axes, self.num_axes - 1), keepdim=True)

    def norm_squared(self, x: Tensor) -> Tensor:
        """Inner product with itself."""
        return self.inner(x, x)

    def pooled(self, x: Tensor) -> Tensor:
        """Mean over the pooled axes, kept at size 1."""
        return x.mean(self.pooled_axes, keepdim=True) if self.pooled_axes else x

    def units(self, x: Tensor) -> Tensor:
        """``[M, U, P, C]``: what belongs together as one unit of P places."""
        features = x.shape[-1]
        if self.pooled_axes:
            return x.reshape(*x.shape[:2], -1, features)
        return x.reshape(len(x), -1, 1, features)


IMAGES = ActivationLayout(num_axes=5, pooled_axes=(2, 3))
SEQUENCES = ActivationLayout(num_axes=4)
VECTORS = ActivationLayout(num_axes=3)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Some members' tensors and others' after each other; a single one as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
