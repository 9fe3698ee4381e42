"""The greenhouse's hosts as modules of torch, so that whoever looks at a live one finds its layers.

A layer is a module of the name that :class:`envs.hosts.structure.HostLayer` has for it, and its parameters come in the
order in which they stand there.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.batched.dense_layers import causal_attention
from envs.batched.layers import NORM_EPS, NORM_MOMENTUM, batch_norm, conv, global_average_pool, linear
from envs.hosts.base import Host
from envs.hosts.cnn import CnnHost, CnnVariant
from envs.hosts.mlp import MlpHost, MlpVariant
from envs.hosts.transformer import TransformerHost, TransformerVariant
from envs.tasks.base import TaskError

Parts = tuple[list[nn.Module], nn.Module]
"""The segments of a host, and what makes logits of what the last one gave."""


class ConvBlock(nn.Sequential):
    """Convolutions with batch norm and ReLU behind each, and a 2×2 mean.

    In training they compute as the greenhouse's do, to the bit: where a ReLU reads what is within rounding of 0, two
    ways of computing disagree, and after a few epochs their hosts are visibly different ones. Its modules are called
    one by one in mode ``eval``, in which a probe looks at them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` → ``[B, C, H // 2, W // 2]``, or maps as small as they were if they have no 2×2 cells."""
        return self._trained(x) if self.training else _called(self, x)

    def _trained(self, x: Tensor) -> Tensor:
        convolutions = [module for module in self if isinstance(module, nn.Conv2d)]
        norms = [module for module in self if isinstance(module, nn.BatchNorm2d)]
        h = _one_member(x)
        for convolution, norm in zip(convolutions, norms, strict=True):
            tensors = (norm.weight, norm.bias, norm.get_buffer("running_mean"), norm.get_buffer("running_var"))
            weight, bias, mean, var = (tensor.unsqueeze(0) for tensor in tensors)
            h = conv(h, convolution.weight.unsqueeze(0))
            h = batch_norm(h, weight, bias, mean, var, relu=True, pool=norm is norms[-1])
        return h.squeeze(0).permute(0, 3, 1, 2)


class ConvReadout(nn.Module):
    """The mean over the map, and a linear layer; likewise.

    Args:
        inputs: Channels.
        classes: Outputs.
    """

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → logits ``[B, classes]``."""
        if self.training:
            pooled = global_average_pool(_one_member(x))
            return linear(pooled, self.head.weight.unsqueeze(0), self.head.bias.unsqueeze(0)).squeeze(0)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _one_member(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` as the greenhouse has one host's images, a view."""
    return x.permute(0, 2, 3, 1).unsqueeze(0)


def _called(modules: nn.Sequential, x: Tensor) -> Tensor:
    """One after the other."""
    for module in modules:
        x = module(x)
    return x


class MeanPool(nn.Module):
    """2×2 means of ``[B, C, H, W]`` where the map has at least 2×2 cells."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H // 2, W // 2]``, or ``x``."""
        return F.avg_pool2d(x, 2) if min(x.shape[2:]) >= 2 else x


class Residual(nn.Sequential):
    """What its modules make of an activation, one after the other, added to it."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + _called(self, x)


class CausalAttention(nn.Module):
    """Every token attends to itself and all before it, in several heads.

    Args:
        heads: Divide the width.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values ``[B, L, 3·D]`` → ``[B, L, D]``."""
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return causal_attention(q, k, v).transpose(1, 2).flatten(2)


class Embeddings(nn.Module):
    """Vectors of tokens, and of where they stand.

    Args:
        vocabulary: Number of tokens.
        context: Longest sequence.
        width: Of the vectors.
    """

    def __init__(self, vocabulary: int, context: int, width: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens, int64 ``[B, L]`` → ``[B, L, width]``."""
        vectors: Tensor = self.tokens(x)
        return vectors + self.positions(torch.arange(x.shape[1], device=x.device))


def modules_of(host: Host[Any], variant: Any) -> Parts:
    """A host of a variant's size; its weights are drawn by torch.

    Raises:
        TaskError: a host of a class that is not known here.
    """
    if isinstance(host, CnnHost):
        return _convolutional(host, variant)
    if isinstance(host, MlpHost):
        return _multilayer(host, variant)
    if isinstance(host, TransformerHost):
        return _transformer(host, variant)
    raise TaskError(
        f"a {type(host).__name__} is not known as modules of torch, as a live host is made of: take a task of a "
        "CnnHost, an MlpHost or a TransformerHost"
    )


def _convolutional(host: CnnHost, variant: CnnVariant) -> Parts:
    segments: list[nn.Module] = []
    inputs = host.in_channels
    for block in range(len(variant.widths)):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(block * variant.depth, (block + 1) * variant.depth):
            width, kernel = variant.layers[i]
            layers[f"conv{i}"] = nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=False)
            layers[f"norm{i}"] = nn.BatchNorm2d(width, eps=NORM_EPS, momentum=NORM_MOMENTUM)
            layers[f"relu{i}"] = nn.ReLU()
            inputs = width
        layers["pool"] = MeanPool()
        segments.append(ConvBlock(layers))
    return segments, ConvReadout(inputs, host.num_classes)


def _multilayer(host: MlpHost, variant: MlpVariant) -> Parts:
    width = variant.width
    segments: list[nn.Module] = [
        _feed_forward(f"segment{segment}", width, hidden) for segment, hidden in enumerate(variant.hidden)
    ]
    segments[0] = nn.Sequential(OrderedDict(embed=nn.Linear(host.num_inputs, width), block=segments[0]))
    return segments, nn.Sequential(OrderedDict(final_norm=_layer_norm(width), head=nn.Linear(width, host.num_classes)))


def _transformer(host: TransformerHost, variant: TransformerVariant) -> Parts:
    width = variant.width
    embeddings, segments = Embeddings(host.vocabulary, host.context, width), list[nn.Module]()
    for segment, count in enumerate(variant.layers):
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        if segment == 0:
            blocks["embeddings"] = embeddings
        for layer in range(count):
            name = f"segment{segment}_layer{layer}"
            if variant.attends[segment]:
                blocks[f"attention{layer}"] = _attention(f"{name}_attention", width, variant.heads)
            blocks[f"mlp{layer}"] = _feed_forward(f"{name}_mlp", width, variant.hidden[segment])
        segments.append(nn.Sequential(blocks))
    head = nn.Linear(width, host.vocabulary, bias=False)
    tied = embeddings.tokens.weight
    assert isinstance(tied, nn.Parameter)
    head.register_parameter("weight", tied)
    return segments, nn.Sequential(OrderedDict(final_norm=_layer_norm(width), head=head))


def _feed_forward(name: str, width: int, hidden: int) -> Residual:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers[f"{name}_norm"] = _layer_norm(width)
    layers[f"{name}_in"] = nn.Linear(width, hidden)
    layers[f"{name}_gelu"] = nn.GELU()
    layers[f"{name}_out"] = nn.Linear(hidden, width)
    return Residual(layers)


def _attention(name: str, width: int, heads: int) -> Residual:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers[f"{name}_norm"] = _layer_norm(width)
    layers[f"{name}_qkv"] = nn.Linear(width, 3 * width, bias=False)
    layers[f"{name}_heads"] = CausalAttention(heads)
    layers[f"{name}_out"] = nn.Linear(width, width)
    return Residual(layers)


def _layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=NORM_EPS)
