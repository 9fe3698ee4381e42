"""The operators that torch dispatches: what a step asks of a device, and whether the host would wait for an answer."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.item, aten.equal, aten.is_nonzero}
"""Give Python a number: on a GPU the host waits for everything before."""
SIZES = {aten.nonzero, aten.nonzero_static, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive}
"""Give a shape that depends on values."""
UPLOADS = {aten.lift_fresh}
"""Make a tensor of Python's numbers: on a GPU a copy each time."""
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
"""Count, by a mask, how many entries it has."""


class Dispatched(TorchDispatchMode):
    """Records what is dispatched within it, the backward pass included.

    Attributes:
        calls: How often each operator was.
        waits: Those of them after which a GPU's host waits, or for which it builds and sends a tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        self.calls[str(func)] += 1
        by_mask = packet in INDEXING and any(isinstance(i, Tensor) and i.dtype is torch.bool for i in args[1])
        if packet in READS | SIZES | UPLOADS or by_mask or (packet is aten.repeat_interleave and len(args) == 1):
            self.waits[str(func)] += 1
        return func(*args, **(kwargs or {}))
