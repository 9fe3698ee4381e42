"""On which axis a tensor has its features: its shape does not say so, the layers of torch around it do."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

CHANNELS, LAST = 1, -1

_CHANNELS = (
    *(nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.PixelShuffle, nn.Dropout1d, nn.Dropout2d),
)
_LAST = (
    *(nn.Linear, nn.Embedding, nn.LSTM, nn.GRU, nn.RNN, nn.MultiheadAttention),
    # Their parts are not called where attention takes its fast path.
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)
_AXES: Mapping[type[nn.Module], int] = dict.fromkeys(_CHANNELS, CHANNELS) | dict.fromkeys(_LAST, LAST)


def feature_axis(module: nn.Module) -> int | None:
    """Where a layer of torch's has the features of what it takes and gives; None of any other module.

    A subclass is another module: some layer norms over channels are subclasses of ``nn.LayerNorm``.
    """
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and type(module) in (nn.LayerNorm, nn.RMSNorm):
        return LAST if len(module.normalized_shape) == 1 else None
    return _AXES.get(type(module))


class _Touched:
    """Tensors that were given, or taken, by layers that know their axis: a place in time of each, by what finds it."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []  # while they live no other tensor has their identity
        self._times: list[int] = []
        self._axes: list[int] = []
        self._same: dict[int, list[int]] = {}
        self._alike: dict[torch.Size, list[int]] = {}

    def add(self, tensor: Tensor, axis: int, now: int) -> None:
        place = len(self._kept)
        self._kept.append(tensor)
        self._times.append(now)
        self._axes.append(axis)
        self._same.setdefault(id(tensor), []).append(place)
        self._alike.setdefault(tensor.shape, []).append(place)

    def latest(self, tensor: Tensor, now: int, itself: bool) -> int | None:
        """Axis of the last tensor up to a time, of itself or of its shape."""
        found = self._found(tensor, itself)
        at = bisect_right(found, now, key=self._times.__getitem__)
        return self._axes[found[at - 1]] if at else None

    def next(self, tensor: Tensor, now: int, itself: bool) -> int | None:
        """Axis of the first tensor after a time."""
        found = self._found(tensor, itself)
        at = bisect_right(found, now, key=self._times.__getitem__)
        return self._axes[found[at]] if at < len(found) else None

    def _found(self, tensor: Tensor, itself: bool) -> list[int]:
        return (self._same.get(id(tensor)) if itself else self._alike.get(tensor.shape)) or []


class Touches:
    """What torch's layers took and gave in one forward.

    Attributes:
        now: Modules that began or ended so far.
    """

    def __init__(self) -> None:
        self.now = 0
        self._given, self._taken = _Touched(), _Touched()

    def taken(self, module: nn.Module, values: Sequence[Any]) -> None:
        """A module is called with these arguments."""
        self._note(self._taken, module, values)

    def given(self, module: nn.Module, output: Any) -> None:
        """A module gives this."""
        self._note(self._given, module, output if isinstance(output, tuple | list) else (output,))

    def _note(self, touched: _Touched, module: nn.Module, values: Sequence[Any]) -> None:
        self.now += 1
        axis = feature_axis(module)
        first = next((value for value in values if isinstance(value, Tensor)), None)
        if axis is not None and first is not None and not first.is_nested and first.is_floating_point():
            touched.add(first, axis, self.now)

    def axis_of(self, tensor: Tensor, now: int) -> int | None:
        """Where a tensor's features are.

        Who gave this very tensor knows, or else who took it. If nobody did, as after an addition, it is as the latest
        tensor of that shape before it, or the next one after it.

        Args:
            tensor: Of the forward.
            now: When it came to be.
        """
        for itself in (True, False):
            for axis in (self._given.latest(tensor, now, itself), self._taken.next(tensor, now, itself)):
                if axis is not None:
                    return axis
        return None
