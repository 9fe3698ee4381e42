"""What a number may be, said once, in the annotation of its field: ``lr: Positive = 3e-4``.

Whoever makes the object is held to it, be it in Python, on the command line or from a file.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """Numbers from ``least`` to ``most``; infinities and NaN are in none.

    Attributes:
        least: The smallest, or the limit that all are above.
        most: The largest.
        whole: Only whole numbers.
        above: ``least`` itself is not one of them.
    """

    least: float
    most: float
    whole: bool = False
    above: bool = False

    def __contains__(self, value: object) -> bool:
        """Whether it is such a number."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        number: Any = value
        return bool(self.least < number if self.above else self.least <= number) and bool(number <= self.most)

    def __str__(self) -> str:
        """In words."""
        kind = "a whole number" if self.whole else "a number"
        least, most = (f"{limit:,}" if self.whole else f"{limit:g}" for limit in (self.least, self.most))
        return f"{kind} above {least}, at most {most}" if self.above else f"{kind} from {least} to {most}"


@dataclass(frozen=True)
class Interval(Range):
    """A whole number, or the text ``15..150``: any from 15 to 150, both included."""

    def __contains__(self, value: object) -> bool:
        """Whether it is one of the two."""
        if not isinstance(value, str):
            return super().__contains__(value)
        try:
            numbers = whole_numbers_in(value)
        except ValueError:
            return False
        return bool(numbers) and all(super(Interval, self).__contains__(end) for end in (numbers[0], numbers[-1]))

    def __str__(self) -> str:
        """In words."""
        return f"{super().__str__()}, or an interval of them such as 15..150"


def whole_numbers_in(interval: int | str) -> range:
    """The numbers of an :class:`Interval`; none where it ends before it begins.

    Raises:
        ValueError: a text that is no interval.
    """
    if isinstance(interval, int):
        return range(interval, interval + 1)
    found = re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", interval)
    if found is None:
        raise ValueError(f"an interval is written as 15..150, got {interval!r}")
    return range(int(found[1]), int(found[2]) + 1)


LARGEST = 1e9
"""Of numbers without a meaning of their own beyond: float32, in which they are computed with, still has room above."""

Finite = Annotated[float, Range(-LARGEST, LARGEST)]
NotNegative = Annotated[float, Range(0.0, LARGEST)]
Positive = Annotated[float, Range(0.0, LARGEST, above=True)]
Share = Annotated[float, Range(0.0, 1.0)]

Count = Annotated[int, Range(1, 10**9, whole=True)]
Natural = Annotated[int, Range(0, 10**9, whole=True)]
Processes = Annotated[int, Range(1, 4096, whole=True)]
OtherProcesses = Annotated[int, Range(0, 4096, whole=True)]
"""Where 0 means that this process does it itself."""
Large = Annotated[int, Range(0, 2**53, whole=True)]
"""Seeds and sums over a whole training: whatever every JSON reader keeps exactly."""


def check_numbers(settings: Any, refusal: type[Exception] = ValueError) -> None:
    """Hold an object's numbers to the ranges in its class's annotations, those in mappings and tuples too.

    Args:
        settings: The object.
        refusal: What is raised.

    Raises:
        refusal: A number out of range, or none where one must be; the message names the field and what it may be.
    """
    kind: Any = type(settings)  # mypy takes the __hash__ of its objects for its own
    for field, limits in ranges_of(kind).items():
        for name, value in _numbers(field, getattr(settings, field)):
            if value not in limits:
                raise refusal(f"{name} must be {limits}, got {value!r}")


@functools.cache
def ranges_of(kind: type) -> dict[str, Range]:
    """The range of every field of a class that has one."""
    hints = get_type_hints(kind, include_extras=True)
    found = ((name, next(_found(hint), None)) for name, hint in hints.items())
    return {name: limits for name, limits in found if limits is not None}


def _found(hint: Any) -> Iterator[Range]:
    """Every range in an annotation."""
    if get_origin(hint) is Annotated:
        yield from (mark for mark in hint.__metadata__ if isinstance(mark, Range))
        yield from _found(hint.__origin__)
    else:
        for argument in get_args(hint):
            yield from _found(argument)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What must be numbers in a field's value, by name."""
    if isinstance(value, Mapping):
        yield from ((f"{name}[{key}]", item) for key, item in value.items())
    elif isinstance(value, tuple | list):
        yield from ((f"{name}[{index}]", item) for index, item in enumerate(value))
    elif value is not None:
        yield name, value
