"""Products of few rows with weights, without gradients: what a policy computes that reads a single host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from envs.batched.kernels.operators import compiled

MOST_ROWS = 64
"""Of a product. With more, torch's own is as fast: it copies the weights into an order of its own before it begins."""


def products(x: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Each ``x @ weight`` as a table of rows, one table after the other.

    Args:
        x: Rows ``[n, inputs]``, n and inputs of each its own.
        weights: Of each ``[inputs, stack, width]``.

    Returns:
        ``[sum of n * stack, width]``, node by node.
    """
    width = weights[0].shape[2]
    flat = [weight.flatten(1) for weight in weights]
    if _few(x, weights):
        table: Tensor = torch.ops.esper.products(x, flat, width)
        return table
    return torch.cat([(rows @ weight).view(-1, width) for rows, weight in zip(x, flat, strict=True)])


def _few(x: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether the kernel takes these."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*x, *weights)):
        return False
    return max(map(len, x)) <= MOST_ROWS and compiled(x[0]) and compiled(weights[0])
