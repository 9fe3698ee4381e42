"""The held-out episodes of a study, a file for each policy in each world."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from envs.grown import GrownSeeds
from esper_ray.config import EnvConfig
from esper_ray.keeping.export import load_policy
from esper_ray.measuring.behaviour import BehaviourRecorder
from esper_ray.measuring.controls import LEARNED_GREEDY, STATIC_BIG, STATIC_FINAL, static_big
from esper_ray.measuring.episodes import held_out_seeds, run_episodes
from esper_ray.measuring.evaluation import MEASURES
from esper_ray.measuring.trained import Trained
from esper_ray.process import settle
from esper_ray.reading import checked, read_json
from policies.bundle import PolicyBundle, PolicySettings
from policies.factory import build_policy
from policies.learned import LEARNED
from policies.schedule import GrowthSchedule
from policies.scripted import FixedSchedule, NeverGrow


class _Played(BaseModel):
    """Of one policy."""

    variants: list[int]
    measures: dict[str, list[float]]
    fates: dict[str, list[float]]
    behaviour: dict[str, list[Any]]


class _Results(BaseModel):
    """What a file of episodes holds."""

    settings: dict[str, Any]
    seconds: float
    policies: dict[str, _Played]


@dataclass(frozen=True)
class Playing:
    """Held-out episodes in one world, of a control, or of a trained policy and what follows from it.

    Attributes:
        policy: A control's name, or the arm's.
        seed: Of the training; None for a control.
        evaluation: Name of the world.
        env: The world.
        trained: What plays; None for a control.
        following: Which of ``FOLLOWING`` play after the trained policy.
        schedule: What ``BEST_SCHEDULE`` and ``TRAINING_SCHEDULE`` play.
        episodes: Hosts.
        evaluation_seed: Of the hosts.
        path: File of the results.
    """

    policy: str
    seed: int | None
    evaluation: str
    env: EnvConfig
    trained: Trained | None
    following: tuple[str, ...]
    schedule: GrowthSchedule | None
    episodes: int
    evaluation_seed: int
    path: Path

    def settings(self) -> dict[str, Any]:
        """What the results depend on, as JSON reads it back; results for anything else are not reused."""
        settings = {
            "policy": self.policy,
            "world": self.env.keywords(),
            "weights_sha256": None if self.trained is None else self.trained.weights.sha256,
            "temperature": None if self.trained is None else self.trained.network.play_temperature,
            "following": self.following,
            "schedule": None if self.schedule is None else self.schedule.to_json(),
            "episodes": self.episodes,
            "evaluation_seed": self.evaluation_seed,
        }
        return json.loads(json.dumps(settings))

    def results(self) -> dict[str, Any]:
        """What :meth:`play` returned, from the file.

        Raises:
            UserError: the file is damaged.
        """
        content: dict[str, Any] = read_json(self.path)
        checked(content, TypeAdapter(_Results), f"{self.path} is damaged, remove it and its episodes are played again")
        return content

    def is_finished(self) -> bool:
        """Whether the file holds these results."""
        return self.path.is_file() and self.results()["settings"] == self.settings()

    def play(self) -> dict[str, Any]:
        """Play all episodes.

        Returns:
            What the file holds: settings, seconds, and per policy the host's variant, the measures and the fates of
            every episode, and what the policy did in all of them. A trained policy is called ``LEARNED``.
        """
        settle()
        began = time.perf_counter()
        slots, max_epochs = self.env.make_task().slots, self.env.max_epochs
        if self.trained is None:
            grown = static_big(self.env, self.episodes) if self.policy == STATIC_BIG else None
            policies = {self.policy: self._played(self._control(), grown=grown)[0]}
        else:
            settings = PolicySettings(slots, max_epochs, self.trained.network)
            learned = load_policy(settings, self.trained.weights)
            policies = {}
            policies[LEARNED], final = self._played(learned)
            if LEARNED_GREEDY in self.following:
                policies[LEARNED_GREEDY], _ = self._played(learned, deterministic=True)
            if STATIC_FINAL in self.following:
                policies[STATIC_FINAL], _ = self._played(NeverGrow(slots), grown=final)
        return {"settings": self.settings(), "seconds": time.perf_counter() - began, "policies": policies}

    def _control(self) -> PolicyBundle:
        slots, max_epochs = self.env.make_task().slots, self.env.max_epochs
        if self.policy == STATIC_BIG:
            return NeverGrow(slots)
        if self.schedule is not None:
            return FixedSchedule(slots, max_epochs, self.schedule)
        return build_policy(self.policy, PolicySettings(slots, max_epochs))

    def _played(
        self, policy: PolicyBundle, deterministic: bool = False, grown: GrownSeeds | None = None
    ) -> tuple[dict[str, Any], GrownSeeds]:
        """A policy's results, and the seeds that its hosts end with."""
        recorder = BehaviourRecorder(policy.slot_config, self.env.max_epochs)
        seeds = held_out_seeds(self.evaluation_seed, self.episodes)
        results = run_episodes(policy, self.env, seeds, recorder.observe, deterministic=deterministic, grown=grown)
        played = {
            "variants": results.variant.tolist(),
            "measures": {name: getattr(results, name).tolist() for name in MEASURES},
            "fates": {fate: counts.tolist() for fate, counts in results.fates.items()},
            "behaviour": {
                "ops": recorder.ops.tolist(),
                "germinated": recorder.germinated.tolist(),
                "fossilized": recorder.fossilized.tolist(),
            },
        }
        return played, results.grown
