"""A mini-batch step is a function of tensors that outlive it: recorded once, it does what calling it again does."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.living_seeds import fresh_population
from envs.population.capture import Repeater
from envs.tasks import make_task
from tests.devices import GPU
from tests.dispatched import Dispatched
from tests.envs.helpers import task_of, torch_alone
from tests.envs.topologies import task_of as other_task_of

TASKS = {
    "cnn": lambda: task_of(batches=5),
    "mixed widths": lambda: make_task("digits_mixed"),
    "internal levels": lambda: make_task("digits_scale"),
    "transformer": lambda: other_task_of("transformer", batches=5),
    "mlp": lambda: other_task_of("mlp", batches=5),
}


class Tape(Dispatched):
    """Records the operators of a step, to play them again without its Python."""

    def __init__(self):
        super().__init__()
        self.record = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.record.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def play(self):
        made = {}

        def now(tensor):
            return made.get(id(tensor), tensor)

        for function, args, kwargs, before in self.record:
            result = function(*tree_map_only(torch.Tensor, now, args), **tree_map_only(torch.Tensor, now, kwargs))
            pairs = zip(tree_leaves(before), tree_leaves(result), strict=True)
            made |= {id(old): new for old, new in pairs if isinstance(old, torch.Tensor)}


class TapedRepeater(Repeater):
    """Takes the first step, records the second, and plays it for the others."""

    def repeat(self, step, times):
        step()
        with Tape() as tape:
            step()
        assert not tape.waits, "the host would wait for a GPU"
        for _ in range(times - 2):
            tape.play()


def trained(task, repeater, device="cpu", epochs=2):
    population, lifecycle = fresh_population(task, 6, epochs, torch.device(device), share=0.8)
    population.repeater = repeater
    health = [population.train_epoch(np.full(6, epoch), lifecycle) for epoch in range(epochs)]
    seeds = [bank.rows.flat for bank in population.banks.values()]
    momentum = [population.momentum, *(bank.rows.momentum for bank in population.banks.values())]
    tensors = [population.flat, *seeds, *momentum, *population.buffers.values()]
    return [tensor.cpu() for tensor in tensors], [health[-1].norm, health[-1].exploding]


def same(ours, expected):
    for tensor, other in zip(ours[0], expected[0], strict=True):
        assert torch.equal(tensor, other)
    for array, other in zip(ours[1], expected[1], strict=True):
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("by_torch", [False, True], ids=["kernels", "torch alone"])
@pytest.mark.parametrize("name", TASKS)
def test_a_recorded_step_played_again_trains_as_the_step_called_again(name, by_torch):
    task, device = TASKS[name](), torch.device("cpu")
    with torch_alone() if by_torch else nullcontext():
        same(trained(task, TapedRepeater(device)), trained(task, Repeater(device)))


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("name", TASKS)
def test_an_epoch_captured_on_cuda_trains_bit_for_bit_as_an_eager_one(name, device):
    task, results = TASKS[name](), []
    for capture in (True, False):
        repeater = Repeater(torch.device(device))
        repeater.capture = capture
        results.append(trained(task, repeater, device))
        assert repeater.capture == capture, "capture was given up"
    same(*results)
