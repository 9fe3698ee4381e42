"""Data, host and slots of each task."""

from envs.tasks.base import LazySplits, Split, Task, TaskError
from envs.tasks.registry import make_task, resolve_arguments, task_arguments, task_names

__all__ = [
    "LazySplits",
    "Split",
    "Task",
    "TaskError",
    "make_task",
    "resolve_arguments",
    "task_arguments",
    "task_names",
]
