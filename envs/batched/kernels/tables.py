"""Flat tables of rows: what a graph network computes of the nodes of several types.

Without gradients and with few rows, which is how a policy reads a single host, kernels compute them: each a call in
place of several per type.

A table has a row for each node and each role that it plays, type by type, node by node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.batched.kernels.operators import compiled

MOST_NODES = 64
"""Of a type. With more, torch's own products are as fast: they copy the weights into an order of their own first."""
EPSILON = 1e-5
"""Of the norm, as in ``nn.LayerNorm``."""


def products(nodes: Sequence[Tensor], weights: Sequence[Tensor], wanted: Tensor) -> Tensor:
    """The products of each type's nodes with its weights.

    Args:
        nodes: By type ``[n, inputs]``.
        weights: By type ``[inputs, roles, width]``.
        wanted: Whether anybody reads the products of each role, type by type: bool ``[all roles]``. The others are
            some finite number: their weights need not be read.

    Returns:
        A table ``[rows, width]``.
    """
    if _for_kernels(max(map(len, nodes)), nodes[0], weights):
        table: Tensor = torch.ops.esper.products(nodes, weights, wanted)
        return table
    parts = [rows @ weight.flatten(1) for rows, weight in zip(nodes, weights, strict=True)]
    return torch.cat([part.view(-1, weights[0].shape[2]) for part in parts])


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


@dataclass(frozen=True)
class Attended:
    """The edges along which inboxes attend to messages, inbox by inbox.

    Attributes:
        message: Row of the message that each edge carries, int64 ``[e]``.
        inbox: Row of the inbox that it enters, int64 ``[e]``.
        first: Each inbox's first edge, int64 ``[Q]``.
        relation: Of each edge, int64 ``[e]``.
        edge: Row of its attributes, int64 ``[e]``.
        attributes: ``[rows, k]``.
    """

    message: Tensor
    inbox: Tensor
    first: Tensor
    relation: Tensor
    edge: Tensor
    attributes: Tensor


def attention(
    messages: Tensor,
    source: Sequence[Tensor],
    target: Tensor,
    along: Tensor,
    edges: Attended,
    origins: Sequence[tuple[int, int]],
    nodes: Sequence[int],
    slope: float,
) -> Tensor:
    """What inboxes receive: the mean over heads of sums of messages, weighed by a softmax over each inbox's edges.

    An edge's score is the leaky ReLU of what source, target and attributes say of it.

    Args:
        messages: A table ``[rows, heads · width]``.
        source: By type that sends ``[width, roles, heads]``.
        target: ``[Q, heads]``.
        along: ``[k, relations, heads]``.
        edges: Whose message enters which inbox.
        origins: Type and role that each relation leaves.
        nodes: How many there are of each type that sends.
        slope: Of the leaky ReLU.

    Returns:
        ``[Q, width]``.
    """
    if _for_kernels(max(nodes), messages, [target, along, *source]):
        of_edges = (edges.message, edges.first, edges.relation, edges.edge, edges.attributes)
        leaving = [at for origin in origins for at in origin]
        received: Tensor = torch.ops.esper.attention(messages, source, target, along, *of_edges, leaving, slope)
        return received
    width, (_, _, heads) = len(source[0]), along.shape
    weights = _segment_softmax(_scores(messages, source, target, along, edges, nodes, slope), edges)
    rows = edges.message.unsqueeze(1) * heads + torch.arange(heads, device=messages.device)
    return F.embedding_bag(
        rows.flatten(),
        messages.view(-1, width),
        edges.first * heads,
        mode="sum",
        per_sample_weights=(weights / heads).flatten().to(messages.dtype),
    )


def _scores(
    messages: Tensor,
    source: Sequence[Tensor],
    target: Tensor,
    along: Tensor,
    edges: Attended,
    nodes: Sequence[int],
    slope: float,
) -> Tensor:
    """How much each edge is attended to, before the softmax: ``[e, heads]``."""
    width, _, heads = source[0].shape
    sizes = [n * of.shape[1] for n, of in zip(nodes, source, strict=True)]
    parts = messages.unflatten(1, (heads, width)).split(sizes)
    of_messages = torch.cat(
        [
            torch.einsum("nrhw,wrh->nrh", part.unflatten(0, (-1, of.shape[1])), of).flatten(0, 1)
            for part, of in zip(parts, source, strict=True)
        ]
    )
    of_edges = torch.einsum("ea,aeh->eh", edges.attributes[edges.edge], along[:, edges.relation])
    return F.leaky_relu(of_messages[edges.message] + target[edges.inbox] + of_edges, slope)


def _segment_softmax(scores: Tensor, edges: Attended) -> Tensor:
    """Softmax over the edges of each inbox, head by head, in float32 at least: ``[e, heads]``."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    inbox = edges.inbox.unsqueeze(1).expand_as(scores)
    zeros = scores.new_zeros(len(edges.first), scores.shape[1])
    largest = zeros.scatter_reduce(0, inbox, scores.detach(), "amax", include_self=False)
    exponentials = (scores - largest[edges.inbox]).exp()
    totals = zeros.scatter_add(0, inbox, exponentials)
    return exponentials / totals[edges.inbox]


def _for_kernels(most: int, values: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether the kernels take values of a module with such weights, of at most so many nodes of a type."""
    if torch.is_grad_enabled() and (values.requires_grad or any(weight.requires_grad for weight in weights)):
        return False
    return most <= MOST_NODES and compiled(values) and compiled(weights[0])
