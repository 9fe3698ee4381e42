"""Grow your own network: ``grow(model, optimizer, slots=[...], ...)`` in anybody's training loop."""

from envs.live.errors import LiveError
from esper_ray.live.grower import Grower
from esper_ray.live.growing import candidates, grow, rebuild
from esper_ray.live.records import Decision, Report

__all__ = ["Decision", "Grower", "LiveError", "Report", "candidates", "grow", "rebuild"]
