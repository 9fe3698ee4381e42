"""What computing a host and its seeds costs, in FLOPs, as their shapes say.

Counted are convolutions and matrix products, two FLOPs per multiplication, as ``torch.utils.flop_counter`` does:
a kernel counts fully at a map's edges, attention over all pairs of tokens. Normalisation, pooling, blending and the
optimiser count nothing. Each member counts at its own size. What several evaluations of a host in one call have in
common is computed, and counts, once (see ``envs.population.evaluation``).
"""

from __future__ import annotations

import numpy as np

from envs.blueprints.base import SeedModule
from envs.blueprints.costs import cost_tables
from envs.limits import FlopCosts
from envs.tasks.base import Task
from envs.vocabulary import Blueprint

FORWARDS_PER_TRAINING_STEP = 3
"""A backward computes two products, for inputs and for weights, where the forward computes one."""


def variant_flops(task: Task, modules: dict[Blueprint, SeedModule]) -> FlopCosts:
    """FLOPs of one sample's forward, one row per host variant.

    Args:
        task: Its host, variants and samples.
        modules: The topology's blueprints.
    """
    host, variants, slots = task.host, task.variants, range(task.slots.num_slots)
    sample_shape = tuple(task.splits["train"].x.shape[1:])
    widths = np.array([[host.slot_width(variant, slot) for slot in slots] for variant in variants])
    places = [host.places(sample_shape, slot) for slot in slots]
    gate_places = np.ones(len(slots), np.int64) if host.activations.pooled_axes else np.array(places)
    seeds, levels = cost_tables(
        modules,
        task.slots.blueprints,
        widths,
        lambda module, width, slot, level: module.flops(width, places[slot], level),
    )
    segments = np.array([host.segment_flops(variant, sample_shape) for variant in variants])
    return FlopCosts(
        host=segments.sum(axis=1),
        segments=segments,
        blueprint=seeds,
        level=levels,
        gate=2 * widths * gate_places,
        offered=np.array([blueprint in modules for blueprint in task.slots.blueprints]),
    )
