"""How much was measured of what a source said that it measures.

What stands in for something that is absent is no measurement: a table without rows counts as the rows that the rest of
the packet implies, of which nothing is known, and coverage is counted in the packet, before anything is filled in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

from policies.strategic.graph_columns import Columns, Graph
from policies.strategic.messages import SystemState

logger = logging.getLogger(__name__)

CRITICAL_AT_MOST = 0.10
WARNING_BELOW = 0.30

OF_THE_GRAPH = (
    *(kind for kind, field in Graph.model_fields.items() if isinstance(field.default, Columns)),
    *("seeds", "monitors"),
)
"""Types that are nodes and edges. Without one of them a graph is another graph, however much the others say."""


class CoverageLevel(IntEnum):
    """How bad it is; the numbers are those of logging."""

    OK = logging.INFO
    WARNING = logging.WARNING
    CRITICAL = logging.CRITICAL


@dataclass(frozen=True)
class Coverage:
    """Counts of entries per key of :data:`policies.strategic.messages.KEYS`. An entry is of one node or one edge.

    Attributes:
        measured: Entries that were measured, of every declared key.
        expected: Entries that there are; 0 where there is nothing to measure.
    """

    measured: Mapping[str, int]
    expected: Mapping[str, int]

    @classmethod
    def of(cls, state: SystemState) -> Coverage:
        """Of a packet."""
        values = {key: state.measurements(key) for key in state.declared}
        implied = _implied_rows(state)
        return cls(
            {key: sum(value is not None for value in of) for key, of in values.items()},
            {key: len(of) or implied.get(_type_of(key), 1) for key, of in values.items()},
        )

    @cached_property
    def keys(self) -> dict[str, float]:
        """Share that was measured, of every declared key of which there is something to measure."""
        return {key: self.measured[key] / count for key, count in self.expected.items() if count}

    @cached_property
    def types(self) -> dict[str, float]:
        """The same of every type of node, edge or other part, each entry counted once."""
        keys: dict[str, list[str]] = {}
        for key in self.keys:
            keys.setdefault(_type_of(key), []).append(key)
        return {kind: self._share(members) for kind, members in keys.items()}

    @cached_property
    def average(self) -> float:
        """Share that was measured of all entries; 0 where nothing is declared."""
        return self._share(self.keys)

    @property
    def level(self) -> CoverageLevel:
        """Whether that is enough to decide on."""
        if self.average <= CRITICAL_AT_MOST:
            return CoverageLevel.CRITICAL
        return CoverageLevel.WARNING if self.average < WARNING_BELOW or self.lacking else CoverageLevel.OK

    @property
    def lacking(self) -> tuple[str, ...]:
        """Types of nodes and edges that are declared and of which at most a tenth was measured."""
        return tuple(kind for kind in OF_THE_GRAPH if self.types.get(kind, 1.0) <= CRITICAL_AT_MOST)

    def missing(self, kind: str) -> tuple[str, ...]:
        """Declared keys of a type of which some entry was not measured."""
        return tuple(key for key, share in self.keys.items() if _type_of(key) == kind and share < 1.0)

    def _share(self, keys: Iterable[str]) -> float:
        keys = tuple(keys)
        expected = sum(self.expected[key] for key in keys)
        return sum(self.measured[key] for key in keys) / expected if expected else 0.0


@dataclass
class CoverageLog:
    """Says what is missing, once per session and type, and how bad it is, once per session and level.

    Attributes:
        session: What is logged about.
    """

    session: str
    _told: set[object] = field(default_factory=set, init=False, repr=False)

    def report(self, coverage: Coverage) -> None:
        """Log what is new about a packet's coverage."""
        for kind in coverage.types:
            missing = coverage.missing(kind)
            if missing and self._is_new(kind):
                logger.warning("%s: not or not always measured, though declared: %s", self.session, ", ".join(missing))
        level = coverage.level
        if level is not CoverageLevel.OK and self._is_new(level):
            share, lacking = 100.0 * coverage.average, f", hardly any of {', '.join(coverage.lacking)}"
            logger.log(
                level,
                "%s: %.0f %% of what is declared was measured%s: %s",
                *(self.session, share, lacking if coverage.lacking else "", level.name),
            )

    def _is_new(self, event: object) -> bool:
        new = event not in self._told
        self._told.add(event)
        return new


def _type_of(key: str) -> str:
    return key.partition(".")[0]


def _implied_rows(state: SystemState) -> dict[str, int]:
    """Rows that a table would have at least, had it been sent: layers are joined, functions read and are read.

    Of living seeds there are as many as there are, none where all slots are empty; of what is not named here one.
    """
    layers = state.graph.layers.size
    functions = state.graph.activations.size or max(layers, 1)
    living = sum(seed.is_living for seed in state.seeds) if state.seeds else 1
    return {
        "connects": layers - 1 if layers else 1,
        "tunes": max(layers, 1),
        **dict.fromkeys(("activations", "feeds", "influences"), functions),
        **dict.fromkeys(("seeds", "monitors"), living),
    }
