"""What the activation functions of hosts do with what they read: how often they are silent, flat, or just a line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

FloatArray = npt.NDArray[np.float64]

FLAT_SLOPE = 0.01
"""A function is saturated where its slope is closer to 0."""


@dataclass(frozen=True)
class ActivationFunction:
    """A function that is 0 at 0.

    Attributes:
        value: Of the function.
        slope: Of the function; None where it is 0 exactly where the value is, and nowhere else below
            :data:`FLAT_SLOPE`.
        flops: Per number.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor] | None
    flops: int


def _gelu_slope(x: Tensor) -> Tensor:
    density = torch.exp(-0.5 * x.square()) / math.sqrt(2.0 * math.pi)
    return 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))) + x * density


FUNCTIONS: Mapping[str, ActivationFunction] = MappingProxyType(
    {
        "relu": ActivationFunction(F.relu, None, 1),
        "gelu": ActivationFunction(F.gelu, _gelu_slope, 5),  # x/√2, erf, + 1, · x, / 2
    }
)
"""Of all hosts, by name."""


@dataclass(frozen=True)
class ActivityStatistics:
    """What an activation function did on some samples, in each of m hosts.

    Attributes:
        active: ``[m]`` share of its outputs that are not 0.
        saturated: ``[m]`` share of its outputs at which it is flat.
        events: ``[m]`` outputs per sample at which it is flat.
        nonlinearity: ``[m]`` share of the outputs' variance that a line through them leaves unexplained; NaN where
            they do not vary.
    """

    active: FloatArray
    saturated: FloatArray
    events: FloatArray
    nonlinearity: FloatArray

    @classmethod
    def of(cls, function: ActivationFunction, x: Tensor, channels: FloatArray) -> ActivityStatistics:
        """Of one function.

        Args:
            function: That reads ``x``.
            x: ``[m, B, ..., C]``, 0 in channels that a host does not have.
            channels: ``[m]`` how many each host has.
        """
        rows, samples = x.flatten(1), x.shape[1]
        count = torch.from_numpy(channels).to(rows) * (rows.shape[1] // x.shape[-1])
        y = function.value(rows)
        # Counted by numbers: a sum of bools takes five times as long. A channel that a host lacks reads 0 and gives 0.
        active = y.sign().abs_().sum(1)
        flat = count - active if function.slope is None else (function.slope(rows).abs() < FLAT_SLOPE).sum(1)
        statistics = (active / count, flat / count, flat / samples, _unexplained(rows, y, count))
        return cls(*(values.double().cpu().numpy() for values in statistics))


def _unexplained(x: Tensor, y: Tensor, count: Tensor) -> Tensor:
    """1 − R² of a line through ``y`` over ``x``, each ``[m, n]`` with zeros besides ``count`` numbers."""
    mean_x, mean_y = x.sum(1) / count, y.sum(1) / count
    var_x, var_y = (torch.linalg.vecdot(v, v) / count - mean.square() for v, mean in ((x, mean_x), (y, mean_y)))
    covariance = torch.linalg.vecdot(x, y) / count - mean_x * mean_y
    share = 1.0 - covariance.square() / (var_x * var_y)
    return share.clamp(0.0, 1.0).where((var_x > 0.0) & (var_y > 0.0), torch.nan)
