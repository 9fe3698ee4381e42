"""Who plays which held-out hosts, in which processes, and what is recorded: the one way of ``evaluate`` and studies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from envs.grown import GrownSeeds
from esper_ray.config import EnvConfig
from esper_ray.keeping.packed import pack, unpack
from esper_ray.measuring.behaviour import BehaviourRecorder
from esper_ray.measuring.controls import LEARNED_GREEDY, STATIC, STATIC_BIG, STATIC_FINAL, make_policy, static_big
from esper_ray.measuring.episodes import held_out_seeds, run_episodes
from esper_ray.measuring.trained import Trained
from esper_ray.process import host_processes, settle
from policies.learned import LEARNED
from policies.schedule import GrowthSchedule

FloatArray = npt.NDArray[np.float64]

MEASURES = ("score", "accuracy", "parameters", "training_flops")
"""What is reported of every episode, and summarised."""


@dataclass(frozen=True)
class Played:
    """What a policy did and reached in E held-out episodes, in plain values, as JSON keeps them.

    Attributes:
        variants: ``[E]``, index of the host's variant in the task.
        measures: By name of ``MEASURES``, ``[E]``.
        fates: By name of the fate, seeds ``[E]``.
        behaviour: ``ops``, ``germinated`` and ``fossilized`` of a :class:`BehaviourRecorder`.
        courses: ``accuracy`` on the validation split, in hundredths of a percent, and ``training_flops`` and
            ``evaluation_flops`` of each epoch, all ``[E, T]``, packed (:mod:`esper_ray.keeping.packed`).
        seconds: ``[T]`` that all hosts together had taken after each epoch.
        hits: ``[E, n]`` right predictions in each test sample, packed.
        predictions: In a test sample, at most.
    """

    variants: list[int]
    measures: dict[str, list[float]]
    fates: dict[str, list[float]]
    behaviour: dict[str, list[list[int]]]
    courses: dict[str, str]
    seconds: list[float]
    hits: str
    predictions: int

    @property
    def shares(self) -> FloatArray:
        """``[E, n]`` share of the predictions in each test sample that are right."""
        return unpack(self.hits) / self.predictions

    @property
    def accuracy(self) -> FloatArray:
        """``[E, T]`` percent of the validation split after each epoch."""
        return unpack(self.courses["accuracy"]) / 100.0

    @property
    def training_flops(self) -> FloatArray:
        """``[E, T]`` spent until the end of each epoch, evaluations included."""
        return self._spent("training_flops")

    @property
    def evaluation_flops(self) -> FloatArray:
        """``[E, T]`` of these, those of evaluations."""
        return self._spent("evaluation_flops")

    def _spent(self, course: str) -> FloatArray:
        return unpack(self.courses[course]).cumsum(axis=1).astype(np.float64)


@dataclass(frozen=True)
class Playing:
    """Held-out episodes in one world, of policies that need each other: ``STATIC_FINAL`` what ``LEARNED`` has grown.

    Attributes:
        env: The world.
        policies: Who plays, one after the other; ``LEARNED`` before ``STATIC_FINAL``.
        trained: Weights of the learned policy; controls do without.
        schedule: What ``BEST_SCHEDULE`` and ``TRAINING_SCHEDULE`` play.
        episodes: Hosts.
        evaluation_seed: Of the hosts.
    """

    env: EnvConfig
    policies: tuple[str, ...]
    trained: Trained | None
    schedule: GrowthSchedule | None
    episodes: int
    evaluation_seed: int

    @property
    def host_seeds(self) -> list[int]:
        """One per episode."""
        return held_out_seeds(self.evaluation_seed, self.episodes)

    def play(self) -> dict[str, Played]:
        """Play all episodes, in this process.

        Returns:
            By policy, in the order of ``policies``.

        Raises:
            UserError: no usable weights, a policy that is unknown or lacks what it needs.
        """
        settle()
        grown: dict[str, GrownSeeds] = {}
        played = {}
        for name in self.policies:
            beginning = None
            if name == STATIC_BIG:
                beginning = static_big(self.env, self.episodes)
            elif name == STATIC_FINAL:
                beginning = grown[LEARNED]
            played[name], grown[name] = self._play(name, beginning)
        return played

    def _play(self, name: str, beginning: GrownSeeds | None) -> tuple[Played, GrownSeeds]:
        """A policy's episodes, and the seeds that its hosts end with."""
        policy = make_policy("never_grow" if name in STATIC else name, self.env, self.trained, self.schedule)
        recorder = BehaviourRecorder(policy.slot_config, self.env.longest)
        deterministic = name == LEARNED_GREEDY
        results = run_episodes(
            policy, self.env, self.host_seeds, recorder.observe, deterministic=deterministic, grown=beginning
        )
        assert results.hits is not None, "held-out episodes are measured on the test split"
        y = self.env.make_task().splits["test"].y
        courses = results.course
        played = Played(
            results.variant.tolist(),
            {measure: getattr(results, measure).tolist() for measure in MEASURES},
            {fate: counts.tolist() for fate, counts in results.fates.items()},
            {
                "ops": recorder.ops.tolist(),
                "germinated": recorder.germinated.tolist(),
                "fossilized": recorder.fossilized.tolist(),
            },
            {
                "accuracy": pack((100.0 * courses.accuracy).round().astype(np.uint16)),
                "training_flops": pack(np.diff(courses.training_flops, prepend=0.0).astype(np.int64)),
                "evaluation_flops": pack(np.diff(courses.evaluation_flops, prepend=0.0).astype(np.int64)),
            },
            courses.seconds.tolist(),
            pack(results.hits.astype(np.uint16 if y.dim() > 1 else np.uint8)),
            y[0].numel(),
        )
        return played, results.grown


Some = TypeVar("Some", bound=Playing)


def play_all(playings: Sequence[Some], workers: int) -> Iterator[tuple[Some, dict[str, Played]]]:
    """Play everything, each playing in one process.

    Args:
        playings: What is to be played; the first ones begin first.
        workers: Processes to share them among; 0 plays in this one.

    Yields:
        A playing and its results, as they come.
    """
    if not workers:
        yield from ((playing, playing.play()) for playing in playings)
        return
    with host_processes(workers) as pool:
        jobs = {pool.submit(playing.play): playing for playing in playings}
        yield from ((jobs[job], job.result()) for job in as_completed(jobs))
