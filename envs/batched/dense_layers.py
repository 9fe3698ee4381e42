"""Layers for members-first activations, sequences ``[M, B, L, D]`` and vectors ``[M, B, D]``.

Weights lead with the member axis too, so that every linear of all members is one batched matrix product.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from envs.batched.layers import NORM_EPS

logger = logging.getLogger(__name__)


def _beside(weight: Tensor, x: Tensor) -> Tensor:
    """``[M, D]`` in the shape that broadcasts against ``x``."""
    return weight.view(len(weight), *[1] * (x.dim() - 2), -1)


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One linear map per member.

    Args:
        x: ``[M, ..., D_in]``.
        weight: ``[M, D_out, D_in]``.
        bias: ``[M, D_out]`` or None.

    Returns:
        ``[M, ..., D_out]``.
    """
    rows, matrix = x.flatten(1, -2), weight.transpose(1, 2)
    out = torch.bmm(rows, matrix) if bias is None else torch.baddbmm(bias[:, None], rows, matrix)
    return out.view(*x.shape[:-1], -1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm over the features of ``x`` (``[M, ..., D]``), with each member's own weight and bias ``[M, D]``."""
    return torch.addcmul(_beside(bias, x), normalised(x), _beside(weight, x))


def normalised(x: Tensor) -> Tensor:
    """``x`` with mean 0 and variance 1 over the features (layer norm without parameters)."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def embed(table: Tensor, tokens: Tensor) -> Tensor:
    """Look tokens up in each member's own table: ``[M, V, D]`` by ``[M, ...]`` → ``[M, ..., D]``."""
    members, size = table.shape[:2]
    offset = torch.arange(members, device=tokens.device).view(-1, *[1] * (tokens.dim() - 1)) * size
    return F.embedding(tokens + offset, table.flatten(0, 1))


def self_attention(x: Tensor, qkv: Tensor, heads: int, window: int | None = None) -> Tensor:
    """Causal multi-head self-attention, before the output projection (Vaswani et al. 2017).

    There are no biases: that of the keys would have no gradient, as a softmax ignores what all its inputs share.

    Args:
        x: ``[M, B, L, D]``.
        qkv: ``[M, 3·D, D]`` weights of queries, keys and values.
        heads: Divides D.
        window: A token sees itself and at most ``window - 1`` tokens before it; None: all before it.

    Returns:
        ``[M, B, L, D]``.
    """
    members, batch, length, width = x.shape
    split = dense(x, qkv).view(members * batch, length, 3, heads, width // heads)
    q, k, v = split.permute(2, 0, 3, 1, 4)
    out = causal_attention(q, k, v) if window is None else windowed_attention(q, k, v, window)
    return out.transpose(1, 2).reshape(x.shape)


def attention_flops(length: int, width: int) -> int:
    """FLOPs of one sample's attention between its projections, over all pairs of tokens, masked ones included."""
    return 4 * length * length * width


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every token attends to itself and all before it; all shapes ``[N, heads, L, d]``."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Every token attends to itself and the ``window - 1`` before it; all shapes ``[N, heads, L, d]``.

    Runs through FlexAttention (Dong et al. 2024) on CUDA, and with the same mask through scaled dot-product
    attention elsewhere, since FlexAttention has no backward on CPU (torch 2.13, compiled or not).
    """
    if q.is_cuda:
        return flex_windowed_attention(q, k, v, window)
    _say_that_flex_is_not_used(q.device.type)
    return masked_windowed_attention(q, k, v, window)


@cache
def _say_that_flex_is_not_used(device: str) -> None:
    logger.info(
        "FLEX_ATTENTION runs as masked scaled dot-product attention: FlexAttention does not train on %s", device
    )


def flex_windowed_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """The window by FlexAttention.

    Not compiled: the number of members changes with every germination, and each would compile anew.
    """
    return flex_attention(q, k, v, block_mask=_window_blocks(q.shape[2], window, q.device.type))


def masked_windowed_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """The window as a mask of scaled dot-product attention."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_window_mask(q.shape[2], window, q.device))


def _in_window(query: Tensor, key: Tensor, window: int) -> Tensor:
    return (query >= key) & (query - key < window)


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    position = torch.arange(length, device=device)
    return _in_window(position[:, None], position, window)


@cache
def _window_blocks(length: int, window: int, device: str) -> BlockMask:
    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return _in_window(query, key, window)

    return create_block_mask(mask, None, None, length, length, device=device)
