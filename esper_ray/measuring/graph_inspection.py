"""A task's host as the graph that the strategic policy reads: its nodes, edges and numbers after an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from envs.graph.layout import GraphLayout
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.tasks import Task
from esper_ray.measuring.inspection import COLUMNS, Section

HOST_SEED = 0
"""Of the host that is shown."""
MARGIN = 3
"""Blanks beside a cell, on the terminal."""
UNKNOWN_CELL = "–"
Column = tuple[str, list[str]]
"""Heading and cells."""

_NOTES = {
    "layers": "Nodes, in the order in which data pass them.",
    "activations": "Nodes: the functions between layers.",
    "parameters": "Nodes: the optimiser's groups of parameters.",
    "seeds": "Nodes: the slots. What is known of a seed besides these numbers is in the flat observation.",
    "connects": "Edges: from a layer to one that reads it.",
    "feeds": "Edges: from a layer to the function behind it.",
    "influences": "Edges: from a function to a layer that reads it.",
    "tunes": "Edges: from a group of parameters to a layer.",
    "monitors": "Edges: from a slot to the layers beside it.",
    "metrics": "Of the whole host.",
}
_ENDS = {
    "connects": ("layers", "layers"),
    "feeds": ("layers", "activations"),
    "influences": ("activations", "layers"),
    "tunes": ("parameters", "layers"),
    "monitors": ("seeds", "layers"),
}


@dataclass(frozen=True)
class MeasuredGraph:
    """One host.

    Attributes:
        layout: Of its graph.
        numbers: Key → ``[rows]``, NaN where not measured.
    """

    layout: GraphLayout
    numbers: dict[str, npt.NDArray[np.float32]]

    @classmethod
    def after_an_epoch(cls, task: Task, max_epochs: int) -> Self:
        """Train a host of the task for an epoch; ``max_epochs`` is the length of its episode."""
        env = MorphogenesisVectorEnv(task=task, max_epochs=max_epochs, graph=True)
        assert env.graph is not None
        env.reset(seed=HOST_SEED)
        observation, *_ = env.step(np.zeros(env.action_space.shape or (), np.int64))  # WAIT
        views = env.graph.layout.views(torch.from_numpy(observation["graph"]))
        return cls(env.graph.layout, {key: values[0].numpy() for key, values in views.items()})

    def row_names(self, kind: str) -> tuple[str, ...]:
        """What the nodes of a type are called."""
        structure = self.layout.structure
        return structure.slots.slot_ids if kind == "seeds" else tuple(map(str, structure.names[f"{kind}.name"]))

    def ends(self, relation: str) -> list[tuple[str, str]]:
        """Names of source and target of each edge."""
        source, target = (self.row_names(kind) for kind in _ENDS[relation])
        return [(source[a], target[b]) for a, b in self.layout.structure.edges[relation].tolist()]


def graph_sections(graph: MeasuredGraph) -> list[Section]:
    """All nodes, edges and numbers as tables."""
    return [section for kind in _NOTES for section in _sections_of(graph, kind)]


def _sections_of(graph: MeasuredGraph, kind: str) -> Iterator[Section]:
    """A type's tables, a few numbers to each."""
    heads, rows = _rows(graph, kind)
    columns = [
        (_of(key, kind), [name or UNKNOWN_CELL for name in names])
        for key, names in graph.layout.structure.names.items()
        if _of(key, kind) not in ("", "name")
    ]
    columns += [
        (f">{_of(key, kind)}", [_cell(value) for value in values])
        for key, values in graph.numbers.items()
        if _of(key, kind)
    ]
    for part, chunk in enumerate(_beside(rows, columns)):
        yield Section(
            kind.capitalize() + (", continued" if part else ""),
            _NOTES[kind],
            (*heads, *(title.replace("_", " ") for title, _ in chunk)),
            tuple((*row, *cells) for row, *cells in zip(rows, *(cells for _, cells in chunk), strict=True)),
        )


def _beside(rows: list[tuple[str, ...]], columns: list[Column]) -> Iterator[list[Column]]:
    """The columns in parts, each of which has room on the terminal behind the names of the rows."""
    names = sum(max(map(len, texts)) + MARGIN for texts in zip(*rows, strict=True))
    part: list[Column] = []
    width = names
    for title, cells in columns:
        needed = max(map(len, (title, *cells))) + MARGIN
        if part and width + needed > COLUMNS:
            yield part
            part, width = [], names
        part.append((title, cells))
        width += needed
    yield part


