"""How long the strategic policy takes to read one graph, on one CPU thread: its network, and all of it.

Run it with::

    python -m benchmarks.strategic --json strategic.json --page docs/strategic.md

Hosts of the greenhouse are real ones. Another graph of L layer nodes has as many activations and parameters, 3 seeds
that monitor 3 layers each, and layers that feed the next and the one after it: 128 is the most that a packet holds,
and of larger models 128 layers are sampled in every pass. What was measured is there already as arrays; what
measuring costs an env is the last table (``benchmarks/graph_features.py``).
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from torch import Tensor

from benchmarks.graph_features import feature_costs, one_host
from benchmarks.harness import Report, Table, paired_seconds, require_gpu
from envs.action_masks import mask_size
from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from envs.vocabulary import BLENDING_METHODS, SeedStage
from esper_ray.process import settle
from policies.distribution import ActionTables
from policies.strategic.builder import GraphBuilder
from policies.strategic.checkpoint import Checkpoint
from policies.strategic.graph import EdgeArrays, GraphArrays, GraphBatch, NodeArrays
from policies.strategic.greenhouse import GreenhouseReader
from policies.strategic.inference import StrategicPolicy
from policies.strategic.measured import NODE_TABLES, NUMBERS, TEXTS, Measured, Names
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.network_config import SMALL, GraphNetworkConfig
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.registries import Capacities, RegistryViews
from policies.strategic.sampling import sample
from policies.strategic.schema import CONTEXT, FORWARD_RELATIONS, NODE_TYPES
from policies.strategic.seen import BLUEPRINTS, INPUTS, OPS, Seen

SLOTS = SlotConfig.for_row(3)
WIDTHS = {"full": GraphNetworkConfig(), "small": SMALL}
HEADLINES = {128: "evaluate_p95_ms", 10_000: "evaluate_p95_ms_10k"}
WORLDS = ("digits_mixed", "digits_scale", "tabular", "text")


@dataclass(frozen=True)
class Strategic:
    """Milliseconds per graph, by widths and layer nodes."""

    layers: tuple[int, ...] = (12, 64, 128)
    """Layer nodes of the graphs that the network reads."""
    models: tuple[int, ...] = (12, 64, 128, 1000, 10_000)
    """Layers of the models that are read from what was measured to the answer."""
    repeats: int = 1000
    """Passes of each."""
    rounds: int = 5
    """Pairs of episodes with and without the graph."""
    device: Literal["cpu", "cuda"] = "cpu"
    """With ``cuda`` only what is computed on a GPU is measured."""
    json: Path | None = None
    """File to write the report to."""
    page: Path | None = None
    """Page to write the tables into."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        settle()
        torch.manual_seed(0)
        report = Report("strategic" if self.device == "cpu" else "strategic.cuda")
        if self.device == "cuda":
            require_gpu()
            self._on_a_gpu(report)
        else:
            self._networks(report)
            self._worlds(report)
            self._evaluations(report)
            self._beside_others(report)
            share, table = feature_costs(self.rounds)
            report.headline["feature_cost_share"] = round(share, 3)
            report.tables.append(table)
        report.publish(console, self.json)
        if self.page is not None:
            report.write_into(self.page)

    def _networks(self, report: Report) -> None:
        """The network alone."""
        tables = ActionTables(SLOTS.heads)
        networks = {name: GraphPolicyNetwork(config) for name, config in WIDTHS.items()}
        rows: list[tuple[str, ...]] = []
        with torch.inference_mode():
            for layers in self.layers:
                arrays = random_graph(layers)
                graphs = GraphBatch.from_arrays(arrays)
                candidates = {"arrays to batch": lambda arrays=arrays: GraphBatch.from_arrays(arrays)} | {
                    name: lambda network=network, graphs=graphs: network(graphs, tables)
                    for name, network in networks.items()
                }
                for name, seconds in paired_seconds(candidates, self.repeats, warmup=20).items():
                    rows.append((name, str(layers), *_percentiles(seconds)))
                    if name == "full":
                        report.headline[f"network_p95_ms_{layers}"] = float(rows[-1][-2])
        header = ("what", "layer nodes", "p50, ms", "p95, ms", "p99, ms")
        report.tables.append(Table("One graph, one CPU thread, the network alone", header, sorted(rows)))

    def _worlds(self, report: Report) -> None:
        """Hosts of the greenhouse, from the vector that is observed to the answer."""
        policies = {name: _policy(config) for name, config in WIDTHS.items()}
        builder = GraphBuilder(RegistryViews.fresh(Capacities()), MetricNormaliser())
        rows: list[tuple[str, ...]] = []
        for task in WORLDS:
            reader, leaves = one_host(task)
            nodes = builder.build(reader.measured(leaves)).nodes.values()
            layers, total = len(reader.layout.structure.layers), sum(of.present.shape[1] for of in nodes)
            candidates = {name: partial(_read, policy, builder, reader, leaves) for name, policy in policies.items()}
            for name, seconds in paired_seconds(candidates, self.repeats, warmup=20).items():
                rows.append((name, task, f"{layers} ({total})", *_percentiles(seconds)))
        slowest = max(float(row[-2]) for row in rows if row[0] == "full")
        report.headline["evaluate_p95_ms_world"] = slowest
        header = ("widths", "task", "layer nodes (all nodes)", "p50, ms", "p95, ms", "p99, ms")
        report.tables.append(Table("One host, one CPU thread, from what was observed", header, rows))

    def _evaluations(self, report: Report) -> None:
        """From what was measured to the answer."""
        policies = {name: _policy(config) for name, config in WIDTHS.items()}
        builder = GraphBuilder(RegistryViews.fresh(Capacities()), MetricNormaliser())
        rows: list[tuple[str, ...]] = []
        for layers in self.models:
            sampled = partial(_sampled, random_model(layers), count())
            candidates: dict[str, Callable[[], object]] = {
                "sampling": sampled,
                "sampling and building": partial(_built, builder, sampled),
            }
            for name, policy in policies.items():
                candidates[name] = partial(_answered, policy, builder, sampled)
            for name, seconds in paired_seconds(candidates, self.repeats, warmup=20).items():
                rows.append((name, f"{layers:,}", *_percentiles(seconds)))
                if name == "full" and layers in HEADLINES:
                    report.headline[HEADLINES[layers]] = float(rows[-1][-2])
        header = ("up to and with", "layers", "p50, ms", "p95, ms", "p99, ms")
        report.tables.append(Table("One graph, one CPU thread, from what was measured", header, rows))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        report.notes.append(f"The process took at most {peak:.0f} MB, both networks, torch and all arrays included.")

    def _beside_others(self, report: Report) -> None:
        """Full widths, while other processes compute."""
        policy, builder = _policy(WIDTHS["full"]), GraphBuilder(RegistryViews.fresh(Capacities()), MetricNormaliser())
        rows: list[tuple[str, ...]] = []
        for others in (0, 1, 2):
            with _computing(others):
                for name, seconds in paired_seconds(_whole(policy, builder), self.repeats, warmup=20).items():
                    rows.append((name, str(others), *_percentiles(seconds)))
        header = ("what is read", "busy processes beside it", "p50, ms", "p95, ms", "p99, ms")
        report.tables.append(Table("One graph, one CPU thread, beside others", header, rows))

    def _on_a_gpu(self, report: Report) -> None:
        """Full widths on CUDA, building on the CPU."""
        builder = GraphBuilder(RegistryViews.fresh(Capacities()), MetricNormaliser())
        kinds: dict[str, dict[str, bool]] = {
            "float32": {"compiled": False},
            "compiled": {},
            "bfloat16": {"compiled": False, "reduced_precision": True},
            "bfloat16, compiled": {"reduced_precision": True},
        }
        rows: list[tuple[str, ...]] = []
        for kind, options in kinds.items():
            policy = _policy(WIDTHS["full"], "cuda", **options)
            for name, seconds in paired_seconds(_whole(policy, builder), self.repeats, warmup=20).items():
                rows.append((kind, name, *_percentiles(seconds), f"{policy.compile_warm_ms:,.0f}"))
        header = ("network", "what is read", "p50, ms", "p95, ms", "p99, ms", "first passes, ms")
        report.tables.append(Table("One graph on a GPU, from what was measured", header, rows))


