"""Who looks at a network quietly leaves it as it was, whatever its forward writes."""

import pytest
import torch
from torch import nn

from envs.live.quiet import untouched
from tests.esper_ray.live.models import Loop, growing, images
from tests.esper_ray.live.odd_models import Counting

torch.set_num_threads(1)


def values(model):
    return {name: buffer.to_dense().clone() for name, buffer in model.named_buffers()}


def unchanged(model, tensors, before):
    now = dict(model.named_buffers())
    return all(now[name] is tensors[name] and torch.equal(now[name].to_dense(), before[name]) for name in before)


def test_buffers_are_the_same_tensors_with_the_same_values():
    model, x = Counting(), torch.ones(2, 1, 16, 16)
    model(x)
    tensors, before = dict(model.named_buffers()), values(model)
    with untouched(model):
        model(x)
        model(2 * x)
        assert model.calls == 3
        assert model.largest.max() == 2
    assert unchanged(model, tensors, before)
    with pytest.raises(RuntimeError, match="must match"), untouched(model):
        model(torch.ones(2, 3))
    assert unchanged(model, tensors, before), "after an error too"


def test_what_nobody_wrote_can_still_be_differentiated_through():
    """A backward pass refuses tensors that were written meanwhile."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).eval()
    loss = model(torch.randn(4, 3)).sum()
    with untouched(model):
        model(torch.randn(4, 3))
    loss.backward()


def test_a_cache_that_grew_stays_as_its_module_believes():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.length = 0
            self.register_buffer("table", torch.zeros(0), persistent=False)
            self.register_buffer("later", None)

        def forward(self, x):
            if len(x) > self.length:
                self.length, self.table, self.later = len(x), torch.arange(float(len(x))), torch.ones(1)
            return x * self.table[: len(x)] * self.later

    model = Cached()
    with untouched(model):
        model(torch.ones(5))
    assert model(torch.ones(4)).tolist() == [0.0, 1.0, 2.0, 3.0]


def test_growing_leaves_buffers_to_the_training():
    loop = Loop(Counting, images)
    loop.epoch()
    before = values(loop.model)
    grower = growing(loop, ["a"])
    assert all(torch.equal(values(loop.model)[name], before[name]) for name in before), "looking for places"
    loop.epoch()
    before = values(loop.model)
    grower.end_epoch()
    assert all(torch.equal(values(loop.model)[name], before[name]) for name in before), "validation"
