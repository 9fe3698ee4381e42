"""How risky is each blueprint? Counts what became of recorded seeds, for the catalogue that ships with the package.

``python -m benchmarks.catalogue STORE`` writes the counts into the package, and docs/catalogue.md; ``bash
studies/catalogue.sh`` records the episodes and calls it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from esper_ray.controller.catalogue import OUTCOMES_FILE
from esper_ray.controller.catalogue_page import PAGE_FILE, page
from esper_ray.controller.outcomes import RecordedOutcomes
from esper_ray.keeping.revision import git_commit
from esper_ray.process import settle
from policies.strategic.replay_store import Replay


@dataclass(frozen=True)
class CountOutcomes:
    """What is counted."""

    store: tyro.conf.Positional[Path]
    """What `esper-ray strategic collect` recorded, at the tasks' own learning rates."""
    docs: Path = Path("docs")
    """Directory of the page."""

    def run(self, console: Console) -> None:
        """Count, write, print."""
        command = f"python -m benchmarks.catalogue {self.store}"
        recorded = RecordedOutcomes.of(Replay.open(self.store), git_commit(), command)
        OUTCOMES_FILE.write_text(recorded.model_dump_json(indent=1) + "\n")
        (self.docs / PAGE_FILE).write_text(page())
        console.print(page(), markup=False, soft_wrap=True)


if __name__ == "__main__":
    settle()
    tyro.cli(CountOutcomes).run(Console())
