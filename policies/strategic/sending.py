"""From arrays back to the columns of a packet: what a source sends of one host."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from envs.vocabulary import BLENDING_METHODS
from policies.strategic.graph_columns import (
    Activations,
    Allowed,
    Columns,
    Connects,
    Feeds,
    Graph,
    Influences,
    Layers,
    Monitors,
    Parameters,
    Tunes,
)
from policies.strategic.measured import EDGE_TABLES, NODE_TABLES, NUMBERS, TEXTS, Measured
from policies.strategic.packet_values import LARGEST_NUMBER

WHOLE = (
    *("layers.input_channels", "layers.output_channels", "layers.in_degree", "layers.out_degree"),
    "parameters.count",
)
"""Keys of whole numbers."""
_KINDS: Mapping[str, type[Columns]] = {
    "layers": Layers,
    "activations": Activations,
    "parameters": Parameters,
    "connects": Connects,
    "feeds": Feeds,
    "influences": Influences,
    "tunes": Tunes,
}


def graph_of(measured: Measured, host: int = 0) -> Graph:
    """The graph of one of N hosts. A column of which nothing is known is left out.

    Raises:
        ValidationError: more nodes or edges than a packet takes, or numbers outside their ranges.
    """
    tables: dict[str, Any] = {}
    for name in (*NODE_TABLES, *EDGE_TABLES):
        ends = {"name": measured.nodes[name]} if name in NODE_TABLES else _ends(measured.ends[name][host])
        tables[name] = _KINDS[name](**ends, **_columns(measured, name, host))
    methods = tuple(BLENDING_METHODS[method] for method in measured.methods[host].tolist())
    return Graph(
        layer_count=measured.layer_count,
        sampled=measured.sampled,
        allowed=Allowed(**_ends(measured.ends["allowed"][host]), method=methods),
        **tables,
    )


def monitors_of(measured: Measured, host: int = 0) -> list[Monitors | None]:
    """What each slot monitors, in the order of slots; None where nobody says."""
    found: list[Monitors | None] = []
    columns = _columns(measured, "monitors", host)
    ends = measured.ends["monitors"][host].tolist()
    for slot, watched in enumerate(measured.watched[host].tolist()):
        rows = [at for at, (source, _) in enumerate(ends) if source == slot]
        of = {name: tuple(values[row] for row in rows) for name, values in columns.items()}
        found.append(Monitors(layer=tuple(ends[row][1] for row in rows), **of) if watched else None)
    return found


def _ends(pairs: Tensor) -> dict[str, tuple[int, ...]]:
    source, target = pairs.T.tolist()
    return {"source": tuple(source), "target": tuple(target)}


def _columns(measured: Measured, table: str, host: int) -> dict[str, tuple[Any, ...]]:
    """The columns of a table of which something is known."""
    columns: dict[str, tuple[Any, ...]] = {}
    for key in NUMBERS:
        if key.startswith(f"{table}."):
            kind = int if key in WHOLE else float
            # float32 rounds the largest number of a packet up.
            values = measured.number(key)[host].double().clamp(-LARGEST_NUMBER, LARGEST_NUMBER).tolist()
            columns[key.partition(".")[2]] = tuple(None if math.isnan(value) else kind(value) for value in values)
    for key in TEXTS:
        if key.startswith(f"{table}.") and key in measured.texts:
            names = measured.texts[key]
            rows = names.index[host].tolist()
            columns[key.partition(".")[2]] = tuple(None if row < 0 else names.vocabulary[row] for row in rows)
    return {name: values for name, values in columns.items() if any(value is not None for value in values)}
