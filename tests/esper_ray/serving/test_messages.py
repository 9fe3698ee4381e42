"""Whatever clients send becomes an observation of the policy's hosts, or is refused with a reason."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.action_masks import split_mask
from esper_ray.presets import DEBUG
from esper_ray.serving.messages import ActRequest, ObservationInterface, OpenRequest, RefusedError, parse

SLOTS = DEBUG.env.make_task().slots
INTERFACE = ObservationInterface("digits_impaired", SLOTS, 1)
FIELDS = INTERFACE.layout.fields
MASK = 56
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def waiting():
    """A mask that admits WAIT alone."""
    mask = np.zeros(MASK, np.int8)
    split_mask(mask, SLOTS.heads)["op"][0] = 1
    return mask.tolist()


def valid(**changes):
    return {"obs": [0.0] * len(FIELDS), "blueprint_indices": [-1] * 3, "action_mask": waiting(), **changes}


def refusal(content):
    with pytest.raises(RefusedError) as error:
        INTERFACE.observation(parse(ActRequest, json.dumps(content).encode()))
    return error.value.refusal


@given(st.data())
def test_what_the_env_could_show_arrives_unchanged(data):
    obs = [data.draw(st.floats(field.low, field.high, width=32)) for field in FIELDS]
    blueprints = data.draw(st.lists(st.integers(-1, len(SLOTS.blueprints) - 1), min_size=3, max_size=3))
    content = valid(obs=obs, blueprint_indices=blueprints, step=data.draw(st.none() | st.integers(0, 1000)))
    found = INTERFACE.observation(parse(ActRequest, json.dumps(content).encode()))
    assert found["obs"].tolist() == [obs]
    assert found["blueprint_indices"].tolist() == [blueprints]
    assert found["action_mask"].tolist() == [waiting()]
    assert [leaf.dtype for leaf in found.values()] == [np.float32, np.int64, np.int8]


def outcome(model, body):
    """What a body is refused with; None if it is an observation, or another valid request."""
    try:
        request = parse(model, body)
        if isinstance(request, ActRequest):
            INTERFACE.observation(request)
    except RefusedError as error:
        return error.refusal
    return None


@given(st.binary(max_size=200), st.sampled_from([OpenRequest, ActRequest]))
def test_no_bytes_do_harm(body, model):
    refused = outcome(model, body)
    assert refused is None or (refused.status in (400, 422) and refused.reason)


@given(st.sampled_from(["obs", "blueprint_indices", "action_mask", "step", "other"]), JSON)
def test_a_field_of_another_kind_is_named(name, value):
    refused = outcome(ActRequest, json.dumps(valid(**{name: value})).encode())
    if refused is None:
        assert name == "step"
        assert value is None or (type(value) is int and value >= 0)
    else:
        assert refused.status == 422
        assert name in refused.reason


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"obs": []}, "obs must have 121 numbers for this policy, got 0"),
        ({"obs": [0.0] * 120 + [7.0]}, r"obs[120] (r0c2.freshness) must be in [0, 1], got 7"),
        ({"obs": [0.0] * 120 + [1e300]}, r"must be in [0, 1], got 1e+300"),
        ({"obs": [0.0] * 120 + [float("nan")]}, "obs.120: Input should be a finite number"),
        ({"obs": [True] * 121}, "and 118 more"),
        ({"blueprint_indices": [-2, 0, 0]}, "blueprint_indices[0] must be -1 or in [0, 12], got -2"),
        ({"blueprint_indices": [0, 0, 10**30]}, "blueprint_indices[2] must be -1 or in"),
        ({"action_mask": [2] * MASK}, "action_mask[0] must be 0 or 1, got 2"),
        ({"action_mask": [0] * MASK}, "action_mask admits no op"),
        ({"action_mask": [0, 1] + [0] * (MASK - 2)}, "action_mask admits the op GERMINATE, but no slot"),
        ({"colour": 1}, "colour: Extra inputs are not permitted"),
    ],
)
def test_what_is_no_observation_is_refused_by_place(changes, says):
    found = refusal(valid(**changes))
    assert found.status == 422
    assert says in found.reason


def test_what_is_no_json_is_told_from_what_does_not_fit():
    for body, status in [(b"", 400), (b"{", 400), (b"\xff", 400), (b"[" * 10_000, 400), (b"[]", 422), (b"{}", 422)]:
        with pytest.raises(RefusedError) as error:
            parse(ActRequest, body)
        assert error.value.refusal.status == status


def test_an_answer_names_the_choices_that_matter():
    answer = INTERFACE.answer(3, np.array([0, 0, 0, 0, 0, 0, 0, 0]))
    assert answer == {"step": 3, "action": [0] * 8, "choices": {"op": "WAIT"}}
    answer = INTERFACE.answer(0, np.array([1, 2, 4, 0, 0, 0, 0, 0]))
    assert answer["choices"]["blueprint"] == "DEPTHWISE"
    assert answer["choices"]["slot"] == "r0c2"
