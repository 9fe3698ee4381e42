"""Tasks by name: the built-in ones, and those that installed packages offer as entry points.

A task is a function that returns a :class:`envs.tasks.base.Task`. Its keyword arguments are the task's arguments:
given as text (on the command line, in a stored config), they are converted by their annotation. docs/tasks.md shows
how to add one.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from envs.ranges import LARGEST
from envs.tasks.base import Task, TaskError
from envs.tasks.cifar import cifar10, cifar_impaired, cifar_scale
from envs.tasks.digits import digits, digits_impaired, digits_mixed, digits_scale
from envs.tasks.mnist5k import mnist5k_impaired, mnist5k_mixed
from envs.tasks.tabular import tabular, tabular_wide
from envs.tasks.text import text, text_attending

TaskFactory = Callable[..., Task]

ENTRY_POINTS = "esper_ray.tasks"
"""Entry-point group in which packages offer their tasks."""

_BUILT_IN: dict[str, TaskFactory] = {
    "digits": digits,
    "digits_impaired": digits_impaired,
    "digits_mixed": digits_mixed,
    "digits_scale": digits_scale,
    "tabular": tabular,
    "tabular_wide": tabular_wide,
    "text": text,
    "text_attending": text_attending,
    "mnist5k_impaired": mnist5k_impaired,
    "mnist5k_mixed": mnist5k_mixed,
    "cifar10": cifar10,
    "cifar_impaired": cifar_impaired,
    "cifar_scale": cifar_scale,
}


def task_names() -> tuple[str, ...]:
    """Every known task, the built-in ones first."""
    return tuple(dict.fromkeys([*_BUILT_IN, *sorted(entry.name for entry in entry_points(group=ENTRY_POINTS))]))


def make_task(name: str, arguments: Mapping[str, str] | None = None) -> Task:
    """Build a task.

    Args:
        name: One of :func:`task_names`.
        arguments: The task's own, as text.

    Raises:
        TaskError: no such task, or arguments that it does not take.
    """
    task = _factory(name)(**_converted(name, arguments or {}))
    if not isinstance(task, Task):
        raise TaskError(f"the function of task {name!r} must return an envs.tasks.Task, got {task!r}")
    return task


def task_arguments(name: str) -> dict[str, type]:
    """The arguments that a task takes, and what their text is converted to.

    Raises:
        TaskError: no such task, or a factory whose signature cannot be filled from text.
    """
    kinds = {}
    for parameter in inspect.signature(_factory(name), eval_str=True).parameters.values():
        kind = _without_none(parameter.annotation)
        if kind not in (str, int, float, Path) or parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_KEYWORD):
            raise TaskError(
                f"argument {parameter.name} of task {name!r} must be a keyword annotated as str, int, float or Path, "
                f"each with or without `| None`, got `{parameter}`"
            )
        kinds[parameter.name] = kind
    return kinds


def resolve_arguments(name: str, arguments: Mapping[str, str]) -> dict[str, str]:
    """Check a task's arguments, and make its paths absolute, so that they mean the same in every process.

    Raises:
        TaskError: no such task, or arguments that it does not take.
    """
    values = _converted(name, arguments)
    return {key: str(value) if isinstance(value, Path) else arguments[key] for key, value in values.items()}


def _converted(name: str, arguments: Mapping[str, str]) -> dict[str, Any]:
    kinds = task_arguments(name)
    unknown = sorted(arguments.keys() - kinds.keys())
    if unknown:
        raise TaskError(f"task {name!r} takes no argument {', '.join(unknown)}: it knows {', '.join(kinds) or 'none'}")
    required = inspect.signature(_factory(name)).parameters.values()
    missing = [p.name for p in required if p.default is p.empty and p.name not in arguments]
    if missing:
        raise TaskError(f"task {name!r} needs the argument {', '.join(missing)}: give it as NAME=VALUE")
    return {key: _convert(name, key, kinds[key], text) for key, text in arguments.items()}


def _convert(name: str, key: str, kind: type, text: str) -> object:
    try:
        value = Path(text).expanduser().resolve() if kind is Path else kind(text)
    except (ValueError, RuntimeError, OSError) as error:  # no number, nobody's home, a loop of links
        raise TaskError(f"argument {key} of task {name!r} must be of type {kind.__name__}, got {text!r}") from error
    if isinstance(value, int | float) and not abs(value) <= LARGEST:
        raise TaskError(f"argument {key} of task {name!r} must be a number up to {LARGEST:g}, got {text}")
    return value


def _without_none(annotation: Any) -> Any:
    """``X`` for the annotation ``X | None``; anything else as it is."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    members = [member for member in get_args(annotation) if member is not types.NoneType]
    return members[0] if len(members) == 1 else annotation


def _factory(name: str) -> TaskFactory:
    offers = entry_points(group=ENTRY_POINTS, name=name)
    if name not in _BUILT_IN and not offers:
        raise TaskError(f"unknown task {name!r}: choose one of {', '.join(task_names())}")
    offers_by_value = {offer.value: offer for offer in offers}  # an editable install may be listed twice
    if len(offers_by_value) + (name in _BUILT_IN) > 1:
        owners = ["esper-ray"] * (name in _BUILT_IN) + sorted(offers_by_value)
        raise TaskError(f"more than one package offers a task {name!r}: {', '.join(owners)}; rename or remove one")
    return _BUILT_IN[name] if name in _BUILT_IN else _load(*offers_by_value.values())


def _load(offer: EntryPoint) -> TaskFactory:
    try:
        factory: TaskFactory = offer.load()
    except (ImportError, AttributeError) as error:
        raise TaskError(
            f"task {offer.name!r} is registered as {offer.value}, which cannot be imported: {error}"
        ) from error
    return factory
