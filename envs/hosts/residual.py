"""The residual MLP block that the transformer and the MLP host share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from envs.batched.dense_layers import dense, layer_norm
from envs.batched.parameters import Init, ParameterSpec, ParameterSpecs
from envs.hosts.base import Observe
from envs.hosts.structure import HostLayer


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


def norm_layer(name: str, segment: int, reads: tuple[str, ...]) -> HostLayer:
    """A layer norm with :func:`norm_parameters`."""
    return HostLayer(name, "layernorm", (f"{name}_weight", f"{name}_bias"), segment, reads)


def dense_layer(name: str, segment: int, reads: tuple[str, ...], activation: str | None = None) -> HostLayer:
    """A linear layer with the parameters ``name_weight`` and ``name_bias``."""
    return HostLayer(name, "linear", (f"{name}_weight", f"{name}_bias"), segment, reads, activation)


def block_layers(name: str, segment: int, stream: tuple[str, ...]) -> tuple[HostLayer, ...]:
    """The layers of one block; the last of them adds to what ``stream`` added up before it."""
    norm, into, out = f"{name}_norm", f"{name}_in", f"{name}_out"
    return (
        norm_layer(norm, segment, stream),
        dense_layer(into, segment, (norm,), "gelu"),
        dense_layer(out, segment, (into,)),
    )


def feed_forward(p: dict[str, Tensor], name: str, h: Tensor, observe: Observe | None = None) -> Tensor:
    """What the block adds to ``h`` (``[M, ..., D]``): linear ∘ GELU ∘ linear ∘ layer norm."""
    z = layer_norm(h, p[f"{name}_norm_weight"], p[f"{name}_norm_bias"])
    z = dense(z, p[f"{name}_in_weight"], p[f"{name}_in_bias"])
    if observe is not None:
        observe(f"{name}_in", z)
    return dense(F.gelu(z), p[f"{name}_out_weight"], p[f"{name}_out_bias"])
