"""Fields of the settings that are written in a way of their own, on the command line and in files."""

from __future__ import annotations

from typing import Annotated

import tyro
from pydantic import BeforeValidator, Field

from envs.ranges import Interval


def _parse_pairs(words: list[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if not all(key and equals for key, equals, _ in pairs):
        raise ValueError(f"expected NAME=VALUE, got {' '.join(words)}")
    names = [key for key, _, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"every NAME can be given once, got {' '.join(words)}")
    return {key: value for key, _, value in pairs}


def _number_or_text(word: str) -> int | str:
    try:
        return int(word)
    except ValueError:
        return word


_PAIRS = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="NAME=VALUE ...",
    instance_from_str=_parse_pairs,
    is_instance=lambda instance: isinstance(instance, dict),
    str_from_instance=lambda instance: [f"{key}={value}" for key, value in instance.items()],
)
TaskArgs = Annotated[dict[str, str], _PAIRS, tyro.conf.arg(aliases=["--task-arg"])]
"""A dict of texts, written as ``--task-args NAME=VALUE ...`` on the command line."""
Horizons = Annotated[
    int | str,
    Interval(1, 10**6, whole=True),
    Field(union_mode="left_to_right"),  # a number given as a text is a number
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT|INT..INT",
        instance_from_str=lambda words: _number_or_text(words[0]),
        is_instance=lambda instance: isinstance(instance, int | str),
        str_from_instance=lambda instance: [str(instance)],
    ),
]
"""One number of epochs, or an interval to draw from, as text."""
Tasks = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda given: given.split(",") if isinstance(given, str) else given),
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="TASK,TASK...",
        instance_from_str=lambda words: tuple(words[0].split(",")),
        is_instance=lambda instance: isinstance(instance, tuple),
        str_from_instance=lambda instance: [",".join(instance)],
    ),
]
"""Names of tasks, written with commas between them."""
FirstTaskArgs = Annotated[dict[str, str], _PAIRS, tyro.conf.arg(aliases=["--first-task-arg"])]
"""The same for the beginning of a run."""
