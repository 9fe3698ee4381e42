"""Numbers of which some are not known, as what a network can read: with masks, and finite."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from policies.strategic.schema import Columns

KEPT = 8
"""How many shapes, and structures of graphs, have what follows from them kept: every world has one, and so has a model
that sends packets. A training batch's takes up to 20 MB, so that there are no more."""
Kinds = tuple[tuple[Columns, int], ...]
"""Columns of several kinds, and to what width zeros fill them up once they have masks."""


def encode(values: Sequence[Tensor], kinds: Kinds) -> list[Tensor]:
    """Numbers of several kinds and after them their masks, in as many operators as those of one.

    Args:
        values: By kind ``[N, rows, columns.width]``, NaN or infinite where not known.
        kinds: Theirs.

    Returns:
        By kind ``[N, rows, width]``, all finite; a mask is 1 where its whole block is known, else the number is its
        fill-in.
    """
    rows = tuple(of.shape[1] for of in values)
    numbers = torch.cat([of.flatten(1) for of in values], dim=1)
    fills, bounds, order = _places(rows, kinds, numbers.device)
    unknown = (numbers - numbers) != 0  # NaN of what is not finite, at half of isfinite's price
    before, upto = F.pad(unknown.cumsum(1), (1, 0))[:, bounds].unbind(1)
    known = F.pad((before == upto).to(numbers.dtype), (0, 1))
    encoded = torch.cat([torch.where(unknown, fills, numbers), known], dim=1).index_select(1, order)
    parts = encoded.split([count * width for count, (_, width) in zip(rows, kinds, strict=True)], dim=1)
    return [part.view(len(encoded), count, width) for part, count, (_, width) in zip(parts, rows, kinds, strict=True)]


@lru_cache(KEPT)
@torch.inference_mode(False)  # what is kept serves training, too
def _places(rows: tuple[int, ...], kinds: Kinds, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where everything is among T numbers, so many rows of each kind one after the other.

    Returns:
        The numbers' fill-ins ``[T]``; the bounds of their blocks ``[2, b]``; and where each encoded number stands among
        T numbers, b masks and a zero.
    """
    mask = sum(count * columns.width for count, (columns, _) in zip(rows, kinds, strict=True))
    zero = mask + sum(count * len(columns.blocks) for count, (columns, _) in zip(rows, kinds, strict=True))
    fills, bounds, order, number = [], [], [], 0
    for count, (columns, width) in zip(rows, kinds, strict=True):
        first = number + columns.width * torch.arange(count).unsqueeze(1)
        masks = mask + torch.arange(count * len(columns.blocks)).view(count, len(columns.blocks))
        ends = torch.tensor(list(accumulate((len(block.names) for block in columns.blocks), initial=0)))
        fills.append(torch.tensor(columns.fills).repeat(count))
        bounds.append(torch.stack([(first + ends[:-1]).flatten(), (first + ends[1:]).flatten()]))
        encoded = torch.cat([first + torch.arange(columns.width), masks], dim=1)
        order.append(F.pad(encoded, (0, width - columns.encoded), value=zero).flatten())
        number, mask = number + count * columns.width, mask + masks.numel()
    return torch.cat(fills).to(device), torch.cat(bounds, dim=1).to(device), torch.cat(order).to(device)
