"""How recorded decisions are imitated, known without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from envs.ranges import Count, Large, NotNegative, Positive, Range, check_numbers


@dataclass(frozen=True)
class ImitationConfig:
    """Supervised training of the strategic policy on recorded episodes."""

    batch_size: Count = 256
    """Steps of a minibatch."""
    lr: Annotated[float, Range(0.0, 1.0, above=True)] = 1e-3
    """Step size of Adam."""
    value_weight: NotNegative = 0.5
    """Of the squared errors of the values, in units of the return scale, beside the cross-entropy of the decisions."""
    risk_weight: NotNegative = 0.25
    """Of the cross-entropy of the risk, whose classes weigh the same however often they occur."""
    ramp_weight: NotNegative = 0.25
    """Of the choice of blending methods and windows, of which those that went well weigh more."""
    grad_clip: Positive = 10.0
    """Largest global norm of a gradient."""
    held_out: Annotated[float, Range(0.0, 0.9, above=True)] = 0.2
    """Share of the hosts whose episodes are not learnt from, but tell which pass was best."""
    seed: Large = 0
    """Of weights, order and dropout."""

    def __post_init__(self) -> None:
        check_numbers(self)