def _rows(graph: MeasuredGraph, kind: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """What the rows of a type's table are called, under which headings."""
    if kind in _ENDS:
        return ("source", "target"), [*graph.ends(kind)]
    return ("name",), [(name,) for name in (("host",) if kind == "metrics" else graph.row_names(kind))]


def _of(key: str, kind: str) -> str:
    """The field of a key of this type; nothing of another's."""
    of, _, field = key.partition(".")
    return field if of == kind else ""


def _cell(value: np.float32) -> str:
    return UNKNOWN_CELL if np.isnan(value) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


# ---------------------------------------------------------------------- picture
LAYERS_AT, FUNCTIONS_AT, SLOTS_AT, GROUPS_AT = 0.0, 1.0, -1.3, -1.9
"""Heights of the rows of nodes."""
RELATION_COLOURS = {
    "connects": "#333333",
    "feeds": "#f4b860",
    "influences": "#d1495b",
    "monitors": "#2a9d8f",
    "tunes": "#c9ced6",
}


def draw_graph(graph: MeasuredGraph, title: str) -> Figure:
    """Nodes and edges; a layer's colour is its gradient norm, a wider arrow carries more numbers."""
    structure = graph.layout.structure
    layers = len(structure.layers)
    figure = Figure(figsize=(2.5 + 1.15 * layers, 5.4), layout="constrained", dpi=110)
    axes = figure.subplots()
    places = {
        "layers": [(float(at), LAYERS_AT) for at in range(layers)],
        "activations": [(at + 0.5, FUNCTIONS_AT) for at, _ in structure.edges["feeds"].tolist()],
        "seeds": [(sum(structure.beside(slot)) / 2, SLOTS_AT) for slot in range(structure.slots.num_slots)],
        "parameters": [((layers - 1) / 2, GROUPS_AT)],
    }
    for relation, colour in RELATION_COLOURS.items():
        _draw_edges(axes, graph, relation, colour, places)
    norms = graph.numbers["layers.gradient_norm"]
    known = norms[np.isfinite(norms) & (norms > 0)]
    scale = ScalarMappable(LogNorm(*((known.min(), known.max()) if len(known) else (1.0, 10.0))), colormaps["viridis"])
    colours = np.where((norms > 0)[:, None], scale.to_rgba(norms), 1.0)
    _draw_nodes(axes, graph, places, colours)
    figure.colorbar(scale, ax=axes, label="gradient norm of a layer", shrink=0.7)
    axes.set_xlim(-0.7, layers - 0.3)
    axes.set_ylim(GROUPS_AT - 0.4, FUNCTIONS_AT + 0.9)
    axes.set_axis_off()
    axes.legend(
        [FancyArrowPatch((0, 0), (1, 0), color=colour) for colour in RELATION_COLOURS.values()],
        list(RELATION_COLOURS),
        loc="upper center",
        ncols=len(RELATION_COLOURS),
        frameon=False,
    )
    axes.set_title(title, fontsize=11)
    return figure


def _draw_edges(
    axes: Axes, graph: MeasuredGraph, relation: str, colour: str, places: dict[str, list[tuple[float, float]]]
) -> None:
    source, target = (places[kind] for kind in _ENDS[relation])
    volumes = np.log10(np.maximum(graph.numbers["connects.data_flow_volume"], 1.0))
    for edge, (a, b) in enumerate(graph.layout.structure.edges[relation].tolist()):
        start, end = source[a], target[b]
        skips = relation == "connects" and b - a > 1  # what skips layers goes around them
        axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                connectionstyle=f"arc3,rad={-0.28 if skips else 0.0}",
                arrowstyle="-|>",
                mutation_scale=9,
                shrinkA=17,
                shrinkB=17,
                color=colour,
                lw=0.8 + (0.7 * float(volumes[edge]) if relation == "connects" else 0.0),
                alpha=0.35 if skips else 0.85,
            )
        )


def _draw_nodes(
    axes: Axes, graph: MeasuredGraph, places: dict[str, list[tuple[float, float]]], colours: npt.NDArray[Any]
) -> None:
    structure, sizes = graph.layout.structure, graph.numbers
    x, y = np.transpose(places["layers"])
    axes.scatter(x, y, s=900, c=colours, edgecolors="#333333", zorder=3)
    for kind, marker, colour in (("activations", "o", "#fdf0d5"), ("seeds", "D", "#d7efe9"), ("parameters", "s", "w")):
        x, y = np.transpose(places[kind]).reshape(2, -1)
        axes.scatter(x, y, s=500, c=colour, marker=marker, edgecolors="#333333", zorder=3)
    for at, layer in enumerate(structure.layers):
        inputs, outputs = (sizes[f"layers.{end}_channels"][at] for end in ("input", "output"))
        label = "\n".join((*layer.name.split("_"), layer.layer_type, f"{inputs:g} → {outputs:g}"))
        axes.annotate(
            *(label, places["layers"][at], (0, -20)),
            textcoords="offset points",
            ha="center",
            va="top",
            size=7,
            zorder=4,
            bbox={"boxstyle": "round,pad=0.1", "color": "white", "alpha": 0.75},
        )
    labels = {
        "activations": [str(layer.activation) for layer in structure.activations],
        "seeds": list(structure.slots.slot_ids),
        "parameters": [str(structure.names["parameters.optimizer_family"][0])],
    }
    for kind, texts in labels.items():
        for text, place in zip(texts, places[kind], strict=True):
            axes.annotate(text, place, ha="center", va="center", size=7, zorder=4)
