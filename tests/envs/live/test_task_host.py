"""A task's host as modules of torch: whose it can be, and what making it leaves alone."""

import numpy as np
import pytest
import torch

from envs.live.host_modules import modules_of
from envs.live.task_host import TaskHost, TaskLoop
from envs.tasks import TaskError, make_task


@pytest.mark.parametrize("name", ["digits_mixed", "tabular", "text_attending"])
def test_its_weights_are_those_that_the_greenhouse_names_in_its_order(name):
    task = make_task(name)
    before = torch.random.get_rng_state()
    for at, variant in enumerate(task.variants):
        model = TaskHost(task, at)
        sizes = {key: tuple(weight.shape) for key, weight in model.weights.items()}
        assert list(sizes.items()) == [(key, spec.shape) for key, spec in task.host.parameters(variant).items()]
        assert {*map(id, model.weights.values())} == {*map(id, model.parameters())}
        assert model.statistics.keys() == task.host.buffers(variant).keys()
    assert torch.equal(before, torch.random.get_rng_state()), "nobody else's draws change"


def test_its_gradients_are_clipped_in_the_step_alone():
    loop = TaskLoop(make_task("tabular"), 12, seed=0)
    seen = []
    loop.optimizer.register_step_pre_hook(lambda *_: seen.append(norm(loop)))
    loop.optimizer.register_step_post_hook(lambda *_: seen.append(norm(loop)))
    loop.epoch()
    before, after = np.array(seen).reshape(-1, 2).T
    assert before.max() > 1.0 + 1e-4 >= after.max()
    assert len(loop.optimizer._optimizer_step_pre_hooks) == 1, "between two epochs only that of the test"


def norm(loop):
    return float(torch.cat([weight.grad.flatten() for weight in loop.model.weights.values()]).norm())


def test_a_host_of_a_class_of_its_own_is_refused():
    with pytest.raises(TaskError, match="a list is not known as modules of torch"):
        modules_of([], None)
