"""A batch of inputs as a model takes it: how many samples it has, fewer of them, and the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from envs.live.errors import LiveError

Example = Tensor | Sequence[Any] | Mapping[str, Any]
"""One batch as the model takes it: its only argument, its positional ones, or its named ones."""


def batch_size(example: Example, batch_axis: int) -> int:
    """Samples of an example.

    Raises:
        LiveError: it holds no tensor, or its first tensor has no such axis.
    """
    for value in _values(example):
        if isinstance(value, Tensor):
            if value.dim() <= batch_axis:
                raise LiveError(f"the example's first tensor has shape {list(value.shape)} and no axis {batch_axis}")
            return value.shape[batch_axis]
    raise LiveError("the example must be a tensor, or a tuple or dict that holds one: pass one batch of inputs")


def shortened(example: Example, batch_axis: int, size: int, kept: int) -> Example:
    """The first ``kept`` samples of an example of ``size`` samples."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() > batch_axis and value.shape[batch_axis] == size:
            return value.narrow(batch_axis, 0, kept)
        return value

    if isinstance(example, Mapping):
        return {name: cut(value) for name, value in example.items()}
    return cut(example) if isinstance(example, Tensor) else tuple(cut(value) for value in example)


def call(model: nn.Module, example: Example) -> Any:
    """The model's output for an example."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(example) if isinstance(example, Tensor) else model(*example)


def _values(example: Example) -> list[Any]:
    if isinstance(example, Mapping):
        return list(example.values())
    return [example] if isinstance(example, Tensor) else list(example)
