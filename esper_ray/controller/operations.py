"""Operations and joint actions: what a command says of a slot, and what a policy's heads do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.action_masks import split_mask
from envs.slots import SlotConfig
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
    SeedStage,
    Tempo,
)
from esper_ray.controller.commands import BLENDED_BY, Blending, SeedOperation
from esper_ray.live.choosing import Ramp, wait
from policies.strategic.measured import BLUEPRINT_NAMES
from policies.strategic.messages import SystemState

_CHOICES: dict[str, type[IntEnum]] = {
    "blueprint": Blueprint,
    "style": GerminationStyle,
    "tempo": Tempo,
    "alpha_target": AlphaTarget,
    "alpha_speed": AlphaSpeed,
    "alpha_curve": AlphaCurve,
}
"""Heads whose choices are members of an enumeration."""
SHAPEABLE = (SeedStage.GERMINATED, SeedStage.TRAINING)
"""Stages of a seed of which it can still be said how it is blended in."""


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


def mask_without(packet: SystemState, blueprints: Collection[str]) -> tuple[int, ...] | None:
    """What a packet admits, but for blueprints that must not be offered; None where it does not say.

    Where no other can be planted, neither is GERMINATE admitted, nor what only it needs.
    """
    if packet.action_mask is None:
        return None
    mask = np.array(packet.action_mask, np.int8)
    if packet.seeds and blueprints:
        heads = SlotConfig.for_row(len(packet.seeds), packet.internal_levels).heads
        views = split_mask(mask, heads)
        views["blueprint"][[name in blueprints for name in BLUEPRINT_NAMES[: views["blueprint"].size]]] = 0
        if not views["blueprint"].any():
            views["op"][LifecycleOp.GERMINATE] = 0
            views["slot"][LifecycleOp.GERMINATE] = 0
            for head in heads[2:]:
                if not views["op"][list(head.needed_by)].any():
                    views[head.name][:] = 0
    return tuple(mask.tolist())


def ramp_of(blending: Blending) -> Ramp:
    """How a seed is blended in, as a live host takes it."""
    shape = RampShape(BLENDING_METHODS.index(blending.method))
    return Ramp(shape, blending.schedule_start, blending.schedule_end)
