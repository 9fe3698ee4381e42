"""``inspect``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console

from esper_ray.commands.checks import picture_name, writable
from esper_ray.config import EnvConfig
from esper_ray.errors import UserError
from esper_ray.fields import TaskArgs

if TYPE_CHECKING:
    from esper_ray.measuring.inspection import Section


@dataclass(frozen=True)
class Inspect:
    """Show what a task is made of: hosts, slots, blueprints, observation, action heads. Only --graph needs data."""

    task: tyro.conf.Positional[str]
    """Name of the task."""
    data_dir: Path | None = None
    """As for train."""
    task_args: TaskArgs = field(default_factory=dict)
    """As for train."""
    markdown: bool = False
    """Print a page instead of tables."""
    graph: bool = False
    """Show one host as a graph instead: nodes, edges and what is measured of them after an epoch, with a picture."""
    output: Path | None = None
    """The picture of the graph; by default graph_TASK.png, here."""

    def run(self, console: Console) -> None:
        """Print it."""
        from esper_ray.measuring.inspection import inspect_task, markdown, print_sections

        if self.output is not None and not self.graph:
            raise UserError(f"--output {self.output} is for the picture of a graph: add --graph")
        env = EnvConfig(task=self.task, data_dir=self.data_dir, task_args=self.task_args)
        picture = self.output or Path(f"graph_{self.task}.png")
        sections = self._graph(env, picture) if self.graph else inspect_task(env.make_task())
        if self.markdown:
            console.out(markdown(self.task, sections), end="", highlight=False)
        else:
            print_sections(self.task, sections, console)
            if self.graph:
                console.print(f"\nwritten: {picture}")

    def _graph(self, env: EnvConfig, picture: Path) -> list[Section]:
        """Draw the graph, and say it in tables."""
        from esper_ray.keeping.writing import replace_figure
        from esper_ray.measuring.graph_inspection import MeasuredGraph, draw_graph, graph_sections
        from esper_ray.process import settle

        picture_name(picture)
        env.load_data()
        writable(picture)
        settle()
        graph = MeasuredGraph.after_an_epoch(env.make_task(), env.longest)
        replace_figure(picture, draw_graph(graph, f"{self.task}: one host after an epoch"))
        return graph_sections(graph)
