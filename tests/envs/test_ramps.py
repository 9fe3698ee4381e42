"""Blending schedules: every shape is worth what the shared vector says, never falls, and ends at the whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.alpha import ramp_value
from envs.vocabulary import BLENDING_METHODS, RampShape
from tests.envs.ramp_vector import RAMP_VECTOR


def test_ramps_are_worth_what_the_vector_says():
    rows = [
        (BLENDING_METHODS.index(shape), start, end, elapsed, value)
        for shape, start, end, points in RAMP_VECTOR
        for elapsed, value in points.items()
    ]
    *arguments, expected = np.array(rows).T
    np.testing.assert_allclose(ramp_value(*arguments), expected, atol=1e-9)
    assert {shape for shape, *_ in RAMP_VECTOR} == set(BLENDING_METHODS)


@given(st.sampled_from(RampShape), st.floats(0.0, 0.95), st.floats(0.0, 1.0))
def test_ramps_start_at_nothing_never_fall_and_end_at_the_whole(shape, start, share):
    end = min(start + 0.05 + (0.95 - start) * share, 1.0)
    elapsed = np.concatenate([np.linspace(-0.5, 1.5, 401), [start, end, 1.0]])
    elapsed.sort()
    values = ramp_value(shape, start, end, elapsed)
    assert (values[elapsed <= start] == 0.0).all()
    assert (np.diff(values) >= 0.0).all()
    assert (values[elapsed >= 1.0] == 1.0).all()
    assert (values[(elapsed >= end) & (elapsed < 1.0)] == (0.5 if shape is RampShape.WARMUP_HOLD else 1.0)).all()


@pytest.mark.parametrize(
    ("start", "end"), [(0.5, 0.5), (0.6, 0.5), (-0.1, 1.0), (0.0, 1.1), (np.nan, 1.0), (0.0, np.nan)]
)
def test_a_ramp_out_of_its_window_is_refused(start, end):
    with pytest.raises(ValueError, match="0 <= start < end <= 1"):
        ramp_value([0, 1], [0.0, start], [1.0, end], 0.5)
