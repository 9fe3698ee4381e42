"""Graphs of training runs as tensors: arrays of many graphs of one shape, and the batch that the network reads.

Shapes: ``N`` or ``B`` is the number of graphs, ``S`` of slots, ``n`` and ``e`` of nodes of a type and of edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from policies.strategic.encoding import KEPT, encode
from policies.strategic.schema import ATTRIBUTE_WIDTH, CONTEXT, FORWARD_RELATIONS, NODE_TYPES

_TYPE_INDEX = {name: index for index, name in enumerate(NODE_TYPES)}
SOURCE_TYPE = tuple(_TYPE_INDEX[relation.source] for relation in FORWARD_RELATIONS)
"""Index of the node type that each relation leaves."""
TARGET_TYPE = tuple(_TYPE_INDEX[relation.target] for relation in FORWARD_RELATIONS)
"""Index of the node type that each relation enters."""
_KINDS = (
    *((kind.columns, kind.columns.encoded) for kind in NODE_TYPES.values()),
    (CONTEXT, CONTEXT.encoded),
    *((relation.attributes, ATTRIBUTE_WIDTH) for relation in FORWARD_RELATIONS),
)
"""Whose numbers a graph has, and how wide they are once they have masks."""


@dataclass(frozen=True)
class NodeArrays:
    """The nodes of one type in N graphs, each padded to the same number.

    Attributes:
        present: Which nodes exist, bool ``[N, n]``.
        values: Numbers ``[N, n, columns.width]``, NaN where not known.
        codes: Registry numbers int64 ``[N, n, len(node_type.codes)]``, 0 where not known.
    """

    present: Tensor
    values: Tensor
    codes: Tensor


@dataclass(frozen=True)
class EdgeArrays:
    """The edges of one relation in N graphs, each padded to the same number.

    Attributes:
        ends: Source and target, int64 ``[N, e, 2]``, counted within the graph's nodes of that type. An edge exists
            where both are present; -1 is nobody.
        values: Attributes ``[N, e, attributes.width]``, NaN where not known.
    """

    ends: Tensor
    values: Tensor


@dataclass(frozen=True)
class GraphArrays:
    """N graphs as arrays of one shape: hosts of one world at once, or one packet as N = 1.

    A row of zeros (RLlib's padding) has nobody present: a graph without nodes.

    Attributes:
        nodes: By node type, all of them.
        edges: By name of the forward relation, all of them.
        seeds: The seed node of each slot, int64 ``[N, S]``; -1 where the graph has no such slot.
        context: Numbers of the whole graph ``[N, CONTEXT.width]``, NaN where not known.
        action_mask: Flat mask of the world's heads ``[N, mask_size]``; of slots without a seed node it admits none.
    """

    nodes: Mapping[str, NodeArrays]
    edges: Mapping[str, EdgeArrays]
    seeds: Tensor
    context: Tensor
    action_mask: Tensor

    @classmethod
    def together(cls, parts: Sequence[GraphArrays]) -> Self:
        """Graphs of several shapes as arrays of one, which those with fewer nodes or edges are padded to.

        Args:
            parts: At least one; all of as many slots, with masks of the same heads.
        """
        nodes, edges = {}, {}
        for name in NODE_TYPES:
            of = [part.nodes[name] for part in parts]
            present, values, codes = zip(*((n.present, n.values, n.codes) for n in of), strict=True)
            nodes[name] = NodeArrays(_padded(present, False), _padded(values, torch.nan), _padded(codes, 0))
        for relation in FORWARD_RELATIONS:
            ends, values = zip(*((e.ends, e.values) for e in (p.edges[relation.name] for p in parts)), strict=True)
            edges[relation.name] = EdgeArrays(_padded(ends, -1), _padded(values, torch.nan))
        seeds, context, masks = zip(*((part.seeds, part.context, part.action_mask) for part in parts), strict=True)
        return cls(nodes, edges, torch.cat(seeds), torch.cat(context), torch.cat(masks))


def _padded(parts: Sequence[Tensor], value: float) -> Tensor:
    """Tensors ``[N, n, ...]`` one after the other, each filled up along its second axis to the longest."""
    most = max(part.shape[1] for part in parts)
    missing = ((0, 0) * (part.ndim - 2) + (0, most - part.shape[1]) for part in parts)
    return torch.cat([F.pad(part, more, value=value) for part, more in zip(parts, missing, strict=True)])


@dataclass(frozen=True)
class Nodes:
    """The nodes of one type in a batch, graph by graph.

    Attributes:
        numbers: Values and their masks, ``[n, columns.encoded]``, finite.
        codes: Registry numbers, int64 ``[n, len(node_type.codes)]``.
        graph: Which graph each belongs to, int64 ``[n]``, never decreasing.
    """

    numbers: Tensor
    codes: Tensor
    graph: Tensor


@dataclass(frozen=True, eq=False)
class Edges:
    """The edges of all relations in a batch, graph by graph. Batches of one structure share them.

    Attributes:
        relation: Index into ``FORWARD_RELATIONS``, int64 ``[e]``.
        source: Index among the batch's nodes of the relation's source type, int64 ``[e]``.
        target: The same of its target type.
        graph: Which graph each belongs to, int64 ``[e]``, never decreasing.
    """

    relation: Tensor
    source: Tensor
    target: Tensor
    graph: Tensor


@dataclass(frozen=True)
class GraphBatch:
    """B graphs of any shapes as one.

    Attributes:
        nodes: By node type, all of them.
        edges: Of all forward relations.
        attributes: Values and masks of what each edge's relation has, zeros up to ``[e, ATTRIBUTE_WIDTH]``.
        seeds: The seed node of each slot among the batch's, int64 ``[B, S]``; -1 where there is none.
        context: Values and masks of the whole graphs, ``[B, CONTEXT.encoded]``.
        action_mask: Flat mask of the world's heads ``[B, mask_size]``.
    """

    nodes: Mapping[str, Nodes]
    edges: Edges
    attributes: Tensor
    seeds: Tensor
    context: Tensor
    action_mask: Tensor

    def __len__(self) -> int:
        """Number of graphs."""
        return len(self.seeds)

    def first_nodes(self, name: str) -> Tensor:
        """Index of each graph's first node of a type: int64 ``[B + 1]``, the last one the number of nodes."""
        graphs = torch.arange(len(self) + 1, device=self.seeds.device)
        return torch.searchsorted(self.nodes[name].graph, graphs)

    @classmethod
    def from_arrays(cls, arrays: GraphArrays) -> GraphBatch:
        """The N graphs of the arrays, without what is not present.

        Every edge attribute is divided by the largest magnitude that it has in its graph; 0 stays 0.
        """
        structure = _Structure.of(arrays)
        values = [*(arrays.nodes[name].values for name in NODE_TYPES), arrays.context.unsqueeze(1)]
        values += [arrays.edges[relation.name].values for relation in FORWARD_RELATIONS]
        encoded = encode(values, _KINDS)
        nodes, context, edges = encoded[: len(NODE_TYPES)], encoded[len(NODE_TYPES)], encoded[len(NODE_TYPES) + 1 :]
        wide = torch.cat(edges, dim=1)
        attributes = _scaled(wide.flatten(0, 1)[structure.edge_rows], structure.group, len(wide) * len(edges))
        return cls(
            {
                name: Nodes(numbers.flatten(0, 1)[rows], arrays.nodes[name].codes.flatten(0, 1)[rows], graph)
                for (name, rows), graph, numbers in zip(structure.rows.items(), structure.graphs, nodes, strict=True)
            },
            structure.edges,
            attributes,
            structure.seeds,
            context.squeeze(1),
            arrays.action_mask,
        )

    def chunks(self, size: int) -> list[GraphBatch]:
        """The same graphs in batches of at most ``size``, in order."""
        if len(self) <= size:
            return [self]
        bounds = [*range(0, len(self), size), len(self)]
        at = torch.tensor(bounds, device=self.seeds.device)
        node_bounds = torch.stack([self.first_nodes(name)[at] for name in self.nodes]).tolist()
        edge_bounds = torch.searchsorted(self.edges.graph, at).tolist()
        return [
            self._chunk(bounds[i], bounds[i + 1], [(b[i], b[i + 1]) for b in node_bounds], edge_bounds[i : i + 2])
            for i in range(len(bounds) - 1)
        ]

    def _chunk(self, start: int, end: int, nodes: list[tuple[int, int]], edges: list[int]) -> GraphBatch:
        """Graphs ``start`` to ``end``, with the bounds of their nodes by type and of their edges."""
        kept = {
            name: Nodes(of.numbers[low:high], of.codes[low:high], of.graph[low:high] - start)
            for (name, of), (low, high) in zip(self.nodes.items(), nodes, strict=True)
        }
        part = slice(*edges)
        relation = self.edges.relation[part]
        starts = torch.tensor([low for low, _ in nodes], device=relation.device)
        source, target = (relation.new_tensor(types)[relation] for types in (SOURCE_TYPE, TARGET_TYPE))
        moved = Edges(
            relation,
            self.edges.source[part] - starts[source],
            self.edges.target[part] - starts[target],
            self.edges.graph[part] - start,
        )
        seeds = self.seeds[start:end]
        seeds = torch.where(seeds >= 0, seeds - starts[_TYPE_INDEX["seed"]], -1)
        return GraphBatch(
            kept, moved, self.attributes[part], seeds, self.context[start:end], self.action_mask[start:end]
        )


@dataclass(frozen=True)
class _Structure:
    """What of a batch follows from who is present and who is linked to whom, and from no number.

    Attributes:
        rows: By node type the place of each node among all rows of the arrays, int64 ``[n]``.
        graphs: Of each type's nodes, see :class:`Nodes`.
        edge_rows: Place of each edge among all rows of all relations, int64 ``[e]``.
        group: A number per graph and relation, int64 ``[e]``.
        edges: Of the batch.
        seeds: Of the batch.
    """

    rows: Mapping[str, Tensor]
    graphs: tuple[Tensor, ...]
    edge_rows: Tensor
    group: Tensor
    edges: Edges
    seeds: Tensor

    @classmethod
    def of(cls, arrays: GraphArrays) -> _Structure:
        """Of some graphs; that of the same content is kept."""
        present = [arrays.nodes[name].present for name in NODE_TYPES]
        parts = [*present, *(arrays.edges[of.name].ends.flatten(1) for of in FORWARD_RELATIONS), arrays.seeds]
        content = torch.cat(parts, dim=1)
        return _structure(tuple(of.shape[1] for of in parts), content.cpu().numpy().tobytes(), content.device)


@lru_cache(KEPT)
@torch.inference_mode(False)  # what is kept serves training, too
def _structure(widths: tuple[int, ...], content: bytes, device: torch.device) -> _Structure:
    """The structure of graphs whose presence, ends and seeds are so many columns each, in so many bytes."""
    whole = torch.from_numpy(np.frombuffer(content, np.int64).copy()).view(-1, sum(widths)).to(device)
    *columns, seeds = whole.split(widths, dim=1)
    present, ends = [of > 0 for of in columns[: len(NODE_TYPES)]], columns[len(NODE_TYPES) :]
    node_rows = [of.flatten().nonzero().squeeze(1) for of in present]
    places, starts = _places(present)
    first = [
        torch.tensor([starts[source], starts[target]], device=device).expand(of.shape[1] // 2, -1)
        for source, target, of in zip(SOURCE_TYPE, TARGET_TYPE, ends, strict=True)
    ]
    every = torch.cat([torch.full((len(of),), at, device=device) for at, of in enumerate(first)])
    found = _look_up(places, torch.cat(ends, dim=1).unflatten(1, (-1, 2)), torch.cat(first))
    graph, edge = (found >= 0).all(dim=-1).nonzero(as_tuple=True)
    relation, (source, target) = every[edge], found[graph, edge].unbind(1)
    return _Structure(
        dict(zip(NODE_TYPES, node_rows, strict=True)),
        tuple(rows // max(of.shape[1], 1) for rows, of in zip(node_rows, present, strict=True)),
        graph * len(every) + edge,
        graph * len(FORWARD_RELATIONS) + relation,
        Edges(relation, source.contiguous(), target.contiguous(), graph),
        _look_up(places, seeds, starts[_TYPE_INDEX["seed"]]),
    )


def _places(present: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Index of each present node ``[N, all types]`` among the batch's of its type, and each type's first column.

    It is -1 where nobody is, and in one column more, the last, which is nobody's.
    """
    counted = torch.cat([of.flatten().cumsum(0).view_as(of) for of in present], dim=1)
    starts = [0, *accumulate(of.shape[1] for of in present)]
    return F.pad(torch.where(torch.cat(list(present), dim=1), counted - 1, -1), (0, 1), value=-1), starts


def _look_up(places: Tensor, index: Tensor, starts: Tensor | int) -> Tensor:
    """Indices ``[N, ...]`` within each graph's nodes of a type as the batch's; -1 stays, and so does nobody."""
    columns = torch.where(index >= 0, index + starts, places.shape[1] - 1)
    return places.gather(1, columns.flatten(1)).view_as(columns)


def _scaled(attributes: Tensor, group: Tensor, groups: int) -> Tensor:
    """Attributes ``[e, k]`` by the largest magnitude of each in its group; masks are 0 or 1, and stay."""
    largest = attributes.new_zeros(groups, attributes.shape[1])
    largest.scatter_reduce_(0, group.unsqueeze(1).expand_as(attributes), attributes.abs(), "amax")
    return attributes / torch.where(largest > 0, largest, 1.0)[group]
