"""The policies that are compared: a trained one and the controls that it has to beat."""

from __future__ import annotations

from envs.graph.layout import GraphLayout
from envs.grown import GrownSeeds
from envs.vocabulary import Blueprint
from esper_ray.config import EnvConfig
from esper_ray.errors import UserError
from esper_ray.keeping.export import load_policy
from esper_ray.keeping.policy_settings import policy_settings
from esper_ray.measuring.trained import Trained
from policies.bundle import PolicyBundle, PolicySettings
from policies.factory import build_policy
from policies.learned import LEARNED
from policies.schedule import GrowthSchedule
from policies.scripted import FixedSchedule

CONTROLS = ("never_grow", "random_valid", "heuristic", "fixed_schedule", "periodic", "gradient")
"""Policies that play where the learned one plays."""

BEST_SCHEDULE = "best_schedule"
"""The fixed schedule that a search found (``esper_ray.measuring.search``)."""

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

BLIND = ("never_grow", "fixed_schedule", BEST_SCHEDULE, TRAINING_SCHEDULE, *STATIC)
"""Controls that know from the start what they will do: they could do without evaluations."""

FOLLOWING = (LEARNED_GREEDY, STATIC_FINAL)
"""Controls that play once per training, for they come from its policy."""


def make_policy(
    name: str, env: EnvConfig, trained: Trained | None = None, schedule: GrowthSchedule | None = None
) -> PolicyBundle:
    """Build the trained policy, or a control.

    Args:
        name: One of ``LEARNED``, ``LEARNED_GREEDY``, ``CONTROLS``, ``BEST_SCHEDULE`` and ``TRAINING_SCHEDULE``.
        env: The world that it plays in.
        trained: Weights of the learned policy, and how it is played.
        schedule: What a schedule that was searched for is.

    Raises:
        UserError: an unknown name, no weights, weights of other sizes, or a schedule that does not fit the world.
    """
    task, max_epochs = env.make_task(), env.longest
    if name in (LEARNED, LEARNED_GREEDY) and trained is not None:
        return load_policy(policy_settings(env, trained.network, trained.names), trained.weights)
    if name in (BEST_SCHEDULE, TRAINING_SCHEDULE) and schedule is not None:
        try:
            return FixedSchedule(task.slots, max_epochs, schedule)
        except ValueError as error:
            raise UserError(f"the schedule does not fit task {env.task!r}: {error}") from error
    if name not in CONTROLS:
        raise UserError(f"unknown policy {name!r}: choose one of {', '.join((LEARNED, *CONTROLS))}")
    return build_policy(name, PolicySettings(task.slots, max_epochs, graph=GraphLayout.of(task)))


def static_big(env: EnvConfig, num_hosts: int) -> GrownSeeds:
    """What the hosts of ``STATIC_BIG`` start with."""
    task = env.make_task()
    return GrownSeeds.everywhere(BIG_BLUEPRINT[task.host.topology], num_hosts, task.slots)
