"""How much was measured of what a source said that it measures.

What stands in for something that is absent is no measurement: a table without rows counts as one row of which nothing
is known, and coverage is counted in the packet, before anything is filled in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

from policies.strategic.messages import SystemState

logger = logging.getLogger(__name__)

CRITICAL_AT_MOST = 0.10
WARNING_BELOW = 0.30

OF_LIVING_SEEDS = ("seeds", "monitors")
"""Types of which there is nothing to measure in a host whose slots are empty."""


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
        measured, expected = {}, {}
        for key in state.declared:
            values = state.measurements(key)
            nothing_lives = (
                _type_of(key) in OF_LIVING_SEEDS and state.seeds and not any(s.is_living for s in state.seeds)
            )
            measured[key] = sum(value is not None for value in values)
            expected[key] = len(values) or (0 if nothing_lives else 1)
        return cls(measured, expected)

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
        return CoverageLevel.WARNING if self.average < WARNING_BELOW else CoverageLevel.OK

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
            share = 100.0 * coverage.average
            logger.log(level, "%s: %.0f %% of what is declared was measured: %s", self.session, share, level.name)

    def _is_new(self, event: object) -> bool:
        new = event not in self._told
        self._told.add(event)
        return new


def _type_of(key: str) -> str:
    return key.partition(".")[0]