@contextmanager
def _computing(number: int) -> Iterator[None]:
    """So many other processes that each keep a core busy."""
    busy = "import torch; torch.set_num_threads(1); x = torch.rand(512, 512); print(flush=True)\nwhile True: x @ x"
    others = [subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) for _ in range(number)]
    try:
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()
        yield
    finally:
        for other in others:
            other.kill()
            other.communicate()


def _whole(policy: StrategicPolicy, builder: GraphBuilder) -> dict[str, Callable[[], object]]:
    """What is read in the last tables: a host, and models of two sizes."""
    reader, leaves = one_host("text")
    models = {layers: partial(_sampled, random_model(layers), count()) for layers in (128, 10_000)}
    answers = {f"{layers:,} layers": partial(_answered, policy, builder, of) for layers, of in models.items()}
    return {"a host of text": partial(_read, policy, builder, reader, leaves), **answers}


def _percentiles(seconds: Sequence[float]) -> tuple[str, str, str]:
    """p50, p95 and p99, milliseconds."""
    p50, p95, p99 = (f"{1e3 * value:.1f}" for value in np.percentile(seconds, (50, 95, 99)))
    return p50, p95, p99


def _policy(config: GraphNetworkConfig, device: str = "cpu", **options: bool) -> StrategicPolicy:
    """One with fresh weights that reads everything."""
    return StrategicPolicy(fresh_checkpoint(config), device, **options)


