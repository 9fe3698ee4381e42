"""A batch of graphs as PyTorch Geometric's HeteroData, which people see and exchange, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from policies.strategic.graph import Edges, GraphBatch, Nodes
from policies.strategic.schema import ATTRIBUTE_WIDTH, FORWARD_RELATIONS, NODE_TYPES


def to_hetero_data(graphs: GraphBatch) -> Any:
    """The graphs as one ``torch_geometric.data.HeteroData``, forward relations only.

    Every node type has ``x``, ``codes`` and ``batch``; every relation ``edge_index`` and ``edge_attr``; the data has
    ``seeds``, ``context`` and ``action_mask``.

    Raises:
        ImportError: torch_geometric is not installed.
    """
    from torch_geometric.data import HeteroData

    data = HeteroData()
    for name, nodes in graphs.nodes.items():
        data[name].x, data[name].codes, data[name].batch = nodes.numbers, nodes.codes, nodes.graph
    for index, relation in enumerate(FORWARD_RELATIONS):
        of = graphs.edges.relation == index
        data[relation.triple].edge_index = torch.stack([graphs.edges.source[of], graphs.edges.target[of]])
        data[relation.triple].edge_attr = graphs.attributes[of, : relation.attributes.encoded]
    data.seeds, data.context, data.action_mask = graphs.seeds, graphs.context, graphs.action_mask
    return data


def from_hetero_data(data: Any) -> GraphBatch:
    """The graphs of a ``HeteroData`` such as :func:`to_hetero_data` makes.

    Raises:
        ValueError: nodes of one graph do not stand together, in the order of the graphs.
    """
    nodes = {name: Nodes(data[name].x, data[name].codes, data[name].batch) for name in NODE_TYPES}
    for name, of in nodes.items():
        if (of.graph.diff() < 0).any():
            raise ValueError(f"the {name} nodes of a batch must stand graph by graph: sort them by `batch`")
    parts = []
    for index, relation in enumerate(FORWARD_RELATIONS):
        source, target = data[relation.triple].edge_index
        attributes = data[relation.triple].edge_attr
        padded = F.pad(attributes, (0, ATTRIBUTE_WIDTH - attributes.shape[1]))
        graph = nodes[relation.source].graph[source]
        parts.append((torch.full_like(source, index), source, target, graph, padded))
    stacked = [torch.cat(part) for part in zip(*parts, strict=True)]
    order = stacked[3].argsort(stable=True)
    *ends, attributes = (part[order] for part in stacked)
    return GraphBatch(nodes, Edges(*ends), attributes, data.seeds, data.context, data.action_mask)
