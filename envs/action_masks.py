"""Which actions the world admits: layout of the flat mask, and its content from the lifecycle's gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from envs.lifecycle import Lifecycle
from envs.vocabulary import HeadSpec, LifecycleOp

MaskT = TypeVar("MaskT", npt.NDArray[np.generic], torch.Tensor)


def mask_size(heads: Sequence[HeadSpec]) -> int:
    """Length of the flat mask: one entry per choice, for a head masked by op one row per op (56 for 3 slots)."""
    return sum(head.size * (heads[0].size if head.masked_by_op else 1) for head in heads)


def split_mask(mask: MaskT, heads: Sequence[HeadSpec]) -> dict[str, MaskT]:
    """Named views of a flat mask.

    Args:
        mask: ``[..., mask_size]``, numpy or torch.
        heads: The action's heads.

    Returns:
        Head name → ``[..., size]``; for a head masked by op (``slot``) ``[..., num_ops, size]``.

    Raises:
        ValueError: the last axis is not ``mask_size(heads)`` long.
    """
    expected = mask_size(heads)
    if mask.shape[-1] != expected:
        raise ValueError(f"the flat mask of these heads has {expected} entries, got shape {tuple(mask.shape)}")
    views: dict[str, MaskT] = {}
    start = 0
    for head in heads:
        rows = heads[0].size if head.masked_by_op else 1
        view = mask[..., start : start + rows * head.size]
        views[head.name] = view.reshape(*mask.shape[:-1], rows, head.size) if head.masked_by_op else view
        start += rows * head.size
    return views


def mask_places(heads: Sequence[HeadSpec], wider: Sequence[HeadSpec]) -> npt.NDArray[np.int64]:
    """Where each entry of a flat mask stands in that of heads with as many choices or more: ``[mask_size(heads)]``."""
    views = split_mask(np.arange(mask_size(wider)), wider)
    own = split_mask(np.arange(mask_size(heads)), heads)
    return np.concatenate([views[name][tuple(slice(end) for end in view.shape)].ravel() for name, view in own.items()])


def build_mask(lifecycle: Lifecycle) -> npt.NDArray[np.int8]:
    """The flat mask ``[N, mask_size]`` of what the lifecycle would execute now.

    Rows that nobody may use (WAIT's slots, an invalid op's, a head that no valid op needs) are all zero.
    """
    heads = lifecycle.slots.heads
    gates = lifecycle.gates()
    valid_ops = np.asarray(gates.any(axis=2))
    valid_ops[:, LifecycleOp.WAIT] = True
    mask = np.zeros((len(gates), mask_size(heads)), np.int8)
    views = split_mask(mask, heads)
    views["op"][:] = valid_ops
    views["slot"][:] = gates
    narrowing = {"blueprint": lifecycle.blueprint_gate(), "style": lifecycle.style_gate(gates)}
    for head in heads[2:]:
        needed = valid_ops[:, list(head.needed_by)].any(axis=1, keepdims=True)
        views[head.name][:] = needed & narrowing.get(head.name, np.True_)
    return mask


def marginal_mask(mask: npt.NDArray[np.int8], heads: Sequence[HeadSpec]) -> npt.NDArray[np.int8]:
    """Each head's mask whatever the op, concatenated: ``[..., sum of head sizes]`` (41 for 3 slots).

    A head that no valid op needs shows index 0, so that a client which samples every head always finds an entry.
    """
    parts = []
    for view in split_mask(mask, heads).values():
        marginal = np.asarray(view.any(axis=-2) if view.ndim > mask.ndim else view) != 0
        marginal[..., 0] |= ~marginal.any(axis=-1)
        parts.append(marginal)
    return np.concatenate(parts, axis=-1).astype(np.int8)


def whole_numbers(actions: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Actions as indices.

    Raises:
        ValueError: something that is no whole number, which a conversion would silently round.
    """
    given = np.asarray(actions)
    if not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"actions must be whole numbers, got {given.dtype}: {given.reshape(-1)[:8].tolist()}")
    return given.astype(np.int64)


def refusals(
    actions: npt.NDArray[np.int64], mask: npt.NDArray[np.int8], heads: Sequence[HeadSpec]
) -> dict[str, npt.NDArray[np.bool_]]:
    """Which heads of each action the mask refuses; heads that the op does not need are not looked at.

    Args:
        actions: ``[N, num_heads]`` indices.
        mask: ``[N, mask_size]``.
        heads: The action's heads.

    Returns:
        Head name → ``[N]`` refused.

    Raises:
        ValueError: an index outside its head, or the wrong number of columns.
    """
    sizes = np.array([head.size for head in heads])
    if actions.shape != (len(mask), len(heads)) or ((actions < 0) | (actions >= sizes)).any():
        raise ValueError(
            f"actions must be [{len(mask)}, {len(heads)}] with entries below {sizes.tolist()}, got shape "
            f"{actions.shape} with values from {actions.min()} to {actions.max()}"
        )
    views = split_mask(mask, heads)
    rows, op = np.arange(len(actions)), actions[:, 0]
    needed = np.zeros((heads[0].size, len(heads)), bool)
    for column, head in enumerate(heads):
        needed[list(head.needed_by), column] = True
    refused = {}
    for column, head in enumerate(heads):
        view = views[head.name]
        admitted = view[rows, op, actions[:, column]] if head.masked_by_op else view[rows, actions[:, column]]
        refused[head.name] = needed[op, column] & (admitted == 0)
    return refused
