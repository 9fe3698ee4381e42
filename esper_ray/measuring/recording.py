"""Whole episodes of a policy, kept step by step for the strategic policy to learn from (docs/strategic.md)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter

from envs.governor import Panic
from envs.graph.layout import GraphLayout
from envs.lifecycle import Lifecycle
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.seeding import Purpose, host_seeds
from envs.vocabulary import LifecycleOp, RampShape, SeedStage
from esper_ray.config import EnvConfig
from esper_ray.reading import checked, parse_json
from policies.bundle import PolicyBundle
from policies.player import Player
from policies.strategic.greenhouse import GreenhouseReader
from policies.strategic.heads import blending_window
from policies.strategic.labels import Outcomes, recorded
from policies.strategic.replay_store import Episode

HOSTS_AT_ONCE = 32
"""Episodes that are played together, and added to a store together."""


class RecordedWorld(BaseModel):
    """What a store says of the world of its observations.

    Attributes:
        task: Name of the task.
        task_args: Its arguments.
        ramps_drawn: Whether seeds are blended in by methods and windows that are drawn, and not by their styles.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    task_args: dict[str, str]
    ramps_drawn: bool

    @classmethod
    def of(cls, env: EnvConfig, ramps_drawn: bool = False) -> RecordedWorld:
        """That of an env."""
        return cls(task=env.task, task_args=dict(env.task_args), ramps_drawn=ramps_drawn)

    @classmethod
    def read(cls, text: str) -> RecordedWorld:
        """The inverse of :attr:`text`.

        Raises:
            UserError: it is something else.
        """
        where = f"the recorded world {text}"
        return checked(parse_json(text, where), TypeAdapter(cls), where)

    @property
    def text(self) -> str:
        """As stores keep it: of the same world always the same."""
        return json.dumps(self.model_dump(), sort_keys=True)

    @property
    def label(self) -> str:
        """For tables."""
        arguments = (f"{name}={value}" for name, value in sorted(self.task_args.items()))
        return " ".join([self.task, *arguments, *(["with drawn ramps"] if self.ramps_drawn else [])])

    def reader(self) -> GreenhouseReader:
        """Who reads its observations; needs no data.

        Raises:
            UserError: there is no such task here.
        """
        task = EnvConfig(task=self.task, task_args=self.task_args).make_task()
        return GreenhouseReader(GraphLayout.of(task), methods_allowed=self.ramps_drawn)


def recorded_seeds(seed: int, episodes: int) -> list[int]:
    """Seeds of hosts to record, one per episode; none of them is held out for evaluation or searched on."""
    return host_seeds(Purpose.COLLECTED_HOSTS, seed, episodes).tolist()


@dataclass(frozen=True)
class _Step:
    """What was read, done, and followed in every host; arrays ``[N, ...]``."""

    observations: dict[str, npt.NDArray[Any]]
    actions: npt.NDArray[np.int64]
    ramp: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float64]
    loss_before: npt.NDArray[np.float64]
    loss_after: npt.NDArray[np.float64]
    stopped: npt.NDArray[np.bool_]


def record_episodes(
    policy: PolicyBundle,
    env: EnvConfig,
    seeds: Sequence[int],
    learning_rate_factor: float = 1.0,
    ramps_drawn: bool = False,
    on_epoch: Callable[[int], None] | None = None,
) -> list[Episode]:
    """Play one episode per seed, all at once as one population, and keep every step.

    Args:
        policy: Decides by what it reads of the flat observation and of the graph; its own randomness is seeded from
            the first host seed.
        env: The world.
        seeds: One per host.
        learning_rate_factor: On the task's learning rate: far above 1 hosts diverge, which good policies never show.
        ramps_drawn: Whether to draw by what shape and in which window each seed is blended in; seeded likewise.
        on_epoch: Called with the number of epochs done.
    """
    task = env.make_task()
    task = dataclasses.replace(task, lr=task.lr * learning_rate_factor)
    settings = env.keywords() | {"task": task, "task_args": None}
    world = MorphogenesisVectorEnv(len(seeds), graph=True, **settings)
    reader = GreenhouseReader(GraphLayout.of(task))
    player, ramps = Player(policy, len(seeds), seeds[0]), np.random.default_rng(seeds[0])
    observations, _ = world.reset(seed=seeds)
    running, steps, lengths = np.ones(len(seeds), bool), list[_Step](), np.zeros(len(seeds), np.int64)
    while running.any():
        before = world.progress.loss[:, -1].copy()
        tensors = {name: torch.from_numpy(leaf) for name, leaf in observations.items()}
        flat = {name: leaf.numpy() for name, leaf in reader.flat(tensors).items()}
        actions = player.act(observations | flat)
        ramp = np.full((len(seeds), 3), np.nan, np.float32)
        if ramps_drawn:
            _draw_ramps(world.lifecycle, actions, ramp, ramps)
        following, rewards, terminated, _, info = world.step(actions)
        stopped = terminated & (info["panic"] != Panic.NONE) if terminated.any() else np.zeros_like(terminated)
        after = world.progress.loss[:, -1].copy()
        # What was executed: a policy may have asked for what the mask refuses.
        ramp[world.last_actions[:, 0] != LifecycleOp.ADVANCE] = np.nan
        steps.append(_Step(observations, world.last_actions.copy(), ramp, rewards, before, after, stopped))
        lengths += running
        running &= ~terminated  # a host that the governor stopped starts anew, which is not kept
        observations = following
        if on_epoch:
            on_epoch(len(steps))
    return [_episode(seed, host, steps[: lengths[host]], ramps_drawn) for host, seed in enumerate(seeds)]


def _draw_ramps(
    lifecycle: Lifecycle,
    actions: npt.NDArray[np.int64],
    ramp: npt.NDArray[np.float32],
    generator: np.random.Generator,
) -> None:
    """Choose how the seeds are blended in whose blending begins with these actions, and say it in ``ramp``."""
    slot = actions[:, 1]
    stage = lifecycle.stage[np.arange(len(actions)), slot]
    hosts = np.flatnonzero((actions[:, 0] == LifecycleOp.ADVANCE) & (stage == SeedStage.TRAINING))
    shape = generator.integers(len(RampShape), size=len(hosts))
    start, end = blending_window(torch.from_numpy(generator.logistic(size=(len(hosts), 2)))).numpy().T
    lifecycle.shape_blending(hosts, slot[hosts], shape, start, end)
    ramp[hosts] = np.stack([shape, start, end], axis=1)


def _episode(seed: int, host: int, steps: Sequence[_Step], ramps_drawn: bool) -> Episode:
    def stacked(columns: Iterable[npt.NDArray[Any]]) -> torch.Tensor:
        return torch.from_numpy(np.stack([column[host] for column in columns]))

    outcomes = Outcomes(
        stacked(step.rewards for step in steps).float(),
        stacked(step.loss_before for step in steps).float(),
        stacked(step.loss_after for step in steps).float(),
        stacked(step.stopped for step in steps),
    )
    leaves = {name: stacked(step.observations[name] for step in steps) for name in steps[0].observations}
    ramp = stacked(step.ramp for step in steps) if ramps_drawn else None
    return recorded(seed, leaves, stacked(step.actions for step in steps), outcomes, ramp)
