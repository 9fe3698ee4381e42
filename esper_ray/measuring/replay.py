"""One episode as a picture, beside the same host left alone."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from envs.morphogenesis import MorphogenesisVectorEnv
from esper_ray.config import EnvConfig
from esper_ray.measuring.course import Course, draw_course
from esper_ray.measuring.episodes import run_episodes
from policies.bundle import PolicyBundle
from policies.scripted import NeverGrow


@dataclass(frozen=True)
class Played:
    """One host's episode.

    Attributes:
        course: Every epoch.
        score: Committed score on the test split.
        accuracy: Likewise, percent.
        parameters: Of the committed network.
    """

    course: Course
    score: float
    accuracy: float
    parameters: int


def draw_replay(policy: PolicyBundle, env: EnvConfig, host_seed: int, title: str) -> Figure:
    """Play the policy, and the same host left alone, and draw both.

    Args:
        policy: Decides.
        env: The world.
        host_seed: Of the host.
        title: First line above the picture.
    """
    slots = env.make_task().slots
    played, alone = (_play(player, env, host_seed) for player in (policy, NeverGrow(slots)))
    results = (
        f"after {len(played.course) - 1} epochs: test accuracy {played.accuracy:.1f} %, score {played.score:.3f}, "
        f"{played.parameters:,} parameters  |  left alone: {alone.accuracy:.1f} %, {alone.score:.3f}, "
        f"{alone.parameters:,}"
    )
    return draw_course(played.course, slots.slot_ids, f"{title}\n{results}", alone.course)


def _play(policy: PolicyBundle, env: EnvConfig, host_seed: int) -> Played:
    course = Course()

    def record(world: MorphogenesisVectorEnv) -> None:
        course.record(world.watch)

    results = run_episodes(policy, env, [host_seed], record)
    return Played(course, float(results.score[0]), float(results.accuracy[0]), int(results.parameters[0]))
