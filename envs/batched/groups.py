"""Into which groups the channels of a member are normalised."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def group_size(width: int) -> int:
    """Channels in a normalisation group of a member that has this many: the fewest that divide them, but 4 at least.

    Fewer would have little to normalise on a 1×1 map. A member with fewer than 4 channels is one group.
    """
    return next((size for size in range(4, width) if width % size == 0), width)


@cache
def group_sizes(channels: int, device: torch.device) -> Tensor:
    """``[channels + 1]`` the group size of every width up to this one, to be looked up by a member's width."""
    return torch.tensor([group_size(width) for width in range(channels + 1)]).to(device)