def fresh_checkpoint(config: GraphNetworkConfig) -> Checkpoint:
    """Of an untrained policy that reads everything."""
    views, seen = RegistryViews.fresh(Capacities()), Seen(frozenset(INPUTS), frozenset(OPS), frozenset(BLUEPRINTS))
    weights = GraphPolicyNetwork(config).state_dict()
    return Checkpoint(config, weights, views, MetricNormaliser(), seen, ("none",), 15, 150, None)


def _read(
    policy: StrategicPolicy, builder: GraphBuilder, reader: GreenhouseReader, leaves: Mapping[str, Tensor]
) -> object:
    return policy.answer(builder.build(reader.measured(leaves)), reader.slots)


def _sampled(model: Measured, passes: Iterator[int]) -> Measured:
    """Another sample in each pass."""
    return sample(model, str(next(passes)))


def _built(builder: GraphBuilder, sampled: Callable[[], Measured]) -> GraphArrays:
    return builder.build(sampled())


def _answered(policy: StrategicPolicy, builder: GraphBuilder, sampled: Callable[[], Measured]) -> object:
    """A pass of everything."""
    return policy.answer(_built(builder, sampled), SLOTS)


def random_model(layers: int) -> Measured:
    """What was measured of a model of so many layers with five times as many edges; every tenth number is unknown."""
    counts = {"layers": layers, "activations": layers, "parameters": layers, "seeds": SLOTS.num_slots, "metrics": 1}
    counts |= {"run": 1}
    ends = {name: of.unsqueeze(0) for name, of in _ends(layers).items()}
    counts |= {name: of.shape[1] for name, of in ends.items()}
    rows = {key: counts[key.partition(".")[0]] for key in (*NUMBERS, *TEXTS)}
    slots = SLOTS.num_slots
    return Measured(
        slots=SLOTS,
        present=torch.ones(1, dtype=torch.bool),
        nodes={table: tuple(f"{table}{row}" for row in range(counts[table])) for table in NODE_TABLES},
        ends=ends,
        methods=torch.zeros(1, counts["allowed"], dtype=torch.int64),
        watched=torch.ones(1, slots, dtype=torch.bool),
        numbers={key: _numbers(rows[key]).abs() for key in NUMBERS},
        texts={key: Names.of(["adamw"] * rows[key]) for key in TEXTS},
        allowed_methods=torch.ones(1, slots, len(BLENDING_METHODS)),
        stages=torch.full((1, slots), int(SeedStage.TRAINING)),
        observation=torch.rand(1, ObservationLayout(SLOTS).size),
        action_mask=torch.ones(1, mask_size(SLOTS.heads), dtype=torch.int8),
        layer_count=layers,
        sampled=False,
    )


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
