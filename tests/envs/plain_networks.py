"""The hosts of both members-first topologies as plain torch modules."""

from torch import nn


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
