"""A sample of a large model's graph: what its slots watch, where the loss is, and what lies around it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from envs.ranges import Range, check_numbers
from policies.strategic.graph_columns import MOST_EDGES, MOST_NODES
from policies.strategic.measured import TABLES, Measured, Names
from policies.strategic.schema import FORWARD_RELATIONS

_ENDS = {relation.name: (TABLES[relation.source], TABLES[relation.target]) for relation in FORWARD_RELATIONS}
_NOBODY = -1

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """What is sent of a large model.

    Attributes:
        nodes: Of each kind, at most; a packet holds no more than 128.
        roots: Layers that it grows from, at most: those that slots monitor, then those with the largest loss shares.

    Raises:
        ValueError: a number out of range, or more roots than nodes.
    """

    nodes: Annotated[int, Range(1, MOST_NODES, whole=True)] = MOST_NODES
    roots: Annotated[int, Range(1, MOST_NODES, whole=True)] = 32

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.roots > self.nodes:
            raise ValueError(f"a sample of {self.nodes} layers cannot grow from {self.roots}: give fewer roots")


SAMPLING = Sampling()


def sample(measured: Measured, packet_id: str, sampling: Sampling = SAMPLING) -> Measured:
    """Some layers of a host, and what touches them; a host that has no more of anything is given back as it is.

    Around the roots it takes neighbours at random, nearer ones first, and where there are none left any layers. Of
    what is still too many, nodes of other kinds and edges, it takes some at random. Degrees and depths stay those of
    the whole model. The same packet id and the same host give the same sample.

    Args:
        measured: One host, N = 1.
        packet_id: Seed of what is drawn.
        sampling: How much; of the edges of each relation no more than a packet holds.
    """
    ends = {name: pairs[0].numpy() for name, pairs in measured.ends.items()}
    rows = {table: len(names) for table, names in measured.nodes.items()}
    if max(rows.values()) <= sampling.nodes and max(map(len, ends.values())) <= MOST_EDGES:
        return measured
    digest = hashlib.sha256(packet_id.encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest))
    kept = {table: np.arange(count) for table, count in rows.items()}
    if rows["layers"] > sampling.nodes:
        roots = _roots(measured, ends["monitors"], sampling.roots)
        kept["layers"] = _grown(roots, ends["connects"], rows["layers"], sampling.nodes - len(roots), generator)
        kept |= {table: _near(ends, table, kept["layers"]) for table in rows if table != "layers"}
    return _only(measured, ends, {table: _some(of, sampling.nodes, generator) for table, of in kept.items()}, generator)


def _some(rows: IntArray, most: int, generator: np.random.Generator) -> IntArray:
    """At most so many of some rows, in order."""
    return rows if len(rows) <= most else np.sort(generator.choice(rows, most, replace=False))


def _roots(measured: Measured, monitors: IntArray, most: int) -> IntArray:
    watched = monitors[:, 1]
    shares = measured.number("layers.loss_share")[0].nan_to_num(nan=-1.0).numpy()
    largest = np.argsort(-shares, kind="stable")[:most]
    return _first_of_each(np.concatenate([watched[watched >= 0], largest]))[:most]


def _first_of_each(values: IntArray) -> IntArray:
    _, first = np.unique(values, return_index=True)
    return values[np.sort(first)]


def _grown(roots: IntArray, connects: IntArray, layers: int, room: int, generator: np.random.Generator) -> IntArray:
    """The rows of a sample around its roots, in order; there is room for so many more."""
    starts, neighbours = _adjacency(connects, layers)
    chosen = np.zeros(layers, bool)
    chosen[roots] = True
    frontier = roots
    while room and len(frontier):
        around = np.concatenate([neighbours[starts[at] : starts[at + 1]] for at in frontier])
        new = np.unique(around[~chosen[around]])
        frontier = generator.permutation(new)[:room]
        chosen[frontier] = True
        room -= len(frontier)
    chosen[generator.permutation(np.flatnonzero(~chosen))[:room]] = True
    return np.flatnonzero(chosen)


def _adjacency(connects: IntArray, layers: int) -> tuple[IntArray, IntArray]:
    """The neighbours of each layer, whichever way data passes: where each one's begin ``[layers + 1]``, and all."""
    pairs = connects[(connects >= 0).all(axis=1)]
    both = np.concatenate([pairs, pairs[:, ::-1]])
    # Numbers of two bytes are sorted by counting, five times as fast.
    rows = both[:, 0].astype(np.uint16) if layers <= np.iinfo(np.uint16).max else both[:, 0]
    starts = np.concatenate([[0], np.bincount(both[:, 0], minlength=layers).cumsum()])
    return starts, both[np.argsort(rows, kind="stable"), 1]


def _near(ends: Mapping[str, IntArray], table: str, layers: IntArray) -> IntArray:
    """The rows of a table that edges join to the layers."""
    found = []
    for name, tables in _ENDS.items():
        if set(tables) == {table, "layers"}:
            own, layer = ends[name][:, tables.index(table)], ends[name][:, tables.index("layers")]
            found.append(own[np.isin(layer, layers) & (own >= 0)])
    return np.unique(np.concatenate(found))


def _only(
    measured: Measured, ends: Mapping[str, IntArray], kept: dict[str, IntArray], generator: np.random.Generator
) -> Measured:
    """The host with some rows of its tables of nodes, and the edges between them, as many as a packet holds."""
    moved = {table: _moved(of, len(measured.nodes[table])) for table, of in kept.items()}
    rows, pairs = dict(kept), {}
    for name, tables in _ENDS.items():
        old = zip(ends[name].T, tables, strict=True)
        new = np.stack([moved[table][at] if table in moved else at for at, table in old], axis=1)
        rows[name] = _some(np.flatnonzero((new >= 0).all(axis=1)), MOST_EDGES, generator)
        pairs[name] = torch.from_numpy(new[rows[name]]).unsqueeze(0)

    def taken(key: str, values: Tensor) -> Tensor:
        of = rows.get(key.partition(".")[0])
        return values if of is None else values[:, torch.from_numpy(of)]

    return replace(
        measured,
        nodes={table: tuple(measured.nodes[table][row] for row in of.tolist()) for table, of in kept.items()},
        ends=pairs,
        methods=taken("allowed.method", measured.methods),
        numbers={key: taken(key, values) for key, values in measured.numbers.items()},
        sampled=True,
        texts={key: Names(names.vocabulary, taken(key, names.index)) for key, names in measured.texts.items()},
    )


def _moved(rows: IntArray, count: int) -> IntArray:
    """New number of each old row, -1 of one that is gone; the last is what -1 reads."""
    moved = np.full(count + 1, _NOBODY, np.int64)
    moved[rows] = np.arange(len(rows))
    return moved
