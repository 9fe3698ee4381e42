"""Hosts of both members-first topologies learn as the same network written in plain torch."""

import numpy as np
import pytest
import torch
from torch import nn

from envs.hosts.mlp import MlpVariant
from envs.hosts.transformer import TransformerVariant
from tests.envs.helpers import WAIT, everyone
from tests.envs.topologies import env_of


class PlainTransformer(nn.Module):
    def __init__(self, variant, vocabulary, context):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, variant.width), nn.Embedding(context, variant.width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                variant.width, variant.heads, hidden, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for hidden in variant.hidden
        )
        self.norm = nn.LayerNorm(variant.width)

    def forward(self, x):
        length = x.shape[1]
        h = self.tokens(x) + self.positions.weight[:length]
        for layer in self.layers:
            h = layer(h, nn.Transformer.generate_square_subsequent_mask(length), is_causal=True)
        return self.norm(h) @ self.tokens.weight.T

    def in_our_order(self):
        yield from (self.tokens.weight, self.positions.weight)
        for layer in self.layers:
            yield from (layer.norm1.weight, layer.norm1.bias, layer.self_attn.in_proj_weight)
            yield from layer.self_attn.out_proj.parameters()
            yield from (layer.norm2.weight, layer.norm2.bias)
            yield from (*layer.linear1.parameters(), *layer.linear2.parameters())
        yield from self.norm.parameters()


class PlainMlp(nn.Module):
    def __init__(self, variant, inputs, classes):
        super().__init__()
        width = variant.width
        self.embed = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            for hidden in variant.hidden
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x):
        h = self.embed(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)

    def in_our_order(self):
        return self.parameters()


def plain_network(topology, host):
    if topology == "transformer":
        net = PlainTransformer(host.widest, host.vocabulary, host.context)
        for layer in net.layers:
            nn.init.zeros_(layer.self_attn.in_proj_bias)  # our attention has none; it stays out of the optimiser
        return net
    return PlainMlp(host.widest, host.num_inputs, host.num_classes)


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
