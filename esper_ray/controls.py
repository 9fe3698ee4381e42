"""The policies that are compared: a trained one and the controls that it has to beat."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from envs.grown import GrownSeeds
from envs.slots import SlotConfig
from envs.vocabulary import Blueprint
from esper_ray.config import EnvConfig
from esper_ray.errors import UserError
from esper_ray.export import CARD_FILE, load_export, load_policy
from esper_ray.run_directory import POLICY_FILE, RunDirectory, Which
from policies.bundle import PolicyBundle, PolicySettings
from policies.factory import build_policy
from policies.learned import LEARNED
from policies.network import NetworkConfig
from policies.schedule import GrowthSchedule
from policies.scripted import FixedSchedule

CONTROLS = ("never_grow", "random_valid", "heuristic", "fixed_schedule")
"""Policies that play where the learned one plays."""

BEST_SCHEDULE = "best_schedule"
"""The fixed schedule that a search found (``esper_ray.search``)."""

TRAINING_SCHEDULE = "training_schedule"
"""The fixed schedule that a search found in the world where the policy was trained, played in another one: in studies
that take their trainings from another study."""

LEARNED_GREEDY = "learned_greedy"
"""The learned policy taking its most probable choices instead of drawing."""

STATIC_FINAL = "static_final"
"""The networks that the learned policy ended with, each trained from scratch on its own host for as many epochs."""

STATIC_BIG = "static_big"
"""A network that is large from the start: the same seed in every slot, trained with the host from epoch 0."""

BIG_BLUEPRINT = {"cnn": Blueprint.CONV_LIGHT, "transformer": Blueprint.ATTENTION, "mlp": Blueprint.MLP}
"""Per topology what ``static_big`` has in every slot: the layer that a larger host of the kind would be made of.

On the default hosts that cannot mix space or tokens it mends just that. Neither CONV_HEAVY everywhere, beyond the
default parameter budget of those hosts, nor MLP in a transformer, which mixes no tokens, would be as strong."""


STATIC = (STATIC_FINAL, STATIC_BIG)
"""Controls that are networks: they start with their seeds, and nobody plays."""

INDEPENDENT = (*CONTROLS, STATIC_BIG, BEST_SCHEDULE, TRAINING_SCHEDULE)
"""Controls that play once per world."""

FOLLOWING = (LEARNED_GREEDY, STATIC_FINAL)
"""Controls that play once per training, for they come from its policy."""


@dataclass(frozen=True)
class World:
    """What of the world a policy was trained in is replaced for playing.

    Attributes:
        task: Another task; None keeps the one of training.
        task_args: Its arguments; with the task of training they are added to those it had.
        data_dir: Where its data are, if not where they were in training. An export does not say it.
    """

    task: str | None = None
    task_args: Mapping[str, str] = field(default_factory=dict)
    data_dir: Path | None = None

    def of(self, env: EnvConfig) -> EnvConfig:
        """The world to play in, given the one of training.

        Raises:
            UserError: a task that does not exist, or one with other heads.
        """
        kept = self.task in (None, env.task)
        arguments = (env.task_args if kept else {}) | dict(self.task_args)
        data_dir = self.data_dir or (env.data_dir if kept else None)
        other = dataclasses.replace(env, task=self.task or env.task, task_args=arguments, data_dir=data_dir)
        if (other.task, other.task_args) == (env.task, env.task_args):
            return other
        trained_for, here = env.make_task().slots, other.make_task().slots
        if [head.size for head in here.heads] != [head.size for head in trained_for.heads]:
            raise UserError(
                f"the policy cannot play task {other.task!r}: its heads are for {_heads(trained_for)}, as in "
                f"{env.task!r}, where it was trained, and not for {_heads(here)}"
            )
        return other


TRAINING_WORLD = World()


def _heads(slots: SlotConfig) -> str:
    levels = "with" if slots.internal_levels else "without"
    return f"the slots {', '.join(slots.slot_ids)} {levels} internal levels"


@dataclass(frozen=True)
class Trained:
    """A trained policy and the world it was trained in: a checkpoint of a run, or an export.

    Attributes:
        path: Directory of the run or the export; results about the policy go there.
        which: What of it was taken.
        iteration: Iterations that the policy was trained for.
        env: The world.
        network: Its widths, and how it is played.
        weights: The file.
    """

    path: Path
    which: Which | Literal["export"]
    iteration: int
    env: EnvConfig
    network: NetworkConfig
    weights: Path

    @classmethod
    def open(cls, path: Path, which: Which, world: World = TRAINING_WORLD) -> Trained:
        """Find what was trained.

        Args:
            path: A run directory or an export.
            which: Checkpoint of a run; an export has only one.
            world: Where it shall play, if not where it was trained.

        Raises:
            UserError: there is neither, it is damaged, or its heads do not fit the other world.
        """
        if any((path / name).is_file() for name in (CARD_FILE, POLICY_FILE)):
            card, _ = load_export(path)
            trained = cls(
                path.resolve(), "export", card.iteration, card.env, card.network, path.resolve() / POLICY_FILE
            )
        else:
            run = RunDirectory.open(path)
            config = run.config()
            checkpoint, directory = run.checkpoint(which)
            trained = cls(run.path, which, checkpoint.iteration, config.env, config.network, directory / POLICY_FILE)
        return dataclasses.replace(trained, env=world.of(trained.env))

    def at_temperature(self, temperature: float) -> Trained:
        """The same policy, drawing at another temperature.

        Raises:
            UserError: a policy can't have that one.
        """
        try:
            return dataclasses.replace(self, network=dataclasses.replace(self.network, play_temperature=temperature))
        except ValueError as error:
            raise UserError(str(error)) from error


def make_policy(name: str, trained: Trained, schedule: GrowthSchedule | None = None) -> PolicyBundle:
    """Build the trained policy, or a control for the same world.

    Args:
        name: One of ``LEARNED``, ``LEARNED_GREEDY``, ``CONTROLS`` and ``BEST_SCHEDULE``.
        trained: Weights and world.
        schedule: What ``BEST_SCHEDULE`` plays.

    Raises:
        UserError: an unknown name, no weights, weights of other sizes, or a schedule that does not fit the world.
    """
    settings = PolicySettings(trained.env.make_task().slots, trained.env.max_epochs, trained.network)
    if name in (LEARNED, LEARNED_GREEDY):
        return load_policy(settings, trained.weights)
    if name == BEST_SCHEDULE and schedule is not None:
        try:
            return FixedSchedule(settings.slots, settings.max_epochs, schedule)
        except ValueError as error:
            raise UserError(f"the schedule does not fit task {trained.env.task!r}: {error}") from error
    if name not in CONTROLS:
        raise UserError(f"unknown policy {name!r}: choose one of {', '.join((LEARNED, *CONTROLS))}")
    return build_policy(name, settings)


def static_big(env: EnvConfig, num_hosts: int) -> GrownSeeds:
    """What the hosts of ``STATIC_BIG`` start with."""
    task = env.make_task()
    return GrownSeeds.everywhere(BIG_BLUEPRINT[task.host.topology], num_hosts, task.slots)
