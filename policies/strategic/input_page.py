"""docs/inputs.md, from the features and the schema: ``python -m policies.strategic.input_page docs``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from envs.vocabulary import BLENDING_METHODS
from policies.strategic.builder import MOST_GUESSED
from policies.strategic.features import CODES, CONTEXT_FEATURES, EDGE_FEATURES, NODE_FEATURES, OBSERVED, Features
from policies.strategic.messages import KEYS
from policies.strategic.schema import (
    CONTEXT,
    FORWARD_RELATIONS,
    NODE_TYPES,
    SLOT_NUMBERS,
    Columns,
    NodeType,
    Relation,
)

PAGE_FILE = "inputs.md"
OBSERVATION, ACTION_MASK = "run.observation", "run.action_mask"
MONITORED, METHODS = "seeds.monitored_layers", "seeds.allowed_blending_methods"

PROBE = frozenset(
    {
        *("layers.layer_type", "layers.activation_type", "layers.input_channels", "layers.output_channels"),
        *("layers.dropout_rate", "layers.weight_norm", "layers.gradient_norm", "layers.update_frequency"),
        *("layers.in_degree", "layers.out_degree", "layers.depth", "layers.loss_share"),
        *("activations.activation_type", "activations.saturation_rate", "activations.gradient_flow"),
        *("activations.computational_cost", "parameters.count", "parameters.learning_rate", "parameters.momentum"),
        *("parameters.gradient_variance", "parameters.optimizer_family"),
        *("connects.connection_strength", "connects.data_flow_volume", "feeds.activation_frequency"),
        *("feeds.saturation_events", "influences.gradient_contribution", "influences.nonlinearity_strength"),
        *("tunes.update_magnitude", "tunes.convergence_rate"),
        *("metrics.loss", "metrics.gradient_norm", "metrics.samples_per_s", "metrics.hook_latency_ms"),
        *("metrics.gpu_util_percent", "metrics.gpu_mem_free_gb", "metrics.cpu_util_percent"),
        *("metrics.process_memory_share", "run.max_epochs"),
    }
)
"""Keys of inputs that the probe measures of any model."""
GROWER = frozenset({OBSERVATION, ACTION_MASK, MONITORED, "seeds.blueprint", "seeds.scope", "seeds.activity_level"})
"""Those that it measures where a grower is at work."""
GREENHOUSE = (PROBE | GROWER | {"seeds.success_rate", "monitors.monitoring_frequency"}) - {
    *("metrics.samples_per_s", "metrics.hook_latency_ms", "metrics.gpu_util_percent", "metrics.gpu_mem_free_gb"),
    *("metrics.cpu_util_percent", "metrics.process_memory_share"),
}
"""Those that are measured of hosts in the greenhouse: nothing that depends on the machine."""

HEADER = ("| input | formula | from | measured by | mask |", "|---|---|---|---|---|")
OPENING = f"""\
# What the strategic policy reads

<!-- written by: python -m policies.strategic.input_page docs -->

Every number that the network is given, by kind of node and edge. [packet.md](packet.md) says what each key means;
`policies/strategic/features.py` has the formulas. `log` is the natural logarithm, `log10 0` is the lowest that it is
kept within.

- Who measures: `greenhouse`, the hosts that policies are trained in; `probe`, any model ([strategic.md](strategic.md));
  `grower`, the probe where a `Grower` is at work; `—`, only a source of one's own.
- **Mask**: what is not measured reads as its fill-in (0 where nothing else is said), and its mask is 0. Inputs with one
  mask are known together or not at all. A name that is not known has the number 0.
- What training never showed is unknown in play, whoever measures it; the checkpoint's manifest lists it.
- `run.action_mask` says what can be drawn; without it nothing can but to wait.
- Attributes of edges are divided by their largest magnitude in the graph.
- `{MONITORED}` is where a slot's edges come from. Where nobody says it, the {MOST_GUESSED} layers with the
  largest `layers.loss_share` are taken, and nothing else is known of these edges; without loss shares there are none.
