import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.observation_scale import ObservationScale
from policies.return_scale import WORLD, ReturnScale
from policies.running_moments import RunningMoments, power_sums


def of_all(batch):
    return power_sums(batch, torch.ones(len(batch), dtype=torch.bool))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any), st.floats(-1e3, 1e3), st.integers(0, 2**31))
def test_batches_merge_to_the_moments_of_all_they_hold(sizes, offset, seed):
    rng = np.random.default_rng(seed)
    batches = [rng.normal(offset, rng.uniform(0.5, 5.0, 3), (size, 3)) for size in sizes]
    running = RunningMoments(3)
    for batch in batches:
        running.update(of_all(torch.from_numpy(batch)), decay=1.0)
    count, mean, _ = running.moments
    seen = np.concatenate(batches)
    assert count.tolist() == [len(seen)] * 3
    np.testing.assert_allclose(mean, seen.mean(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(running.deviation(0.0), seen.std(axis=0), rtol=1e-3, atol=1e-3)


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.4, 1.0]))
def test_sums_are_of_what_counts_alone(seed, share):
    rng = np.random.default_rng(seed)
    counted = torch.from_numpy(rng.random((3, 4)) < share)
    for shape in ((), (2,)):
        values = torch.from_numpy(rng.normal(size=(3, 4, *shape)))
        values[~counted] = torch.nan
        chosen = values[counted]
        count = torch.full(shape, float(len(chosen)), dtype=torch.float64)
        expected = torch.stack([count, chosen.sum(dim=0), chosen.square().sum(dim=0)])
        torch.testing.assert_close(power_sums(values, counted), expected)


def test_return_scale_is_the_standard_deviation_of_what_it_saw():
    rng = np.random.default_rng(0)
    batches = [rng.normal(500.0, 3.0, 1000), rng.normal(510.0, 1.0, 500)]
    scale = ReturnScale()
    assert scale.value == 1.0
    for batch in batches:
        scale.update(of_all(torch.from_numpy(batch)), decay=1.0)
    assert scale.value.item() == pytest.approx(np.concatenate(batches).std(), rel=1e-4)


def test_return_scale_forgets_and_has_a_floor():
    scale = ReturnScale()
    scale.update(torch.tensor([100.0, 0.0, 100.0]), decay=0.5)
    assert scale.value.item() == pytest.approx(1.0)
    for _ in range(60):
        scale.update(torch.tensor([100.0, 0.0, 0.0]), decay=0.5)
    assert scale.value.item() == pytest.approx(ReturnScale.MINIMUM)
    before = scale.moments.clone()
    scale.update(torch.zeros(3), decay=0.5)
    assert torch.equal(scale.moments, before)


def test_observations_are_shifted_and_scaled_by_what_was_seen_and_limited():
    rng = np.random.default_rng(1)
    seen = torch.from_numpy(rng.normal([3.0, -0.5, 0.2, 0.0], [2.0, 0.5, 0.01, 0.0], (5000, 4))).float()
    scale = ObservationScale(4)
    assert torch.equal(scale(seen), seen)
    scale.update(of_all(seen), decay=1.0)
    scaled = scale(seen)
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(4), atol=1e-4, rtol=0)
    # What hardly varies keeps its size relative to the smallest divisor.
    expected = torch.tensor([1.0, 1.0, 0.01 / ObservationScale.MINIMUM, 0.0])
    torch.testing.assert_close(scaled.std(dim=0), expected, atol=2e-3, rtol=2e-2)
    far = scale(torch.tensor([1e6, -1e6, 0.2, 1.0]))
    limit = ObservationScale.LIMIT
    torch.testing.assert_close(far, torch.tensor([limit, -limit, 0.0, limit]), atol=2e-3, rtol=0)


@given(st.integers(0, 2**31), st.integers(2, 4))
def test_each_of_several_worlds_has_the_scale_that_it_would_have_alone(seed, num_worlds):
    rng = np.random.default_rng(seed)
    world, real = rng.integers(num_worlds, size=(4, 5)), torch.from_numpy(rng.random((4, 5)) < 0.7)
    returns = torch.from_numpy(rng.normal(size=(4, 5)) * 10.0**world)
    obs = {WORLD: torch.from_numpy(world).unsqueeze(-1)}
    together, alone = ReturnScale(num_worlds), [ReturnScale() for _ in range(num_worlds)]
    for _ in range(2):
        together.update(together.sums(returns, real, obs), decay=0.5)
        for number, scale in enumerate(alone):
            scale.update(scale.sums(returns, real & (obs[WORLD].squeeze(-1) == number), {}), decay=0.5)
    torch.testing.assert_close(together.value, torch.stack([scale.value for scale in alone]))
    assert torch.equal(together.of(obs), together.value[torch.from_numpy(world)])
    assert alone[0].of({}) == alone[0].value
