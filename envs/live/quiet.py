"""Looking at a network without leaving a trace: modes, gradients and randomness are as they were afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluate in here: mode ``eval``, no gradient; every module's mode and all randomness are put back.

    That is Python's randomness, numpy's and torch's, on the CPU and on every CUDA device that is in use.
    """
    modes = [(module, module.training) for module in model.modules()]
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
