"""Names that have no number of their own, such as layer types: each gets an index, which embeddings keep.

A name gets its index from 1 when it is first seen; 0 is what has none. :meth:`RegistryViews.extended` alone gives
indices: to training, and to :class:`Registries`, which keeps them in a file. Whoever decides reads a
:class:`RegistryView`, to which an unknown name is 0 and which takes in nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from envs.ranges import Count, check_numbers
from envs.vocabulary import BLENDING_METHODS
from policies.replacing import replacing

logger = logging.getLogger(__name__)

UNKNOWN = 0
"""Index of what has none: absent, never seen, or first seen when there was no room."""

PRE_SEEDED = {
    "optimizer_family": ("sgd", "adam", "adamw", "rmsprop", "adagrad"),
    "schedule": BLENDING_METHODS,
}
"""Names that a family begins with; the others begin empty."""


@dataclass(frozen=True)
class Capacities:
    """Names that each family has room for; an embedding has one row more. The fields are the families.

    Attributes:
        seed_kind: Kinds of seed, never individuals.
        blueprint: Kinds of module that a slot can hold.
        layer_type: Of layers.
        activation_type: Of activation functions.
        specialisation: What seeds are for.
        hazard: What can go wrong.
        optimizer_family: Of optimisers.
        schedule: Ways in which an alpha moves.

    Raises:
        ValueError: no whole number above 0, or less than the names that a family begins with.
    """

    seed_kind: Count = 64
    blueprint: Count = 64
    layer_type: Count = 64
    activation_type: Count = 32
    specialisation: Count = 32
    hazard: Count = 32
    optimizer_family: Count = 16
    schedule: Count = 16

    def __post_init__(self) -> None:
        check_numbers(self)
        for family, names in PRE_SEEDED.items():
            if getattr(self, family) < len(names):
                raise ValueError(
                    f"{family} must have room for the {len(names)} names that it begins with, "
                    f"got {getattr(self, family)}"
                )


@dataclass(frozen=True)
class RegistryView:
    """The names of one family at one time, to read.

    Attributes:
        family: What they are names of.
        capacity: Names that there is room for.
        names: The first has index 1.

    Raises:
        ValueError: more names than there is room for, a name twice, or one that is empty or no text.
    """

    family: str
    capacity: int
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) > self.capacity:
            raise ValueError(f"{self.family} has room for {self.capacity} names, got {len(self.names)}")
        for name in self.names:
            if not isinstance(name, str) or not name:
                raise ValueError(f"{self.family} takes names of at least one letter, got {name!r}")
        if len(self._indices) < len(self.names):
            raise ValueError(f"{self.family} has a name twice: {', '.join(self.names)}")

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names, start=1)}

    def index(self, name: str | None) -> int:
        """Index of a name; ``UNKNOWN`` of None and of what is not among the names."""
        return UNKNOWN if name is None else self._indices.get(name, UNKNOWN)

    def unknown(self, names: Iterable[str | None]) -> tuple[str, ...]:
        """Those that have no index, each once, in their order."""
        return tuple(dict.fromkeys(name for name in names if name is not None and name not in self._indices))

    def extended(self, names: Iterable[str | None]) -> RegistryView:
        """With further names behind these, as far as there is room; the first that finds none is logged."""
        new = self.unknown(names)
        room = self.capacity - len(self.names)
        if len(new) > room:
            logger.warning(
                "the registry of %s has room for %d names: %r and what else is new reads as unknown",
                self.family,
                self.capacity,
                new[room],
            )
        return replace(self, names=self.names + new[:room])

    @cached_property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of the pairs [name, index] in the order of indices, as ASCII JSON without spaces."""
        pairs = [[name, index] for name, index in self._indices.items()]
        return hashlib.sha256(json.dumps(pairs, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class RegistryViews:
    """The names of all families at one time, to read.

    Attributes:
        views: Family → its names; every field of :class:`Capacities` has one.
    """

    views: Mapping[str, RegistryView]

    @classmethod
    def of(cls, names: Mapping[str, Iterable[str]], capacities: Capacities) -> Self:
        """With names, which begin with what each family begins with.

        Raises:
            ValueError: a family is missing or unknown, lacks the names that it begins with, or as of
                :class:`RegistryView`.
        """
        room = asdict(capacities)
        if set(names) != set(room):
            raise ValueError(f"there must be the families {', '.join(room)}, got {', '.join(names) or 'none'}")
        views = cls({family: RegistryView(family, room[family], tuple(names[family])) for family in room})
        for family, first in PRE_SEEDED.items():
            if views[family].names[: len(first)] != first:
                raise ValueError(f"{family} must begin with {', '.join(first)}, got {', '.join(views[family].names)}")
        return views

    @classmethod
    def fresh(cls, capacities: Capacities) -> Self:
        """With nothing but what families begin with."""
        return cls.of({family: PRE_SEEDED.get(family, ()) for family in asdict(capacities)}, capacities)

    def __getitem__(self, family: str) -> RegistryView:
        return self.views[family]

    def extended(self, names: Mapping[str, Iterable[str | None]]) -> RegistryViews:
        """With further names by family, in the order in which they are seen; None is absent.

        Names for which there is no room read as unknown; the first of each family is logged.

        Raises:
            KeyError: an unknown family.
            ValueError: a name is empty.
        """
        return RegistryViews({**self.views, **{family: self[family].extended(new) for family, new in names.items()}})

    def unknown(self, names: Mapping[str, Iterable[str | None]]) -> dict[str, tuple[str, ...]]:
        """Those that have no index, by family; families without any are left out."""
        found = {family: self[family].unknown(given) for family, given in names.items()}
        return {family: missing for family, missing in found.items() if missing}

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Family → names, as they are stored."""
        return {family: view.names for family, view in self.views.items()}

    @property
    def digests(self) -> dict[str, str]:
        """Family → digest, as checkpoints carry them."""
        return {family: view.digest for family, view in self.views.items()}

    def check_digests(self, expected: Mapping[str, str]) -> None:
        """Hold the names to those that weights were trained with.

        Raises:
            ValueError: a family is missing or unknown, or has other names.
        """
        if set(expected) != set(self.views):
            got = ", ".join(expected) or "none"
            raise ValueError(f"there must be a digest of each of {', '.join(self.views)}, got {got}")
        for family, digest in self.digests.items():
            if expected[family] != digest:
                raise ValueError(
                    f"the names of {family} are not those that the weights were trained with: their digest is "
                    f"{digest} instead of {expected[family]}"
                )


class Registries:
    """The names of all families, in a file that several processes of one machine may add to.

    An index once given stays: in the file, and in every process.

    Args:
        path: A JSON file; its directory exists. A lock lies beside it.
        capacities: Of the families.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else, or more names than there is room for.
    """

    def __init__(self, path: Path, capacities: Capacities | None = None) -> None:
        self._path = path
        self._capacities = capacities or Capacities()
        self._full: set[str] = set()
        self._views = self._read()

    @property
    def views(self) -> RegistryViews:
        """The names as this process knows them now; what is registered later is not in them."""
        return self._views

    def register(self, names: Mapping[str, Iterable[str | None]]) -> RegistryViews:
        """Give indices to the names that have none; the file has them when this returns.

        Args:
            names: As for :meth:`RegistryViews.extended`; the first name for which there is no room is logged once.

        Returns:
            The names from now on.

        Raises:
            KeyError: an unknown family.
            OSError: the file cannot be written; nothing is registered.
            ValueError: a name is empty; nothing is registered.
        """
        new = {family: of for family, of in self._views.unknown(names).items() if family not in self._full}
        if new:
            with self._locked():
                # What other processes have added meanwhile stands there, and before what is added now.
                known = self._read()
                extended = known.extended(new)
                if extended != known:
                    self._write(extended)
                self._views = extended
                self._full.update(extended.unknown(new))
        return self._views

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._path.with_name(f".{self._path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self) -> RegistryViews:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return RegistryViews.fresh(self._capacities)
        try:
            names: Any = json.loads(content)
            if not isinstance(names, dict) or not all(isinstance(entry, list) for entry in names.values()):
                raise ValueError("it must say a list of names for each family")
            return RegistryViews.of(names, self._capacities)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self._path} does not hold registries: {error}") from error

    def _write(self, views: RegistryViews) -> None:
        with replacing(self._path) as unfinished:
            unfinished.write_text(json.dumps(views.names, indent=1))