"""


def read_keys() -> frozenset[str]:
    """Keys that the network reads something of."""
    features = (
        *CONTEXT_FEATURES,
        *(of for group in (NODE_FEATURES, EDGE_FEATURES) for fs in group.values() for of in fs),
    )
    keys = {key for of in features for key in of.keys} | set(CODES.values())
    return frozenset(keys | {OBSERVATION, ACTION_MASK, MONITORED, METHODS, "layers.loss_share"})


def page() -> str:
    """The page: a table per kind of node and edge, and what nobody reads."""
    sections = [_node(kind) for kind in NODE_TYPES.values()]
    sections.append(
        _section("The graph's context", CONTEXT.width, [_observed(OBSERVED, CONTEXT)], CONTEXT_FEATURES, CONTEXT)
    )
    sections += [_edge(relation) for relation in FORWARD_RELATIONS]
    unread = "".join(f"- `{key}`\n" for key in KEYS if key not in read_keys())
    return "\n".join([OPENING, *sections, f"## Measured, and not read\n\nFor records, or for later.\n\n{unread}"])


def _section(title: str, width: int, first: list[str], features: tuple[Features, ...], columns: Columns) -> str:
    rows = [*first, *_rows(features, columns)]
    return "\n".join([f"## {title}\n", f"{width} numbers.\n", *HEADER, *rows, ""])


def _node(kind: NodeType) -> str:
    features, columns = NODE_FEATURES[kind.name], kind.columns
    first, last = [], []
    if kind.name == "seed":
        first = [_observed(SLOT_NUMBERS, columns)]
        last = [
            _row("internal_level", "x, as a share of the highest level", OBSERVATION, "internal_level"),
            _row(
                ", ".join(f"allows_{method}" for method in BLENDING_METHODS),
                "1 or 0 each",
                METHODS,
                f"allows_{BLENDING_METHODS[0]}",
            ),
        ]
    codes = [
        _row(code.name, f"number from 1 to {code.capacity}", CODES[name], "the number 0")
        for code in kind.codes
        if (name := f"{kind.name}.{code.name}") in CODES
    ]
    if kind.name == "seed":
        codes.append("| stage | number of the stage | `seeds.stage` | every source | none |")
    if kind.fallback is not None:
        key = f"layers.{kind.fallback.name}"
        row = _row(kind.fallback.name, "a learned row in place of what is unknown", key, "the number 0")
        codes.append(row.replace(f"`{key}`", f"`{key}` of the layer that feeds it"))
    table = _section(f"{kind.name.capitalize()} nodes", columns.width, first, features, columns)
    return "\n".join([table.rstrip("\n"), *last, *codes, ""])


def _edge(relation: Relation) -> str:
    title, columns = f"{relation.source} {relation.name} {relation.target}", relation.attributes
    if relation.name in EDGE_FEATURES:
        return _section(title, columns.width, [], EDGE_FEATURES[relation.name], columns)
    names = ", ".join(columns.names)
    row = f"| {names} | 1 for the edge's method, else 0 | `allowed.method` | {_who('allowed.method')} | none |"
    return _section(title, columns.width, [row], (), columns)


def _observed(names: tuple[str, ...], columns: Columns) -> str:
    return _row(", ".join(names), "x", OBSERVATION, _mask(columns, names[0]))


def _rows(features: tuple[Features, ...], columns: Columns) -> Iterator[str]:
    for of in features:
        for name, key, formula in zip(of.columns, of.keys, of.formulas, strict=True):
            fill = columns.fills[columns.names.index(name)]
            mask = _mask(columns, name)
            yield _row(name, formula, key, f"{mask}; reads {fill:g}" if fill else mask)


def _mask(columns: Columns, name: str) -> str:
    """Name of the mask of a number: that of the first with it."""
    block = columns.block_of[columns.names.index(name)]
    return columns.names[columns.block_of.index(block)]


def _row(name: str, formula: str, key: str, mask: str) -> str:
    return f"| {name} | {formula} | `{key}` | {_who(key)} | {mask} |"


def _who(key: str) -> str:
    sources = {"greenhouse": GREENHOUSE, "probe": PROBE, "grower": GROWER}
    return ", ".join(name for name, keys in sources.items() if key in keys) or "—"


if __name__ == "__main__":
    (Path(sys.argv[1]) / PAGE_FILE).write_text(page())
