"""Builds a policy by its name."""

from __future__ import annotations

import torch

from policies import heuristic, learned, periodic, scripted  # noqa: F401 - registers their policies
from policies.bundle import PolicyBundle, PolicySettings
from policies.learned import LEARNED
from policies.periodic import PeriodicGrowth
from policies.registry import registered


def build_policy(
    name: str, settings: PolicySettings, device: torch.device | str = "cpu", compiled: bool = False
) -> PolicyBundle:
    """Build a policy on its device, then have it compiled if asked.

    Args:
        name: In the registry.
        settings: What it is built from.
        device: Where its tensors are made; they are never moved.
        compiled: Whether torch shall compile its network.

    Raises:
        ValueError: no policy has this name.
        UnsupportedByPolicyError: a policy without a network is to be compiled.
    """
    policies = registered()
    if name not in policies:
        raise ValueError(f"unknown policy {name!r}: choose one of {', '.join(sorted(policies))}")
    with torch.device(device):
        policy = policies[name].build(settings)
    if compiled:
        policy.compile()
    return policy


def playing_anywhere() -> tuple[str, ...]:
    """Names of the policies that need neither training nor a host's graph: Obs V3 is all that they read."""
    elsewhere = (registered()[LEARNED], PeriodicGrowth)
    return tuple(sorted(name for name, kind in registered().items() if not issubclass(kind, elsewhere)))
