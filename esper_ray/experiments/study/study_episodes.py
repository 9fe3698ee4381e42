"""The held-out episodes of a study, a file for each control and each trained policy in each world."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from esper_ray.keeping.writing import make_directories, replace_text
from esper_ray.measuring.playing import Played, Playing
from esper_ray.reading import checked, read_json
from policies.learned import LEARNED


class _Kept(BaseModel):
    """What a file of episodes holds."""

    settings: dict[str, Any]
    policies: dict[str, Played]


@dataclass(frozen=True)
class StudyPlaying(Playing):
    """A playing whose results are kept, so that it is not played again.

    Attributes:
        policy: A control's name, or the arm's.
        evaluation: Name of the world.
        path: File of the results.
    """

    policy: str
    evaluation: str
    path: Path

    def settings(self) -> dict[str, Any]:
        """What the results depend on, as JSON reads it back; results for anything else are not reused."""
        settings = {
            "policy": self.policy,
            "world": self.env.keywords(),
            "weights_sha256": None if self.trained is None else self.trained.weights.sha256,
            "temperature": None if self.trained is None else self.trained.network.play_temperature,
            "following": [name for name in self.policies if self.trained is not None and name != LEARNED],
            "schedule": None if self.schedule is None else self.schedule.to_json(),
            "episodes": self.episodes,
            "evaluation_seed": self.evaluation_seed,
        }
        return json.loads(json.dumps(settings))

    def is_finished(self) -> bool:
        """Whether the file holds these results."""
        return self.path.is_file() and self._read().settings == self.settings()

    def keep(self, played: Mapping[str, Played]) -> None:
        """Write what :meth:`play` returned."""
        make_directories(self.path.parent)
        policies = {name: asdict(each) for name, each in played.items()}
        replace_text(self.path, json.dumps({"settings": self.settings(), "policies": policies}) + "\n")

    def kept(self) -> dict[str, Played]:
        """What was written.

        Raises:
            UserError: the file is damaged.
        """
        return self._read().policies

    def _read(self) -> _Kept:
        where = f"{self.path} is damaged, remove it and its episodes are played again"
        return checked(read_json(self.path), TypeAdapter(_Kept), where)
