"""What can be chosen for an epoch of a live host."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.optim import Optimizer

from envs.live.examples import Example
from envs.live.places import Kind
from envs.vocabulary import HEAD_NAMES, LifecycleOp, RampShape


def wait() -> npt.NDArray[np.int64]:
    """The action that does nothing."""
    return np.full(len(HEAD_NAMES), LifecycleOp.WAIT, np.int64)


@dataclass(frozen=True)
class Ramp:
    """How a seed is blended in, in place of its style's curve (:meth:`envs.lifecycle.Lifecycle.shape_blending`).

    Attributes:
        shape: Of the ramp.
        start: Share of the seed's tempo that passes before it begins.
        end: Share of it at which it ends.
    """

    shape: RampShape
    start: float
    end: float


@dataclass(frozen=True)
class Training:
    """What somebody is to choose for.

    Attributes:
        model: That is trained.
        optimizer: That trains it.
        example: A batch of inputs, as the loop passes them.
        batch_axis: Axis of the batch in it.
        slots: Number of slots.
        kind: Of the slots.
        max_epochs: That it is trained for.
        force: Whoever chooses may have been trained on another topology.
    """

    model: nn.Module
    optimizer: Optimizer
    example: Example
    batch_axis: int
    slots: int
    kind: Kind
    max_epochs: int
    force: bool


@dataclass(frozen=True)
class Choice:
    """What is to be done as an epoch begins.

    Attributes:
        action: ``[8]`` head indices. What the mask refuses becomes WAIT.
        blending: Of GERMINATE, and of ADVANCE up to TRAINING's end: how the seed is blended in, when it is.
        seed_rate: Factor on the steps of all seeds from now on, above 0 and at most 1; None leaves what it is.
        note: What has to be said of it.
    """

    action: npt.NDArray[np.int64] = field(default_factory=wait)
    blending: Ramp | None = None
    seed_rate: float | None = None
    note: str = ""
