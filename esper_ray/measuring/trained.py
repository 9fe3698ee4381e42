"""A trained policy, found in a run directory or an export, and the world that it plays in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from esper_ray.config import EnvConfig, described_slots
from esper_ray.errors import UserError
from esper_ray.keeping.export import CARD_FILE, read_export
from esper_ray.keeping.policy_settings import Names, trained_names
from esper_ray.keeping.run_directory import POLICY_FILE, RunDirectory, Which
from esper_ray.keeping.strategic_policy import checkpoint_in, load_strategic, network_of, weights_of
from policies.network_config import NetworkConfig
from policies.weights import Weights


@dataclass(frozen=True)
class World:
    """What of the world a policy was trained in is replaced for playing.

    Attributes:
        task: Another task; None keeps the one of training, the first of several.
        task_args: Its arguments; with the task of training they are added to those it had.
        data_dir: Where its data are, if not where they were in training. An export does not say it.
        max_epochs: Of the episodes; by default of the longest in training.
    """

    task: str | None = None
    task_args: Mapping[str, str] = field(default_factory=dict)
    data_dir: Path | None = None
    max_epochs: int | None = None

    def of(self, env: EnvConfig, any_slots: bool = False) -> EnvConfig:
        """The world to play in, given the one of training.

        Args:
            env: Of training.
            any_slots: Whether the policy plays whatever slots a task has.

        Raises:
            UserError: a task that does not exist, or one with other heads.
        """
        kept = self.task in (None, env.task, *env.tasks)
        arguments = (env.task_args if kept else {}) | dict(self.task_args)
        data_dir = self.data_dir or (env.data_dir if kept else None)
        other = dataclasses.replace(
            env.lasting(self.max_epochs),
            task=self.task or env.task,
            tasks=(),
            task_args=arguments,
            data_dir=data_dir,
        )
        if any_slots or (other.task, other.task_args) == (env.task, env.task_args):
            return other
        trained_for, here = env.make_task().slots, other.make_task().slots
        if [head.size for head in here.heads] != [head.size for head in trained_for.heads]:
            raise UserError(
                f"the policy cannot play task {other.task!r}: its heads are for {described_slots(trained_for)}, as in "
                f"{env.task!r}, where it was trained, and not for {described_slots(here)}"
            )
        return other


TRAINING_WORLD = World()


@dataclass(frozen=True)
class Trained:
    """A trained policy and the world it was trained in: a checkpoint of a run, an export, or an imitation.

    Nothing of it is read again: the run may be trained on meanwhile.

    Attributes:
        path: Directory of the run or the export; results about the policy go there.
        which: What of it was taken.
        iteration: Iterations that the policy was trained for.
        env: The world.
        tasks: Those of the training, the first one first.
        network: What it is, its widths, and how it is played.
        names: That it knows.
        weights: Of the policy.
    """

    path: Path
    which: Which | Literal["export"]
    iteration: int
    env: EnvConfig
    tasks: tuple[str, ...]
    network: NetworkConfig
    names: Names
    weights: Weights

    @classmethod
    def open(cls, path: Path, which: Which, world: World = TRAINING_WORLD) -> Trained:
        """Read what was trained.

        Args:
            path: A run directory, an export, or what imitation wrote, which was taught in no world of its own: it
                plays the first task that was on record, for as long as the longest episode was.
            which: Checkpoint of a run; the others have only one.
            world: Where it shall play, if not where it was trained.

        Raises:
            UserError: there is neither, it is damaged, or its heads do not fit the other world.
        """
        if checkpoint_in(path) is not None:
            policy = load_strategic(path)
            return cls(
                path.resolve(),
                "export",
                0,
                world.of(EnvConfig(task=policy.tasks[0], max_epochs=policy.max_epochs), any_slots=True),
                policy.tasks,
                network_of(policy),
                policy.registries.names,
                weights_of(policy, path),
            )
        if any((path / name).is_file() for name in (CARD_FILE, POLICY_FILE)):
            card, weights = read_export(path)
            env = card.env
            of = cls(path.resolve(), "export", card.iteration, env, (), card.network, card.names, weights)
        else:
            run = RunDirectory.open(path)
            config = run.config()
            index, weights = run.policy(which)
            env, names = config.env, trained_names(config.env, config.network)
            of = cls(run.path, which, index[which].iteration, env, (), config.network, names, weights)
        return dataclasses.replace(of, env=world.of(env, of.network.kind == "graph"), tasks=env.task_names)

    def at_temperature(self, temperature: float) -> Trained:
        """The same policy, drawing at another temperature.

        Raises:
            UserError: a policy can't have that one.
        """
        try:
            return dataclasses.replace(self, network=dataclasses.replace(self.network, play_temperature=temperature))
        except ValueError as error:
            raise UserError(str(error)) from error
