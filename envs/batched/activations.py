"""How the activations of a topology lie in memory: where the members ride, and what belongs to one sample.

| topology | axes | why |
|---|---|---|
| images | ``[B, H, W, M, C]`` | channels_last with the members in the channel axis: one grouped convolution for all |
| sequences | ``[M, B, L, D]`` | members first: every linear of all members is one batched matrix product |
| vectors | ``[M, B, D]`` | likewise |

Features are the last axis everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ActivationLayout:
    """What blending has to know of a topology's activations.

    Attributes:
        num_axes: Axes of an activation.
        member_axis: Where the members are.
        pooled_axes: Axes that a seed's size and gate are taken over as one. Space belongs to one sample; time does
            not, since a token must not see the future: a sequence is limited and gated token by token.
    """

    num_axes: int
    member_axis: int
    pooled_axes: tuple[int, ...] = ()

    def per_member(self, values: Tensor) -> Tensor:
        """``[m]``, or ``[m, C]`` with features, in the shape that broadcasts against an activation."""
        between = self.num_axes - 2 - self.member_axis
        features = values.shape[1:] if values.dim() == 2 else (1,)
        return values.reshape(len(values), *[1] * between, *features)

    def inner(self, x: Tensor, y: Tensor) -> Tensor:
        """Inner product over what belongs together, with the summed axes kept at size 1."""
        return (x * y).sum((*self.pooled_axes, self.num_axes - 1), keepdim=True)

    def norm_squared(self, x: Tensor) -> Tensor:
        """Inner product with itself."""
        return self.inner(x, x)

    def pooled(self, x: Tensor) -> Tensor:
        """Mean over the pooled axes, kept at size 1."""
        return x.mean(self.pooled_axes, keepdim=True) if self.pooled_axes else x

    def batch(self, samples: Tensor) -> Tensor:
        """One mini-batch per member, ``[M, B, ...]``, with the members moved to their axis."""
        return samples.movedim(0, self.member_axis).contiguous()


IMAGES = ActivationLayout(num_axes=5, member_axis=3, pooled_axes=(1, 2))
SEQUENCES = ActivationLayout(num_axes=4, member_axis=0)
VECTORS = ActivationLayout(num_axes=3, member_axis=0)
