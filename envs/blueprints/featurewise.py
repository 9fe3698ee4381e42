"""Seeds for members-first hosts that look at one token, or one sample, at a time."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from envs.batched.dense_layers import dense, layer_norm
from envs.batched.parameters import Init, ParameterSpec, ParameterSpecs, matrix_flops
from envs.blueprints.channelwise import NormBlend


class LayerNormBlend(NormBlend):
    """``s·(LN(x) − x)`` with a scalar s that starts at 0: moves the host towards normalised features."""

    def _normalised(self, u: Tensor, weight: Tensor, bias: Tensor, present: Tensor | None) -> Tensor:
        return layer_norm(u, weight, bias)


class LowRank:
    """``up₀(down x)``: a linear change of low rank (LoRA, Hu et al. 2021).

    Serves LORA (rank 8) and LORA_LARGE (rank 32).
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def parameters(self, width: int) -> ParameterSpecs:
        """See :class:`SeedModule`."""
        return {
            "down": ParameterSpec((self.rank, width), Init.UNIFORM),
            "up": ParameterSpec((width, self.rank), Init.ZEROS),
        }

    def flops(self, width: int, places: int, level: int | None = None) -> int:
        """See :class:`SeedModule`."""
        return matrix_flops(self.parameters(width), places, level)

    def delta(self, parameters: dict[str, Tensor], u: Tensor, present: Tensor | None) -> Tensor:
        """See :class:`SeedModule`."""
        return dense(dense(u, parameters["down"]), parameters["up"])


class Mlp:
    """``fc2₀(gelu(fc1 x))`` with a hidden layer that is ``expansion`` times as wide.

    Serves MLP_SMALL (twice) and MLP (four times).
    """

    def __init__(self, expansion: int) -> None:
        self.expansion = expansion

    def parameters(self, width: int) -> ParameterSpecs:
        """See :class:`SeedModule`."""
        hidden = self.expansion * width
        return {
            "fc1_weight": ParameterSpec((hidden, width), Init.HE),
            "fc1_bias": ParameterSpec((hidden,), Init.ZEROS),
            "fc2_weight": ParameterSpec((width, hidden), Init.ZEROS),
            "fc2_bias": ParameterSpec((width,), Init.ZEROS),
        }

    def flops(self, width: int, places: int, level: int | None = None) -> int:
        """See :class:`SeedModule`."""
        return matrix_flops(self.parameters(width), places, level)

    def delta(self, parameters: dict[str, Tensor], u: Tensor, present: Tensor | None) -> Tensor:
        """See :class:`SeedModule`."""
        p = parameters
        return dense(F.gelu(dense(u, p["fc1_weight"], p["fc1_bias"])), p["fc2_weight"], p["fc2_bias"])
