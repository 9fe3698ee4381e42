"""Data, host and slots of each task."""

from envs.tasks.base import Split, Task
from envs.tasks.registry import make_task, task_names

__all__ = ["Split", "Task", "make_task", "task_names"]
