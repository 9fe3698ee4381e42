"""``inspect``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console

from esper_ray.config import EnvConfig
from esper_ray.fields import TaskArgs


@dataclass(frozen=True)
class Inspect:
    """Show what a task is made of: hosts, slots, blueprints, observation, action heads. Needs no data."""

    task: tyro.conf.Positional[str]
    """Name of the task."""
    data_dir: Path | None = None
    """As for train."""
    task_args: TaskArgs = field(default_factory=dict)
    """As for train."""
    markdown: bool = False
    """Print a page instead of tables."""

    def run(self, console: Console) -> None:
        """Print it."""
        from esper_ray.measuring.inspection import inspect_task, markdown, print_sections

        env = EnvConfig(task=self.task, data_dir=self.data_dir, task_args=self.task_args)
        sections = inspect_task(env.make_task())
        if self.markdown:
            console.out(markdown(self.task, sections), end="", highlight=False)
        else:
            print_sections(self.task, sections, console)
