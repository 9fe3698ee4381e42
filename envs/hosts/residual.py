"""The residual MLP block that the transformer and the MLP host share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from envs.batched.dense_layers import dense, layer_norm
from envs.batched.parameters import Init, ParameterSpec, ParameterSpecs


def norm_parameters(name: str, width: int) -> ParameterSpecs:
    """Weight and bias of a layer norm."""
    return {
        f"{name}_weight": ParameterSpec((width,), Init.ONES),
        f"{name}_bias": ParameterSpec((width,), Init.ZEROS),
    }


def block_parameters(name: str, width: int, hidden: int) -> ParameterSpecs:
    """Parameters of one pre-norm block with ``hidden`` units."""
    return norm_parameters(f"{name}_norm", width) | {
        f"{name}_in_weight": ParameterSpec((hidden, width), Init.HE),
        f"{name}_in_bias": ParameterSpec((hidden,), Init.ZEROS),
        f"{name}_out_weight": ParameterSpec((width, hidden), Init.UNIFORM),
        f"{name}_out_bias": ParameterSpec((width,), Init.ZEROS),
    }


def feed_forward(p: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
    """What the block adds to ``h`` (``[M, ..., D]``): linear ∘ GELU ∘ linear ∘ layer norm."""
    z = layer_norm(h, p[f"{name}_norm_weight"], p[f"{name}_norm_bias"])
    z = F.gelu(dense(z, p[f"{name}_in_weight"], p[f"{name}_in_bias"]))
    return dense(z, p[f"{name}_out_weight"], p[f"{name}_out_bias"])
