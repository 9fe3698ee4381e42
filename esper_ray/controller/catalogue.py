"""What is known of every blueprint before one is planted: where it grows, what it costs, and how risky it is.

Where and what come from the blueprints themselves, risks from :mod:`esper_ray.controller.outcomes`. A file of one's own
says what nobody can measure: which blueprints are quarantined, and which hazards they have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from envs.batched.parameters import count_parameters
from envs.blueprints import blueprints_for
from envs.live.places import KINDS, Kind
from envs.vocabulary import BLENDING_METHODS, INTERNAL_KINDS, INTERNAL_START_LEVEL, Blueprint
from esper_ray.controller.commands import Reason, Severity
from esper_ray.controller.outcomes import RecordedOutcomes, SeedOutcomes
from esper_ray.controller.signals import ROWS
from esper_ray.controller.thresholds import Thresholds
from esper_ray.errors import UserError
from esper_ray.reading import checked, read_json
from policies.strategic.measured import BLUEPRINT_NAMES
from policies.strategic.packet_values import BlendingMethod, ByName, Name

OUTCOMES_FILE = Path(__file__).with_name("outcomes.json")
"""What ships; ``studies/catalogue.sh`` writes it."""
USUAL_TTL = 30.0
"""Seconds for which a catalogue is taken for what it was."""


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hazard(_Given):
    """Something that can go wrong with a kind of seed.

    Attributes:
        name: Short, for records and the graph's registry of hazards.
        severity: HIGH turns what adds such a seed into OPTIMIZER, CRITICAL masks the blueprint; less is only told.
        what: In words: what happens, and where.
    """

    name: Name
    severity: Annotated[Severity, ByName()]
    what: Annotated[str, Field(min_length=1, max_length=500)]


class Amendment(_Given):
    """What somebody's file says of a blueprint.

    Attributes:
        quarantined: Why no such seed may be planted; None where it may.
        hazards: Beside those that are known.
        blending_methods: The only ones by which it may be blended in; None for all.
    """

    quarantined: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    hazards: tuple[Hazard, ...] = ()
    blending_methods: Annotated[tuple[BlendingMethod, ...], Field(min_length=1)] | None = None


_NO_CACHE = Hazard(
    name="no_cache",
    severity=Severity.WARNING,
    what="On sequences it knows no cache of keys and values: a decoder that generates token by token with one computes "
    "something else than it was trained to.",
)
_HAZARDS = {Blueprint.ATTENTION: (_NO_CACHE,), Blueprint.FLEX_ATTENTION: (_NO_CACHE,)}
"""What is known of our own blueprints (docs/grow.md)."""


@dataclass(frozen=True)
class Entry:
    """One blueprint (:class:`esper_ray.controller.case.BlueprintSheet`).

    Attributes:
        blueprint: Which.
        kinds: Kinds of slot that it grows in.
        outcomes: What became of its seeds on record.
        hazards: What can go wrong.
        blending_methods: By which it may be blended in.
        quarantined: Why it must not be planted; None where it may.
    """

    blueprint: Blueprint
    kinds: tuple[Kind, ...]
    outcomes: SeedOutcomes
    hazards: tuple[Hazard, ...]
    blending_methods: tuple[str, ...]
    quarantined: str | None

    @property
    def name(self) -> str:
        """As packets spell it."""
        return BLUEPRINT_NAMES[self.blueprint]

    @property
    def risk(self) -> float:
        """See :attr:`esper_ray.controller.outcomes.SeedOutcomes.risk`."""
        return self.outcomes.risk

    @property
    def tier(self) -> Severity:
        """What the risk table makes of the risk, as it comes: INFO where nothing."""
        signal = ROWS[Reason.BLUEPRINT_RISK].of(self.risk, self.name, Thresholds())
        return Severity.INFO if signal is None else signal.severity

    @property
    def hazard(self) -> Severity | None:
        """The worst of its hazards; None where there is none."""
        return max((hazard.severity for hazard in self.hazards), default=None)

    def parameters(self, kind: Kind, width: int) -> int:
        """Parameters of a seed as it germinates, without a gate.

        Args:
            kind: Of the slot.
            width: Channels or features there.

        Raises:
            KeyError: it grows in no such slot.
        """
        internal = INTERNAL_KINDS.get(self.blueprint)
        level = None if internal is None else INTERNAL_START_LEVEL[internal]
        return count_parameters(blueprints_for(kind.topology)[self.blueprint].parameters(width), level)


Catalogue = Mapping[str, Entry]
"""All blueprints that can grow, by name, in the order of :class:`envs.vocabulary.Blueprint`."""


def make_catalogue(recorded: RecordedOutcomes, amendments: Mapping[str, Amendment]) -> Catalogue:
    """The catalogue from what is on record, and what somebody says of blueprints, by name."""
    entries = {}
    for blueprint, name in zip(Blueprint, BLUEPRINT_NAMES, strict=True):
        kinds = tuple(kind for kind in KINDS.values() if blueprint in blueprints_for(kind.topology))
        if kinds:
            amended = amendments.get(name, Amendment())
            entries[name] = Entry(
                blueprint,
                kinds,
                recorded.blueprints.get(name, SeedOutcomes()),
                _HAZARDS.get(blueprint, ()) + amended.hazards,
                amended.blending_methods or BLENDING_METHODS,
                amended.quarantined,
            )
    return entries


def shipped_outcomes() -> RecordedOutcomes:
    """What ships with the package."""
    return RecordedOutcomes.model_validate_json(OUTCOMES_FILE.read_bytes())


def read_catalogue(amendments: Path | None = None) -> Catalogue:
    """The catalogue by the outcomes that ship.

    Args:
        amendments: JSON file of one's own: name of a blueprint → :class:`Amendment`.

    Raises:
        UserError: the file cannot be read, names a blueprint that there is not, or says something else.
    """
    given = {}
    if amendments is not None:
        given = checked(read_json(amendments), TypeAdapter(dict[str, Amendment]), str(amendments))
    catalogue = make_catalogue(shipped_outcomes(), given)
    if unknown := given.keys() - catalogue.keys():
        raise UserError(f"{amendments}: there is no blueprint {min(unknown)!r}: choose from {', '.join(catalogue)}")
    return catalogue


class CatalogueCache:
    """A catalogue that is read anew when it is old, so that an edited file counts without a restart.

    Args:
        read: Reads it; whoever calls bounds the time that this may take.
        ttl: Seconds for which it is taken for what it was.
        now: Seconds on a clock that never goes back.
    """

    def __init__(
        self, read: Callable[[], Catalogue], ttl: float = USUAL_TTL, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._read, self._ttl, self._now = read, ttl, now
        self._held: tuple[float, Catalogue] | None = None

    def get(self) -> Catalogue:
        """The catalogue.

        Raises:
            UserError: it is old, and cannot be read anew; the next call tries again.
        """
        now, held = self._now(), self._held
        if held is None or now - held[0] >= self._ttl:
            held = self._held = (now, self._read())
        return held[1]
