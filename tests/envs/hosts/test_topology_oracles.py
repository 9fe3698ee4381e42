"""Hosts of both members-first topologies learn as the same network written in plain torch."""

import numpy as np
import pytest
import torch
from torch import nn

from envs.hosts.mlp import MlpVariant
from envs.hosts.transformer import TransformerVariant
from tests.envs.helpers import WAIT, everyone
from tests.envs.plain_networks import plain_network
from tests.envs.topologies import env_of


@pytest.mark.parametrize("topology", ["transformer", "mlp"])
def test_a_member_learns_as_a_plain_torch_network_with_plain_torch_sgd(topology):
    variant = {
        "transformer": TransformerVariant(8, 2, layers=(1, 1), hidden=(8, 4), attends=(True, True)),
        "mlp": MlpVariant(width=4, hidden=(3, 2)),
    }[topology]
    env = env_of(topology, 3, (variant,), max_epochs=6)
    env.reset(seed=[1, 2, 3])
    population, member = env.population, 1
    net = plain_network(topology, env.task.host)
    ours = population.layout.views(population.flat).values()
    with torch.no_grad():
        for parameter, values in zip(net.in_our_order(), ours, strict=True):
            parameter.copy_(values[member])
    optimiser = torch.optim.SGD(list(net.in_our_order()), lr=0.0, momentum=0.9)
    train, validation = env.task.splits["train"], env.task.splits["validation"]
    for epoch in range(3):
        *_, info = env.step(everyone(env, WAIT))
        for batch in population._order[member, epoch]:
            optimiser.param_groups[0]["lr"] = env.task.learning_rate(epoch / 6)
            optimiser.zero_grad()
            index = torch.from_numpy(batch.astype(np.int64))
            nn.functional.cross_entropy(net(train.x[index]).flatten(0, -2), train.y[index].flatten()).backward()
            nn.utils.clip_grad_norm_(list(net.in_our_order()), 1.0)
            optimiser.step()
        flat = torch.cat([parameter.detach().flatten() for parameter in net.in_our_order()])
        torch.testing.assert_close(population.flat[member], flat, atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            logits = net(validation.x)
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), validation.y.flatten())
        accuracy = 100 * (logits.argmax(-1) == validation.y).float().mean()
        assert env.progress.loss[member, -1] == pytest.approx(float(loss), abs=1e-4)
        assert info["val_accuracy"][member] == pytest.approx(float(accuracy), abs=1e-4)
