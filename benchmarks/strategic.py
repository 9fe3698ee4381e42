"""How long the strategic policy's network takes to read one graph, on one CPU thread.

Run it with::

    python -m benchmarks.strategic --json strategic.json

A graph of L layer nodes has as many activations and parameters, 3 seeds that monitor 3 layers each, and layers that
feed the next and the one after it: 12 is the size of a world's host, 128 the most that a packet holds. The graph's
arrays are there already. What measuring them costs an env is the last table (``benchmarks/graph_features.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from torch import Tensor

from benchmarks.graph_features import feature_costs
from benchmarks.harness import Report, Table, paired_seconds
from envs.action_masks import mask_size
from envs.slots import SlotConfig
from esper_ray.process import settle
from policies.distribution import ActionTables
from policies.strategic.graph import EdgeArrays, GraphArrays, GraphBatch, NodeArrays
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.network_config import SMALL, GraphNetworkConfig
from policies.strategic.schema import CONTEXT, FORWARD_RELATIONS, NODE_TYPES

SLOTS = SlotConfig.for_row(3)
WIDTHS = {"full": GraphNetworkConfig(), "small": SMALL}


@dataclass(frozen=True)
class Strategic:
    """Milliseconds per graph, by widths and layer nodes."""

    layers: tuple[int, ...] = (12, 64, 128)
    """Layer nodes of the graphs."""
    repeats: int = 300
    """Passes of each."""
    rounds: int = 5
    """Pairs of episodes with and without the graph."""
    json: Path | None = None
    """File to write the report to."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        settle()
        torch.manual_seed(0)
        tables = ActionTables(SLOTS.heads)
        networks = {name: GraphPolicyNetwork(config) for name, config in WIDTHS.items()}
        report = Report("strategic")
        rows = []
        with torch.inference_mode():
            for layers in self.layers:
                arrays = random_graph(layers)
                graphs = GraphBatch.from_arrays(arrays)
                candidates = {"arrays to batch": lambda arrays=arrays: GraphBatch.from_arrays(arrays)} | {
                    name: lambda network=network, graphs=graphs: network(graphs, tables)
                    for name, network in networks.items()
                }
                for name, seconds in paired_seconds(candidates, self.repeats, warmup=20).items():
                    p50, p95, p99 = np.percentile(seconds, (50, 95, 99)) * 1e3
                    rows.append((name, str(layers), f"{p50:.1f}", f"{p95:.1f}", f"{p99:.1f}"))
                    if name == "full":
                        report.headline[f"network_p95_ms_{layers}"] = round(p95, 1)
        header = ("what", "layer nodes", "p50, ms", "p95, ms", "p99, ms")
        report.tables.append(Table("One graph, one CPU thread", header, sorted(rows)))
        share, table = feature_costs(self.rounds)
        report.headline["feature_cost_share"] = round(share, 3)
        report.tables.append(table)
        report.publish(console, self.json)


def random_graph(layers: int) -> GraphArrays:
    """One graph as the module's docstring has it, with random numbers, every tenth of them unknown."""
    counts = {"layer": layers, "seed": SLOTS.num_slots, "activation": layers, "parameter": layers}
    nodes = {}
    for name, kind in NODE_TYPES.items():
        codes = torch.stack([torch.randint(code.capacity + 1, (1, counts[name])) for code in kind.codes], dim=-1)
        present = torch.ones(1, counts[name], dtype=torch.bool)
        nodes[name] = NodeArrays(present, _numbers(counts[name], kind.columns.width), codes)
    ends = _ends(layers)
    edges = {
        relation.name: EdgeArrays(
            ends[relation.name].unsqueeze(0), _numbers(len(ends[relation.name]), relation.attributes.width)
        )
        for relation in FORWARD_RELATIONS
    }
    seeds = torch.arange(SLOTS.num_slots).unsqueeze(0)
    mask = torch.ones(1, mask_size(SLOTS.heads), dtype=torch.int8)
    return GraphArrays(nodes, edges, seeds, _numbers(CONTEXT.width), mask)


def _ends(layers: int) -> dict[str, Tensor]:
    """Sources and targets of each relation, ``[e, 2]``."""
    each = torch.arange(layers)
    monitors = torch.arange(3 * SLOTS.num_slots)
    return {
        "connects": torch.cat([torch.stack([each[:-skip], each[skip:]], dim=1) for skip in (1, 2)]),
        "monitors": torch.stack([monitors // 3, monitors % layers], dim=1),
        "feeds": torch.stack([each, each], dim=1),
        "influences": torch.stack([each[:-1], each[1:]], dim=1),
        "tunes": torch.stack([each, each], dim=1),
        "allowed": torch.stack([monitors // 3, monitors % layers], dim=1),
    }


def _numbers(*shape: int) -> Tensor:
    values = torch.randn(1, *shape)
    return torch.where(torch.rand(values.shape) < 0.1, torch.nan, values)


if __name__ == "__main__":
    tyro.cli(Strategic).run(Console())
