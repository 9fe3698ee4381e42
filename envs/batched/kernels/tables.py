"""Flat tables of rows: what a graph network computes of the nodes of several types.

Without gradients and with few rows, which is how a policy reads a single host, kernels compute them: each a call in
place of several per type.

A table has a row for each node and each role that it plays, type by type, node by node.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.batched.kernels.operators import compiled

MOST_NODES = 64
"""Of a type. With more, torch's own products are as fast: they copy the weights into an order of their own first."""
EPSILON = 1e-5
"""Of the norm, as in ``nn.LayerNorm``."""


def products(nodes: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The products of each type's nodes with its weights.

    Args:
        nodes: By type ``[n, inputs]``.
        weights: By type ``[inputs, roles, width]``.

    Returns:
        A table ``[rows, width]``.
    """
    flat, width = [weight.flatten(1) for weight in weights], weights[0].shape[2]
    if _for_kernels(max(map(len, nodes)), nodes[0], weights):
        table: Tensor = torch.ops.esper.products(nodes, flat, width)
        return table
    return torch.cat([(rows @ weight).view(-1, width) for rows, weight in zip(nodes, flat, strict=True)])


def normed_sums(
    table: Tensor,
    counts: Tensor,
    bias: Sequence[Tensor],
    gain: Sequence[Tensor],
    shift: Sequence[Tensor],
    nodes: Sequence[int],
) -> Tensor:
    """Each node's rows with their role's bias, normed, scaled and shifted by their role, added up.

    Args:
        table: ``[rows, width]``.
        counts: 1 where a row counts, else 0: ``[rows, 1]``.
        bias: By type ``[roles, width]``.
        gain: Likewise.
        shift: Likewise.
        nodes: How many there are of each type.

    Returns:
        ``[nodes, width]``, type by type.
    """
    if _for_kernels(max(nodes), table, bias):
        sums: Tensor = torch.ops.esper.normed_sums(table, counts, bias, gain, shift, nodes, EPSILON)
        return sums
    sizes, parts = [count * len(roles) for count, roles in zip(nodes, bias, strict=True)], []
    for at, (rows, counted) in enumerate(zip(table.split(sizes), counts.split(sizes), strict=True)):
        roles = (nodes[at], len(bias[at]))
        centred = F.layer_norm(rows.unflatten(0, roles) + bias[at], table.shape[1:], eps=EPSILON)
        parts.append((torch.addcmul(shift[at], centred, gain[at]) * counted.unflatten(0, roles)).sum(dim=1))
    return torch.cat(parts)


def _for_kernels(most: int, values: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether the kernels take values of a module with such weights, of at most so many nodes of a type."""
    if torch.is_grad_enabled() and (values.requires_grad or any(weight.requires_grad for weight in weights)):
        return False
    return most <= MOST_NODES and compiled(values) and compiled(weights[0])
