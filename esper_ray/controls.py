"""The policies that are compared: the learned one and the controls that it has to beat."""

from __future__ import annotations

from collections.abc import Callable

from envs.slots import SlotConfig
from esper_ray.config import EnvConfig, TrainConfig
from esper_ray.errors import UserError
from esper_ray.run_directory import RunDirectory, Which
from policies.bundle import Policy
from policies.heuristic import PlateauHeuristic
from policies.learned import LearnedPolicy
from policies.scripted import FixedSchedule, NeverGrow, RandomValid

LEARNED = "learned"
POLICY_FILE = "policy.pt"

CONTROLS: dict[str, Callable[[SlotConfig, EnvConfig], Policy]] = {
    "never_grow": lambda slots, env: NeverGrow(slots),
    "random_valid": lambda slots, env: RandomValid(slots),
    "heuristic": lambda slots, env: PlateauHeuristic(slots, env.max_epochs),
    "fixed_schedule": lambda slots, env: FixedSchedule(slots, env.max_epochs),
}


def make_policy(name: str, run: RunDirectory, config: TrainConfig, which: Which) -> Policy:
    """Build the learned policy from a run's checkpoint, or a control.

    Raises:
        UserError: an unknown name, no checkpoint, or one of other sizes.
    """
    slots = config.env.make_task().slots
    if name in CONTROLS:
        return CONTROLS[name](slots, config.env)
    if name != LEARNED:
        raise UserError(f"unknown policy {name!r}: choose one of {', '.join((LEARNED, *CONTROLS))}")
    _, path = run.checkpoint(which)
    weights = path / POLICY_FILE
    if not weights.is_file():
        raise UserError(f"{path} holds no {POLICY_FILE}: the checkpoint is incomplete, train on with --resume")
    try:
        return LearnedPolicy.load(weights, slots, config.network)
    except ValueError as error:
        raise UserError(str(error)) from error
