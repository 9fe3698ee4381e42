"""Operations and joint actions: what a command says of a slot, and what a policy's heads do."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.vocabulary import (
    BLENDING_METHODS,
    HEAD_NAMES,
    HEADS_NEEDED,
    AlphaCurve,
    AlphaSpeed,
    AlphaTarget,
    Blueprint,
    GerminationStyle,
    LifecycleOp,
    RampShape,
    Tempo,
)
from esper_ray.controller.commands import BLENDED_BY, Blending, SeedOperation
from esper_ray.live.choosing import Ramp, wait

_CHOICES: dict[str, type[IntEnum]] = {
    "blueprint": Blueprint,
    "style": GerminationStyle,
    "tempo": Tempo,
    "alpha_target": AlphaTarget,
    "alpha_speed": AlphaSpeed,
    "alpha_curve": AlphaCurve,
}
"""Heads whose choices are members of an enumeration."""


def operation_of(action: Sequence[int], slots: Sequence[str], blending: Blending | None = None) -> SeedOperation:
    """A joint action as an operation.

    Args:
        action: ``[8]`` head indices; those that its op does not need are left out.
        slots: Ids of the slots, in their order.
        blending: How the seed is to be blended in; left out where the op plants none and ends no training.

    Raises:
        ValueError: an index outside its head.
        IndexError: a slot that there is not.
    """
    choice = dict(zip(HEAD_NAMES, map(int, action), strict=True))
    op = LifecycleOp(choice["op"])
    given: dict[str, Any] = {head: _CHOICES[head](choice[head]) for head in HEADS_NEEDED[op] if head in _CHOICES}
    if "slot" in HEADS_NEEDED[op]:
        given["slot"] = slots[choice["slot"]]
    return SeedOperation(op=op, blending=blending if op in BLENDED_BY else None, **given)


def action_of(operation: SeedOperation, slots: Sequence[str]) -> npt.NDArray[np.int64]:
    """An operation as head indices, ``[8]``; heads that it does not need are 0.

    Args:
        operation: On one of the slots, or on none.
        slots: Ids of the slots, in their order.

    Raises:
        ValueError: it is on another slot.
    """
    action = wait()
    for at, head in enumerate(HEAD_NAMES):
        choice = getattr(operation, head)
        if choice is not None:
            action[at] = slots.index(choice) if head == "slot" else int(choice)
    return action


def ramp_of(blending: Blending) -> Ramp:
    """How a seed is blended in, as a live host takes it."""
    shape = RampShape(BLENDING_METHODS.index(blending.method))
    return Ramp(shape, blending.schedule_start, blending.schedule_end)
