"""An operation says what an action does, and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.action_masks import split_mask
from envs.alpha import ramp_value
from envs.slots import SlotConfig
from envs.vocabulary import BLENDING_METHODS, HEAD_NAMES, HEADS_NEEDED, LifecycleOp, RampShape, head_specs
from esper_ray.controller.commands import Blending
from esper_ray.controller.operations import action_of, mask_without, operation_of, ramp_of
from esper_ray.controller.trial import USUAL_SLOTS, trial_request
from policies.strategic.measured import BLUEPRINT_NAMES
from policies.strategic.messages import SystemState
from tests.envs.helpers import random_valid_action

SLOTS = ("stem", "body.0", "r0c2")
HEADS = head_specs(SLOTS, internal_levels=True)
ACTIONS = st.tuples(*(st.integers(0, head.size - 1) for head in HEADS))


@given(ACTIONS)
def test_an_action_comes_back_but_for_what_its_op_does_not_need(action):
    operation = operation_of(action, SLOTS)
    needed = HEADS_NEEDED[LifecycleOp(action[0])]
    kept = [index if head in needed else 0 for head, index in zip(HEAD_NAMES, action, strict=True)]
    assert action_of(operation, SLOTS).tolist() == kept
    assert operation_of(kept, SLOTS) == operation


@given(ACTIONS, st.sampled_from(BLENDING_METHODS))
def test_blending_is_said_of_ops_that_blend_and_names_its_shape(action, method):
    blending = Blending(method=method, schedule_start=0.25, schedule_end=0.5)
    operation = operation_of(action, SLOTS, blending)
    blends = operation.op in (LifecycleOp.GERMINATE, LifecycleOp.ADVANCE)
    assert operation.blending == (blending if blends else None)
    ramp = ramp_of(blending)
    assert (ramp.shape, ramp.start, ramp.end) == (RampShape[method.upper()], 0.25, 0.5)
    assert ramp_value(ramp.shape, ramp.start, ramp.end, 1.0) == 1.0


@given(st.sets(st.sampled_from(BLUEPRINT_NAMES)), st.integers(0, 2**32))
def test_a_mask_without_blueprints_admits_what_it_did_but_them(banned, seed):
    packet = SystemState.model_validate_json(trial_request(USUAL_SLOTS).packet)
    heads = SlotConfig.for_row(len(packet.seeds)).heads
    mask, rng = np.array(mask_without(packet, banned)), np.random.default_rng(seed)
    assert (mask <= np.array(packet.action_mask)).all()
    if not banned:
        assert mask.tolist() == list(packet.action_mask)
    for _ in range(20):
        action = random_valid_action(mask, heads, rng)
        operation = operation_of(action, [slot.slot for slot in packet.seeds])
        assert operation.blueprint is None or BLUEPRINT_NAMES[operation.blueprint] not in banned
    views = split_mask(mask, heads)
    if not views["blueprint"].any():
        shut = (views["op"], views["slot"])
        assert not any(view[LifecycleOp.GERMINATE].any() for view in shut)
        assert not views["tempo"].any()
    assert mask_without(packet.model_copy(update={"action_mask": None}), banned) is None


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="14 is not a valid Blueprint"):
        operation_of([LifecycleOp.GERMINATE, 0, 14, 0, 0, 0, 0, 0], SLOTS)
    with pytest.raises(IndexError):
        operation_of([LifecycleOp.ADVANCE, 3, 0, 0, 0, 0, 0, 0], SLOTS)
    with pytest.raises(ValueError, match="not in"):
        action_of(operation_of([LifecycleOp.ADVANCE, 0, 0, 0, 0, 0, 0, 0], SLOTS), SLOTS[1:])
