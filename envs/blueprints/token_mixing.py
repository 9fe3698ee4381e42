"""Seeds that let the tokens of a sequence see each other, each only itself and those before it."""

from __future__ import annotations

import math

from torch import Tensor

from envs.batched.dense_layers import attention_flops, dense, normalised, self_attention
from envs.batched.parameters import Init, ParameterSpec, ParameterSpecs, matrix_flops

MAX_HEADS = 4
WINDOW = 8


class CausalAttention:
    """Causal multi-head attention over the normalised input, output projection 0.

    Serves ATTENTION (no window) and FLEX_ATTENTION (a sliding window). The input is normalised, without parameters,
    as in the pre-norm layers of the host: the attention would otherwise depend on the residual stream's size, and
    start almost uniform where that is small.

    Args:
        window: Tokens that a token sees, itself included; None for all before it.
    """

    def __init__(self, window: int | None = None) -> None:
        self.window = window

    def parameters(self, width: int) -> ParameterSpecs:
        """See :class:`SeedModule`."""
        return {
            "qkv": ParameterSpec((3 * width, width), Init.UNIFORM),
            "out_weight": ParameterSpec((width, width), Init.ZEROS),
            "out_bias": ParameterSpec((width,), Init.ZEROS),
        }

    def flops(self, width: int, places: int, level: int | None = None) -> int:
        """See :class:`SeedModule`."""
        return matrix_flops(self.parameters(width), places, level) + attention_flops(places, width)

    def delta(self, parameters: dict[str, Tensor], u: Tensor, present: Tensor | None) -> Tensor:
        """See :class:`SeedModule`."""
        p = parameters
        mixed = self_attention(normalised(u), p["qkv"], math.gcd(u.shape[-1], MAX_HEADS), self.window)
        return dense(mixed, p["out_weight"], p["out_bias"])
