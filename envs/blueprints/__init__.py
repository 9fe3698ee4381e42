"""Seed modules: what can grow in a slot.

One file per family. A blueprint is written once, for any number of members: it names its parameters for a width,
and computes its *delta* from stacked parameters. The counts, the initial values and the banks follow from the names.
"""

from envs.blueprints.base import SeedModule
from envs.blueprints.registry import blueprints_for

__all__ = ["SeedModule", "blueprints_for"]
