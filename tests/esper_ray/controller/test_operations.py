"""An operation says what an action does, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.alpha import ramp_value
from envs.vocabulary import BLENDING_METHODS, HEAD_NAMES, HEADS_NEEDED, LifecycleOp, RampShape, head_specs
from esper_ray.controller.commands import Blending
from esper_ray.controller.operations import action_of, operation_of, ramp_of

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


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="14 is not a valid Blueprint"):
        operation_of([LifecycleOp.GERMINATE, 0, 14, 0, 0, 0, 0, 0], SLOTS)
    with pytest.raises(IndexError):
        operation_of([LifecycleOp.ADVANCE, 3, 0, 0, 0, 0, 0, 0], SLOTS)
    with pytest.raises(ValueError, match="not in"):
        action_of(operation_of([LifecycleOp.ADVANCE, 0, 0, 0, 0, 0, 0, 0], SLOTS), SLOTS[1:])
