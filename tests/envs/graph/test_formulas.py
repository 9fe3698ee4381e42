"""What is measured of many hosts at once is what one of them says of itself, measured in plain torch."""

import numpy as np
import pytest
import torch

from envs.hosts.cnn import CnnVariant
from envs.hosts.mlp import MlpVariant
from envs.hosts.transformer import TransformerVariant
from envs.morphogenesis import MorphogenesisVectorEnv
from tests.envs.graph.plain_host import PlainHost
from tests.envs.helpers import WAIT, everyone, task_of, torch_alone
from tests.envs.topologies import task_of as topology_task

EPOCHS, MEMBERS = 6, 4
TOLERANCE = {"rtol": 0.01, "atol": 1e-5}  # a ReLU within rounding of 0 is on in one of the two and off in the other
DIFFERENCES = {"tunes.convergence_rate": 0.01, "metrics.loss_delta": 1e-4}
# The first kernel is never 1x1: batch norm undoes the scale of its weights, so that their gradient is mostly rounding.
TASKS = {
    "one size": lambda: task_of(CnnVariant((8, 16, 16), (3, 1, 3))),
    "several sizes": lambda: task_of(CnnVariant((10, 6, 9), (5, 1, 3)), CnnVariant((5, 4, 7), (3, 3, 1)), batches=4),
    "two convolutions a block": lambda: task_of(CnnVariant((4, 6, 4), (3, 3, 3), depth=2)),
    "vectors": lambda: topology_task("mlp", (MlpVariant(4, (3, 2)), MlpVariant(4, (1, 3)))),
    "sequences": lambda: topology_task(
        "transformer", (TransformerVariant(8, 2, layers=(1, 1), hidden=(8, 4), attends=(True, True)),)
    ),
}


def graph_env(task, **settings):
    return MorphogenesisVectorEnv(MEMBERS, task=task, max_epochs=EPOCHS + 2, graph=True, **settings)


def numbers(env, observation, member):
    """What was measured of one member, by key."""
    views = env.graph.layout.views(torch.from_numpy(observation["graph"]))
    return {key: values[member].numpy() for key, values in views.items()}


def check(env, observation, member, expected, where):
    measured = numbers(env, observation, member)
    for key, values in expected.items():
        tolerance = TOLERANCE | ({"atol": DIFFERENCES[key]} if key in DIFFERENCES else {})
        np.testing.assert_allclose(measured[key], values, **tolerance, err_msg=f"{key} {where}")


def compare(task, member):
    env = graph_env(task)
    observation, _ = env.reset(seed=[21, 22, 23, 24])
    plain = PlainHost(env, member)
    check(env, observation, member, plain.now() | plain.activity(), "of the untrained host")
    for epoch in range(1, EPOCHS):
        observation, *_ = env.step(everyone(env, WAIT))
        expected = plain.train_epoch() | plain.now()
        check(env, observation, member, expected, f"after epoch {epoch}")
    assert epoch == 5, "activity is measured again in the last epoch"
    check(env, observation, member, plain.activity(), f"after epoch {epoch}")


CASES = [(name, 0) for name in TASKS] + [(name, member) for name in ("several sizes", "vectors") for member in (1, 2)]


@pytest.mark.parametrize(("task", "member"), CASES)
def test_each_number_of_each_host_is_that_of_the_plain_network(task, member):
    compare(TASKS[task](), member)


def test_without_a_compiler_the_numbers_are_the_same():
    with torch_alone():
        compare(TASKS["several sizes"](), 1)
