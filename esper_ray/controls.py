"""The policies that are compared: a trained one and the controls that it has to beat."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from esper_ray.config import EnvConfig
from esper_ray.errors import UserError
from esper_ray.export import CARD_FILE, load_export, load_policy
from esper_ray.run_directory import POLICY_FILE, RunDirectory, Which
from policies.bundle import PolicyBundle, PolicySettings
from policies.factory import build_policy
from policies.learned import LEARNED
from policies.network import NetworkConfig

CONTROLS = ("never_grow", "random_valid", "heuristic", "fixed_schedule")


@dataclass(frozen=True)
class Trained:
    """A trained policy and the world it was trained in: a checkpoint of a run, or an export.

    Attributes:
        path: Directory of the run or the export; results about the policy go there.
        which: What of it was taken.
        iteration: Iterations that the policy was trained for.
        env: The world.
        network: Widths.
        weights: The file.
    """

    path: Path
    which: Which | Literal["export"]
    iteration: int
    env: EnvConfig
    network: NetworkConfig
    weights: Path

    @classmethod
    def open(cls, path: Path, which: Which, data_dir: Path | None = None) -> Trained:
        """Find what was trained.

        Args:
            path: A run directory or an export.
            which: Checkpoint of a run; an export has only one.
            data_dir: Where the task's data are, if not where the run's config says. An export does not say it.

        Raises:
            UserError: there is neither, or it is damaged.
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
        if data_dir is None:
            return trained
        return dataclasses.replace(trained, env=dataclasses.replace(trained.env, data_dir=data_dir))


def make_policy(name: str, trained: Trained) -> PolicyBundle:
    """Build the trained policy, or a control for the same world.

    Raises:
        UserError: an unknown name, no weights, or weights of other sizes.
    """
    settings = PolicySettings(trained.env.make_task().slots, trained.env.max_epochs, trained.network)
    if name == LEARNED:
        return load_policy(settings, trained.weights)
    if name not in CONTROLS:
        raise UserError(f"unknown policy {name!r}: choose one of {', '.join((LEARNED, *CONTROLS))}")
    return build_policy(name, settings)
