"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable

from envs.tasks.base import Task
from envs.tasks.digits import digits, digits_impaired, digits_mixed, digits_scale

_TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits,
    "digits_impaired": digits_impaired,
    "digits_mixed": digits_mixed,
    "digits_scale": digits_scale,
}


def task_names() -> tuple[str, ...]:
    """Every known task."""
    return tuple(_TASKS)


def make_task(name: str) -> Task:
    """Build a task.

    Raises:
        ValueError: no such task.
    """
    if name not in _TASKS:
        raise ValueError(f"unknown task {name!r}: choose one of {', '.join(_TASKS)}")
    return _TASKS[name]()
