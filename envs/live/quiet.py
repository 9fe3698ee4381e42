"""Looking at a network without leaving a trace: modes, gradients, buffers and randomness are as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluate in here: mode ``eval``, no gradient; every module's mode, its buffers and all randomness are put back.

    That is Python's randomness, numpy's and torch's, on the CPU and on every CUDA device that is in use. What a module
    keeps in plain attributes nobody can put back.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = _buffers(model)
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - it is the user's
    try:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, training in modes:
            vars(module).update(training=training)  # not train(), which some modules make their own of
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002
        for buffer in buffers:
            buffer.put_back()


@dataclass(frozen=True)
class _Buffer:
    """A module's buffer as it was.

    Attributes:
        module: That has it.
        name: In the module.
        tensor: The buffer itself.
        values: A copy.
    """

    module: nn.Module
    name: str
    tensor: Tensor
    values: Tensor

    def put_back(self) -> None:
        """The same tensor with the same values. One of another kind stays: a cache that grew, as its module knows."""
        now = self.module._buffers.get(self.name)
        if now is None or not _kind(now) == _kind(self.tensor) == _kind(self.values):
            return
        setattr(self.module, self.name, self.tensor)
        if not torch.equal(self.tensor, self.values):
            self.tensor.data.copy_(self.values)  # the version counter says what the user wrote


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _buffers(model: nn.Module) -> list[_Buffer]:
    """Copies of all: neither what a forward will write is known before, nor, where it uses ``.data``, afterwards."""
    return [
        _Buffer(module, name, tensor, tensor.detach().clone())
        for module in model.modules()
        for name, tensor in module._buffers.items()
        if tensor is not None and tensor.layout == torch.strided
    ]
