"""The held-out episodes of a study, a file for each control and each trained policy in each world."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esper_ray.keeping.run_directory import replace_text
from esper_ray.measuring.playing import Played, Playing
from policies.learned import LEARNED


@dataclass(frozen=True)
class StudyPlaying(Playing):
    """A playing whose results are kept, so that it is not played again.

    Attributes:
        policy: A control's name, or the arm's.
        evaluation: Name of the world.
        weights_sha256: Of the trained policy's file; None for a control.
        path: File of the results.
    """

    policy: str
    evaluation: str
    weights_sha256: str | None
    path: Path

    def settings(self) -> dict[str, Any]:
        """What the results depend on, as JSON reads it back; results for anything else are not reused."""
        settings = {
            "policy": self.policy,
            "world": self.env.keywords(),
            "weights_sha256": self.weights_sha256,
            "temperature": None if self.trained is None else self.trained.network.play_temperature,
            "following": [name for name in self.policies if self.trained is not None and name != LEARNED],
            "schedule": None if self.schedule is None else self.schedule.to_json(),
            "episodes": self.episodes,
            "evaluation_seed": self.evaluation_seed,
        }
        return json.loads(json.dumps(settings))

    def is_finished(self) -> bool:
        """Whether the file holds these results."""
        return self.path.is_file() and self._read()["settings"] == self.settings()

    def keep(self, played: Mapping[str, Played]) -> None:
        """Write what :meth:`play` returned."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        policies = {name: asdict(each) for name, each in played.items()}
        replace_text(self.path, json.dumps({"settings": self.settings(), "policies": policies}) + "\n")

    def kept(self) -> dict[str, Played]:
        """What was written."""
        return {name: Played(**each) for name, each in self._read()["policies"].items()}

    def _read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())
