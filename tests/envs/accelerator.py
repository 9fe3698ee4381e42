"""A stand-in for an accelerator: its tensors compute on the CPU, and refuse to mix with the CPU's own.

It borrows the name of torch's ``meta`` device, the only one beside the CPU that autograd runs on in every build.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

NAME = "meta"
aten = torch.ops.aten
MIXING = {aten._to_copy.default, aten.copy_.default}
"""Operations that may have tensors of both devices, as with CUDA."""
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}
"""Here the indices alone may be the CPU's."""


class Remote(Tensor):
    """A tensor of the device; its values are in ``inner``."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Remote:
        remote = Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=torch.device(NAME)
        )
        remote.inner = inner
        return remote

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Accelerator(TorchDispatchMode):
    """Within it ``device=NAME`` works like ``"cuda"``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation.

    Raises:
        RuntimeError: its tensors are on different devices (those without axes may be anywhere, as with CUDA).
    """
    checked = (args[:1], args[2:]) if func in INDEXING else (args, kwargs)
    tensors = [leaf for leaf in tree_iter(checked) if isinstance(leaf, Tensor)]
    remote = any(isinstance(leaf, Remote) for leaf in tensors)
    if remote and func not in MIXING and any(not isinstance(leaf, Remote) and leaf.dim() for leaf in tensors):
        raise RuntimeError(f"{func} got tensors of both devices")
    device = kwargs.get("device")
    if device is not None:
        remote = torch.device(device).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    originals = {id(leaf.inner): leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Remote)}

    def strip(leaf: Any) -> Any:
        return leaf.inner if isinstance(leaf, Remote) else leaf

    def wrap(leaf: Any) -> Any:
        if not remote or not isinstance(leaf, Tensor):
            return leaf
        return originals[id(leaf)] if id(leaf) in originals else Remote(leaf)

    return tree_map(wrap, func(*tree_map(strip, args), **tree_map(strip, kwargs)))
