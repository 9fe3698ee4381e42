"""Seeds join the groups in which what is like them is trained."""

import pytest
import torch
from torch import nn

from tests.envs.helpers import advance, germinate
from tests.envs.live.loops import NETWORKS, TOPOLOGY, Loop, Script
from tests.envs.live.test_training import BLUEPRINTS


def _grown(network, groups):
    loop = Loop(network)
    loop.optimizer = torch.optim.AdamW(groups(loop.model))
    first, second = BLUEPRINTS[TOPOLOGY[network]]
    grower = loop.grow(Script({0: germinate(0, first), 1: germinate(1, second), 2: advance(0), 3: advance(1)}))
    for _ in range(4):
        loop.epoch()
        grower.end_epoch()
    seeds = {id(p): p for slot in loop.model.growth.slots() for p in slot.named().values()}
    assert {p.dim() > 1 for p in seeds.values()} == {True, False}
    return loop, [[seeds[id(p)] for p in group["params"] if id(p) in seeds] for group in loop.optimizer.param_groups]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
def test_where_matrices_and_vectors_are_apart_so_are_those_of_seeds(network, first):
    def groups(model):
        parts = [{"params": [p for p in model.parameters() if (p.dim() > 1) == matrices]} for matrices in (True, False)]
        parts[0]["weight_decay"], parts[1]["weight_decay"] = 0.1, 0.0
        return parts if first else parts[::-1]

    _, joined = _grown(network, groups)
    matrices, vectors = joined if first else joined[::-1]
    assert matrices
    assert vectors
    assert all(p.dim() > 1 for p in matrices)
    assert all(p.dim() <= 1 for p in vectors)


def test_where_layers_are_apart_a_seed_is_with_its_layer():
    def groups(model):
        return [{"params": list(module.parameters())} for module in model if any(True for _ in module.parameters())]

    loop, joined = _grown("mlp", groups)
    layers = [module for module in loop.model if isinstance(module, nn.Linear)]
    for slot in loop.model.growth.slots():
        (layer,) = (at for at, module in enumerate(layers) if module is loop.model.get_submodule(slot.place.name))
        assert {id(p) for p in slot.named().values()} == {id(p) for p in joined[layer]}
