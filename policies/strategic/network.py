"""The strategic policy's network: encoders, two SAGE and two GAT layers, a pool, and heads. Plain torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from envs.vocabulary import BLENDING_METHODS
from policies.distribution import ActionTables
from policies.strategic.graph import GraphBatch
from policies.strategic.heads import GraphHeads, GraphPolicyResult
from policies.strategic.layers import GatLayer, Links, NodeEncoder, RelationalLayer, SageLayer, Wiring
from policies.strategic.network_config import GraphNetworkConfig
from policies.strategic.scale import GraphScale
from policies.strategic.schema import CONTEXT, FULL_WIDTH, NODE_TYPES

CHUNK = 100
"""Graphs that pass the layers at a time: more would not fit a core's cache."""


class GraphPolicyNetwork(nn.Module):
    """Reads graphs of any shape; no weight depends on a world's layers, slots, ops or blueprints.

    It remembers nothing from step to step.

    Args:
        config: Widths and the like.
    """

    def __init__(self, config: GraphNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = GraphScale()
        encoded = {name: kind.encoded * config.sage_width // FULL_WIDTH for name, kind in NODE_TYPES.items()}
        sage, gat = dict.fromkeys(NODE_TYPES, config.sage_width), dict.fromkeys(NODE_TYPES, config.gat_width)
        everything, read = Wiring(tuple(NODE_TYPES)), Wiring(("layer", "seed"))  # the heads read these two only
        self.encoders = nn.ModuleDict({name: NodeEncoder(kind, encoded[name]) for name, kind in NODE_TYPES.items()})
        self.layers = nn.ModuleList(
            [
                SageLayer(everything, encoded, config.sage_width),
                SageLayer(everything, sage, config.sage_width),
                GatLayer(everything, sage, config.gat_width, config.attention_heads),
                GatLayer(read, gat, config.gat_width, config.attention_heads),
            ]
        )
        self.heads = GraphHeads(config.gat_width, CONTEXT.encoded, config)

    def forward(self, graphs: GraphBatch, tables: ActionTables, imitating: bool = False) -> GraphPolicyResult:
        """Everything that the policy says of B graphs.

        Args:
            graphs: Of one world, or of several whose slots are padded to the same number.
            tables: Of the heads that the graphs' action masks are of.
            imitating: Whether to drop numbers at random, as imitation does. Nothing else does, in whatever mode the
                module is.
        """
        dropout = self.config.dropout if imitating else 0.0
        scaled: GraphBatch = self.scale(graphs)
        parts = [self._read(chunk, dropout) for chunk in scaled.chunks(CHUNK)]
        pooled, slots = (torch.cat(part) for part in zip(*parts, strict=True))
        result: GraphPolicyResult = self.heads(
            pooled, scaled.context, slots, _allowed_methods(graphs), graphs.action_mask, tables
        )
        return result

    def _read(self, graphs: GraphBatch, dropout: float) -> tuple[Tensor, Tensor]:
        """Mean of the layer nodes ``[B, gat_width]``, and the slots' seed nodes ``[B, S, gat_width]``."""
        nodes: dict[str, Tensor] = {
            name: encoder(graphs.nodes[name], graphs.context) for name, encoder in self.encoders.items()
        }
        links: dict[Wiring, Links] = {}
        for layer in self.layers:
            assert isinstance(layer, RelationalLayer)
            if layer.wiring not in links:
                links[layer.wiring] = Links.of(graphs, layer.wiring)
            nodes = layer(nodes, links[layer.wiring], dropout)
        layers = nodes["layer"]
        every = torch.arange(len(layers), device=layers.device)
        pooled = F.embedding_bag(every, layers, graphs.first_nodes("layer")[:-1], mode="mean")
        return pooled, _by_slot(nodes["seed"], graphs.seeds)


def _by_slot(seeds: Tensor, slots: Tensor) -> Tensor:
    """Rows of seed nodes ``[n, k]`` by slot ``[B, S]``: ``[B, S, k]``, zeros where a slot has none."""
    return F.pad(seeds, (0, 0, 0, 1))[slots]  # -1 reads the last row


def _allowed_methods(graphs: GraphBatch) -> Tensor:
    """Blending methods that each slot's seed allows, bool ``[B, S, 4]``; none where it does not say."""
    place = NODE_TYPES["seed"].columns.place(f"allows_{BLENDING_METHODS[0]}")
    return _by_slot(graphs.nodes["seed"].numbers[:, place], graphs.seeds) > 0
