"""Graphs of training runs as tensors: arrays of many graphs of one shape, and the batch that the network reads.

Shapes: ``N`` or ``B`` is the number of graphs, ``S`` of slots, ``n`` and ``e`` of nodes of a type and of edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from policies.strategic.schema import ATTRIBUTE_WIDTH, CONTEXT, FORWARD_RELATIONS, NODE_TYPES, Columns

_TYPE_INDEX = {name: index for index, name in enumerate(NODE_TYPES)}
SOURCE_TYPE = tuple(_TYPE_INDEX[relation.source] for relation in FORWARD_RELATIONS)
"""Index of the node type that each relation leaves."""
TARGET_TYPE = tuple(_TYPE_INDEX[relation.target] for relation in FORWARD_RELATIONS)
"""Index of the node type that each relation enters."""


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


@dataclass(frozen=True)
class Edges:
    """The edges of all relations in a batch, graph by graph.

    Attributes:
        relation: Index into ``FORWARD_RELATIONS``, int64 ``[e]``.
        source: Index among the batch's nodes of the relation's source type, int64 ``[e]``.
        target: The same of its target type.
        attributes: Values and masks of the relation's attributes, zeros up to ``[e, ATTRIBUTE_WIDTH]``.
        graph: Which graph each belongs to, int64 ``[e]``, never decreasing.
    """

    relation: Tensor
    source: Tensor
    target: Tensor
    attributes: Tensor
    graph: Tensor


@dataclass(frozen=True)
class GraphBatch:
    """B graphs of any shapes as one.

    Attributes:
        nodes: By node type, all of them.
        edges: Of all forward relations.
        seeds: The seed node of each slot among the batch's, int64 ``[B, S]``; -1 where there is none.
        context: Values and masks of the whole graphs, ``[B, CONTEXT.encoded]``.
        action_mask: Flat mask of the world's heads ``[B, mask_size]``.
    """

    nodes: Mapping[str, Nodes]
    edges: Edges
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
        places, starts = _places(arrays.nodes)
        nodes = {name: _flat_nodes(nodes, NODE_TYPES[name].columns) for name, nodes in arrays.nodes.items()}
        seeds = _look_up(places, arrays.seeds, starts["seed"])
        return cls(
            nodes, _flat_edges(arrays.edges, places, starts), seeds, CONTEXT.encode(arrays.context), arrays.action_mask
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
            self.edges.attributes[part],
            self.edges.graph[part] - start,
        )
        seeds = self.seeds[start:end]
        seeds = torch.where(seeds >= 0, seeds - starts[_TYPE_INDEX["seed"]], -1)
        return GraphBatch(kept, moved, seeds, self.context[start:end], self.action_mask[start:end])


def _places(nodes: Mapping[str, NodeArrays]) -> tuple[Tensor, dict[str, int]]:
    """Index of each present node ``[N, all types]`` among the batch's of its type, and each type's first column.

    It is -1 where nobody is, and in one column more, the last, which is nobody's.
    """
    present = torch.cat([of.present for of in nodes.values()], dim=1)
    counted = torch.cat([of.present.flatten().cumsum(0).view_as(of.present) for of in nodes.values()], dim=1)
    widths = [of.present.shape[1] for of in nodes.values()]
    starts = dict(zip(nodes, accumulate(widths, initial=0), strict=False))
    return F.pad(torch.where(present, counted - 1, -1), (0, 1), value=-1), starts


def _look_up(places: Tensor, index: Tensor, starts: Tensor | int) -> Tensor:
    """Indices ``[N, ...]`` within each graph's nodes of a type as the batch's; -1 stays, and so does nobody."""
    columns = torch.where(index >= 0, index + starts, places.shape[1] - 1)
    return places.gather(1, columns.flatten(1)).view_as(columns)


def _flat_nodes(arrays: NodeArrays, columns: Columns) -> Nodes:
    graph, node = arrays.present.nonzero(as_tuple=True)
    return Nodes(columns.encode(arrays.values[graph, node]), arrays.codes[graph, node], graph)


def _flat_edges(arrays: Mapping[str, EdgeArrays], places: Tensor, starts: Mapping[str, int]) -> Edges:
    of = [arrays[relation.name] for relation in FORWARD_RELATIONS]
    device = places.device
    every = torch.repeat_interleave(torch.tensor([edges.ends.shape[1] for edges in of], device=device))
    first = torch.tensor([(starts[each.source], starts[each.target]) for each in FORWARD_RELATIONS], device=device)
    ends = _look_up(places, torch.cat([edges.ends for edges in of], dim=1), first[every])
    graph, edge = (ends >= 0).all(dim=-1).nonzero(as_tuple=True)
    encoded = [each.attributes.encode(edges.values) for each, edges in zip(FORWARD_RELATIONS, of, strict=True)]
    wide = torch.cat([F.pad(rows, (0, ATTRIBUTE_WIDTH - rows.shape[-1])) for rows in encoded], dim=1)
    relation = every[edge]
    source, target = ends[graph, edge].unbind(1)
    attributes = _scaled(wide[graph, edge], graph * len(of) + relation, len(places) * len(of))
    return Edges(relation, source, target, attributes, graph)


def _scaled(attributes: Tensor, group: Tensor, groups: int) -> Tensor:
    """Attributes ``[e, k]`` by the largest magnitude of each in its group; masks are 0 or 1, and stay."""
    largest = attributes.new_zeros(groups, attributes.shape[1])
    largest.scatter_reduce_(0, group.unsqueeze(1).expand_as(attributes), attributes.abs(), "amax")
    return attributes / torch.where(largest > 0, largest, 1.0)[group]
