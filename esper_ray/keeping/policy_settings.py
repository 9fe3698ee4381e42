"""What a trained policy is built from, given the world that it plays in."""

from __future__ import annotations

from collections.abc import Mapping

from envs.graph.layout import GraphLayout
from esper_ray.config import EnvConfig
from policies.bundle import PolicySettings
from policies.network_config import NetworkConfig
from policies.strategic.actor_critic import registry_names

Names = Mapping[str, tuple[str, ...]]
"""Registry family → the names that a policy that reads graphs knows; none of one that does not."""


def graph_layouts(env: EnvConfig) -> tuple[GraphLayout, ...]:
    """Of every world's observations, where hosts are observed as graphs."""
    return tuple(GraphLayout.of(world.make_task()) for world in env.worlds)


def trained_names(env: EnvConfig, network: NetworkConfig) -> Names:
    """What a network that was trained in these worlds knows the names of."""
    return registry_names(graph_layouts(env)) if network.kind == "graph" else {}


def policy_settings(env: EnvConfig, network: NetworkConfig, names: Names) -> PolicySettings:
    """Those of a policy that plays in a world, of several in the first, whatever it was trained in.

    Args:
        env: The world.
        network: Of the policy.
        names: That it knows.
    """
    task = env.make_task()
    graph = GraphLayout.of(task) if network.kind == "graph" else None
    return PolicySettings(task.slots, env.longest, network, graph, names)
