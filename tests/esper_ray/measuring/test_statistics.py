"""Means and intervals over training seeds and hosts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from esper_ray.measuring.statistics import interquartile_mean, summarise_runs


def _estimate(values, **other):
    summaries = summarise_runs({"policy": values, **other}, np.zeros(values.shape[1], int), resamples=999)
    return {name: summary.iqm for name, summary in summaries.items()}


def test_the_interquartile_mean_ignores_the_outer_quarters():
    assert interquartile_mean(np.array([-100.0, 1.0, 3.0, 100.0])) == 2.0


@given(arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.floats(-1, 1, width=32)), st.data())
def test_the_value_is_that_of_all_pairs_and_draws_stay_within_the_data(values, data):
    kinds = data.draw(st.lists(st.integers(0, 2), min_size=values.shape[1], max_size=values.shape[1]))
    summary = summarise_runs({"policy": values}, kinds, resamples=99)["policy"]
    assert summary.iqm.value == interquartile_mean(values.ravel())
    assert summary.mean.value == values.mean()
    for estimate in (summary.iqm, summary.mean):
        low, high = estimate.interval
        assert values.min() - 1e-9 <= low <= high <= values.max() + 1e-9


def test_an_interval_narrows_with_more_hosts():
    rng = np.random.default_rng(0)
    few, many = (np.ptp(_estimate(rng.normal(0.5, 0.1, (1, size)))["policy"].interval) for size in (16, 1024))
    assert many < few


def test_what_differs_between_kinds_of_host_alone_does_not_widen_the_interval():
    kinds = np.arange(64) % 5
    summary = summarise_runs({"policy": np.linspace(0.3, 0.9, 5)[None, kinds]}, kinds, resamples=99)["policy"]
    for estimate in (summary.iqm, summary.mean):
        np.testing.assert_allclose(estimate.interval, estimate.value)


def test_training_seeds_that_differ_widen_the_interval_although_every_host_agrees():
    hosts = np.zeros(64)
    alike = _estimate(np.stack([hosts, hosts, hosts]))["policy"].interval
    unlike = _estimate(np.stack([hosts, hosts + 0.1, hosts + 0.2]))["policy"].interval
    assert alike == (0.0, 0.0)
    assert unlike[1] - unlike[0] > 0.1


def test_a_constant_lead_on_the_same_hosts_has_a_difference_without_width():
    hosts = np.random.default_rng(0).normal(0.5, 0.2, (1, 64))
    estimates = _estimate(hosts + 0.05, control=hosts)
    difference = estimates["policy"] - estimates["control"]
    np.testing.assert_allclose([difference.value, *difference.interval], 0.05)
    low, high = estimates["control"].interval
    assert high - low > 0.05  # without pairing the lead would be lost in this


def test_what_comes_from_the_same_trainings_is_paired_with_them():
    values = np.arange(5.0)[:, None] + np.zeros((5, 8))
    results = {"policy": values, "follower": values - 0.25, "other": values - 0.25}
    summaries = summarise_runs(results, [0] * 8, resamples=199, origins={"follower": "policy"})
    paired, unpaired = (summaries["policy"] - summaries[name] for name in ("follower", "other"))
    for estimate in (paired.iqm, paired.mean):
        np.testing.assert_allclose(estimate.draws, 0.25)
    assert np.ptp(unpaired.iqm.draws) > 0.5


@pytest.mark.parametrize("kinds", [1, 4])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(kinds):
    rng = np.random.default_rng(0)
    kind = np.arange(64) % kinds
    hits = 0
    for _ in range(100):
        seeds, hosts = rng.normal(0.0, 1.0, (10, 1)), rng.normal(0.0, 1.0, (1, 64))
        values = seeds + hosts + 3.0 * (kind - kind.mean()) + rng.normal(0.0, 1.0, (10, 64))
        low, high = summarise_runs({"policy": values}, kind, resamples=299)["policy"].iqm.interval
        hits += low <= 0.0 <= high
    assert 80 <= hits <= 99


def test_policies_that_played_other_hosts_are_refused():
    with pytest.raises(ValueError, match="same hosts"):
        _estimate(np.zeros((1, 4)), control=np.zeros((1, 5)))
    with pytest.raises(ValueError, match="same hosts"):
        summarise_runs({"policy": np.zeros((1, 4))}, kinds=[0])
