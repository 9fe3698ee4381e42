"""Whole episodes of a policy outside RLlib: for evaluation and for pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from envs.grown import GrownSeeds
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.seeding import Purpose, host_seeds
from envs.slot_states import Fate
from esper_ray.config import EnvConfig
from policies.bundle import PolicyBundle
from policies.player import Player

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

Measured = Literal["validation", "test"]


def held_out_seeds(seed: int, episodes: int) -> list[int]:
    """Seeds of hosts that no training run sees, one per episode."""
    return host_seeds(Purpose.HELD_OUT_HOSTS, seed, episodes).tolist()


def search_seeds(seed: int, episodes: int, part: int = 0) -> list[int]:
    """Seeds of hosts to choose a schedule on; none of them is held out for evaluation."""
    return host_seeds(Purpose.SEARCH_HOSTS, seed, episodes, part).tolist()


@dataclass(frozen=True)
class EpisodeCourses:
    """What E episodes of T epochs had reached and spent after each; where the governor ended one, it stays at its end.

    Attributes:
        score: ``[E, T]`` on the validation split, of the network as it was then.
        accuracy: ``[E, T]`` percent, likewise.
        training_flops: ``[E, T]`` spent since the episode's beginning.
        evaluation_flops: ``[E, T]`` of these, those of evaluations.
        seconds: ``[T]`` that the whole population had taken, the policy included; they depend on the machine and on
            what else it does.
    """

    score: FloatArray
    accuracy: FloatArray
    training_flops: FloatArray
    evaluation_flops: FloatArray
    seconds: FloatArray


@dataclass(frozen=True)
class EpisodeResults:
    """Committed networks of E episodes, each array ``[E]``.

    Attributes:
        score: On the split that was asked for.
        accuracy: Percent, on that split.
        parameters: Host and seeds.
        training_flops: What the host's training cost: its epochs, the seeds in incubation, the evaluations on the
            validation split, counterfactual ones included.
        fates: Seeds per fate.
        variant: Index of the host's variant in the task.
        grown: The committed seeds.
        course: How they got there.
        hits: ``[E, n]`` right predictions in each of the n test samples, if that split was asked for.
    """

    score: FloatArray
    accuracy: FloatArray
    parameters: FloatArray
    training_flops: FloatArray
    fates: dict[str, FloatArray]
    variant: IntArray
    grown: GrownSeeds
    course: EpisodeCourses
    hits: IntArray | None


def run_episodes(
    policy: PolicyBundle,
    env: EnvConfig,
    seeds: list[int],
    on_epoch: Callable[[MorphogenesisVectorEnv], None] | None = None,
    *,
    deterministic: bool = False,
    grown: GrownSeeds | None = None,
    split: Measured = "test",
) -> EpisodeResults:
    """Play one episode per seed, all at once as one population.

    Args:
        policy: Decides; its own randomness is seeded from the first host seed.
        env: The world.
        seeds: One per host.
        on_epoch: Called with the environment at the start and after every epoch.
        deterministic: Take the policy's most probable choices instead of drawing.
        grown: Seeds that the hosts start with; by default none.
        split: What the committed networks are measured on. Nothing is computed on test unless that is asked for.
    """
    world = MorphogenesisVectorEnv(len(seeds), report_test=split == "test", graph=policy.reads_graphs, **env.keywords())
    observations, _ = world.reset(seed=seeds, options={"grown": grown})
    variant = world.population.variant.copy()
    player = Player(policy, len(seeds), seeds[0], deterministic)
    prefix = "test" if split == "test" else "committed"
    names = {"score": f"{prefix}_score", "accuracy": f"{prefix}_accuracy", "parameters": "committed_parameters"}
    names |= {"training_flops": "training_flops"}
    names |= {fate.name.lower(): f"seeds_{fate.name.lower()}" for fate in Fate}
    results = {name: np.full(len(seeds), np.nan) for name in names}
    committed = world.lifecycle.committed()
    running = np.ones(len(seeds), bool)
    measured = ("score", "accuracy", "training_flops", "evaluation_flops")
    courses = {name: np.zeros((env.longest, len(seeds))) for name in measured}
    seconds: list[float] = []
    hits: IntArray | None = None
    if on_epoch:
        on_epoch(world)
    started = time.perf_counter()
    while running.any():
        observations, _, terminated, _, info = world.step(player.act(observations))
        epoch = len(seconds)
        seconds.append(time.perf_counter() - started)
        now = {"score": info["score"], "accuracy": info["val_accuracy"]}
        now |= {name: getattr(world.population, name) for name in ("training_flops", "evaluation_flops")}
        for name, after in courses.items():
            after[epoch:, running] = now[name][running]
        first_end = terminated & running  # a host that the governor stopped starts anew, which counts for nothing
        if first_end.any():
            for name, key in names.items():
                results[name][first_end] = info[key][first_end]
            committed = committed.replaced(first_end, world.lifecycle.committed())
            if split == "test":
                hits = info["test_hits"].copy() if hits is None else hits
                hits[first_end] = info["test_hits"][first_end]
        running &= ~terminated
        if on_epoch:
            on_epoch(world)
    fates = {fate.name.lower(): results.pop(fate.name.lower()) for fate in Fate}
    course = EpisodeCourses(**{name: after.T for name, after in courses.items()}, seconds=np.array(seconds))
    return EpisodeResults(**results, fates=fates, variant=variant, grown=committed, course=course, hits=hits)
