"""Worlds of the greenhouse for tests, and observations of them that nobody measured."""

import numpy as np
import torch

from envs.action_masks import mask_size, split_mask
from envs.graph.layout import BLUEPRINTS, OBSERVATION, UNKNOWN, GraphLayout
from envs.tasks import make_task
from policies.network_config import NetworkConfig
from policies.return_scale import WORLD
from policies.strategic.actor_critic import GraphActorCritic, GraphWorlds, registry_names

TINY = NetworkConfig(kind="graph", sage_width=16, gat_width=8, attention_heads=2, play_temperature=0.5)
LAYOUTS = {
    name: GraphLayout.of(make_task(name)) for name in ("digits", "digits_mixed", "digits_scale", "tabular", "text")
}
"""Three convolutional slots, again in hosts of several widths; five, with internal levels; three of an MLP; three of a
transformer."""


def graph_network(*tasks, trained_in=None, config=TINY, seed=0, only_seen=False, away=0.0):
    """A network of some tasks' hosts, its weights ``away`` from their start, that knows the names of some or others."""
    layouts = tuple(LAYOUTS[task] for task in tasks)
    slots = max((layout.structure.slots for layout in layouts), key=lambda slots: slots.num_slots)
    worlds = GraphWorlds(layouts, registry_names([LAYOUTS[task] for task in trained_in or tasks]))
    torch.manual_seed(seed)
    network = GraphActorCritic(slots.heads, worlds, config, only_seen)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += away * torch.randn(parameter.shape)
    return network


def vectors(layout, *shape, seed=0, unknown=0.2, longest=None):
    """Vectors of hosts in any state, float32 ``[*shape, longest]``, with gaps in what is measured."""
    rng = np.random.default_rng(seed)
    filled = np.zeros((*shape, longest or layout.size), np.float32)
    filled[..., 0] = 1.0
    for key, place in layout.places.items():
        size = (*shape, place.stop - place.start)
        if key == OBSERVATION:
            filled[..., place] = rng.uniform(-1, 2, size)
        elif key == BLUEPRINTS:
            filled[..., place] = rng.integers(-1, len(layout.structure.slots.blueprints), size)
        else:
            filled[..., place] = np.where(rng.random(size) < unknown, UNKNOWN, 10 ** rng.uniform(-3, 1, size))
    return torch.from_numpy(filled)


def graph_observations(network, *shape, seed=0, full=False, density=0.6):
    """Observations of hosts of the network's worlds, of which each entry of the first axis is of one."""
    rng = np.random.default_rng(seed)
    heads, layouts = network.head_specs, network.layouts
    longest = max(layout.size for layout in layouts)
    world = rng.integers(len(layouts), size=shape[0])
    mask = (rng.random((*shape, mask_size(heads))) < density).astype(np.int8)
    views = split_mask(mask, heads)
    views["op"][..., 0] = 1
    for head in heads[1:]:
        views[head.name][..., 0] = 1
    if full:
        mask[...] = 1
    every = [vectors(layout, *shape, seed=seed, longest=longest) for layout in layouts]
    obs = {
        "graph": torch.stack([every[of][row] for row, of in enumerate(world)]),
        "action_mask": torch.from_numpy(mask),
    }
    if len(layouts) > 1:
        labels = torch.from_numpy(world).reshape(-1, *[1] * len(shape))
        obs[WORLD] = labels.expand(*shape, 1).clone()
    return obs
