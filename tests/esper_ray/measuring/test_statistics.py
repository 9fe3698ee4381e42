"""Means and intervals over training seeds, hosts and test samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from esper_ray.measuring.statistics import interquartile_mean, summarise_runs


def _estimate(values, **other):
    summaries = summarise_runs({"policy": values, **other}, np.zeros(values.shape[1], int), resamples=999)
    return {name: summary.iqm for name, summary in summaries.items()}


def test_the_interquartile_mean_ignores_the_outer_quarters():
    assert interquartile_mean(np.array([-100.0, 1.0, 3.0, 100.0])) == 2.0


@given(arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.floats(-1, 1, width=32)), st.data())
def test_the_value_is_that_of_all_pairs_and_lies_in_its_interval(values, data):
    kinds = data.draw(st.lists(st.integers(0, 2), min_size=values.shape[1], max_size=values.shape[1]))
    summary = summarise_runs({"policy": values}, kinds, resamples=99)["policy"]
    assert summary.iqm.value == interquartile_mean(values.ravel())
    assert summary.mean.value == values.mean()
    for estimate in (summary.iqm, summary.mean):
        low, high = estimate.interval
        assert low <= estimate.value <= high


def test_the_interval_of_a_mean_over_trainings_alone_is_students():
    values = np.array([0.2, 0.5, 0.9, 0.6])[:, None]
    low, high = summarise_runs({"policy": values}, [0])["policy"].mean.interval
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values.ravel()))
    np.testing.assert_allclose((low, high), expected, atol=0.03)


def test_an_interval_narrows_with_more_hosts():
    rng = np.random.default_rng(0)
    few, many = (np.ptp(_estimate(rng.normal(0.5, 0.1, (1, size)))["policy"].interval) for size in (16, 1024))
    assert many < few


def test_what_differs_between_kinds_of_host_alone_does_not_widen_the_interval():
    kinds = np.arange(64) % 5
    summary = summarise_runs({"policy": np.linspace(0.3, 0.9, 5)[None, kinds]}, kinds, resamples=99)["policy"]
    for estimate in (summary.iqm, summary.mean):
        np.testing.assert_allclose(estimate.interval, estimate.value)


@pytest.mark.parametrize("kinds", [[0, 1, 2, 3], [0, 0, 0, 1]])
def test_hosts_that_are_alone_of_their_kind_vary_too(kinds):
    values = np.array([[0.1, 0.3, 0.5, 0.9]])
    low, high = summarise_runs({"policy": values}, kinds)["policy"].mean.interval
    together = summarise_runs({"policy": values}, [0] * 4)["policy"].mean.interval
    np.testing.assert_allclose((low, high), together, atol=0.05)


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
        np.testing.assert_allclose(estimate.interval, 0.25)
    assert np.ptp(unpaired.iqm.interval) > 0.5


class Draws:
    """A world of which the truth is known: what trainings, hosts and test images add, and what each pair does."""

    def __init__(self, trainings, seed):
        self.rng, self.trainings = np.random.default_rng(seed), trainings
        self.kinds = np.arange(30) % 5

    def results(self, leads):
        """Scores and hits of policies that are this much ahead; the truth of a lead is that of its probabilities."""
        rng, hosts, images = self.rng, len(self.kinds), 80
        of_host, of_image = rng.normal(0.0, 0.03, hosts), rng.uniform(-0.15, 0.15, images)
        scores, per_sample = {}, {}
        for name, lead in leads.items():
            of_training = rng.normal(0.0, 0.02, self.trainings)
            of_pair = rng.normal(0.0, 0.02, (self.trainings, hosts))
            right = 0.75 + lead + 0.02 * self.kinds + of_training[:, None] + of_host + of_pair
            hits = rng.random((self.trainings, hosts, images)) < right[..., None] + of_image
            per_sample[name] = hits.astype(np.float32)
            scores[name] = per_sample[name].mean(axis=-1, dtype=float) - 0.05
        return scores, per_sample


@pytest.mark.parametrize("trainings", [3, 10])
def test_intervals_cover_the_truth_as_often_as_they_say(trainings):
    """At 3 and 10 training seeds, of a policy's mean and of how far it is ahead of another that was trained too."""
    truth = {"score": 0.75 + 0.02 * 2 - 0.05, "lead": 0.01}
    covered = {name: [] for name in ("mean", "iqm", "lead", "lead of the iqm")}
    for seed in range(300):
        drawn = Draws(trainings, seed)
        scores, hits = drawn.results({"policy": 0.0, "other": -truth["lead"]})
        found = summarise_runs(scores, drawn.kinds, resamples=99, per_sample=hits)
        policy, ahead = found["policy"], found["policy"] - found["other"]
        for name, estimate, value in (
            ("mean", policy.mean, truth["score"]),
            ("iqm", policy.iqm, truth["score"]),  # all that is drawn is symmetric about it
            ("lead", ahead.mean, truth["lead"]),
            ("lead of the iqm", ahead.iqm, truth["lead"]),
        ):
            low, high = estimate.interval
            covered[name].append(low <= value <= high)
    for name, hits_of_one in covered.items():
        assert np.mean(hits_of_one) >= 0.93, name


@pytest.mark.parametrize("hosts", [(6, 3, 6, 6, 3), (10, 8, 14, 10, 6)])
@pytest.mark.parametrize("noise", [(1, 1, 1, 1, 10), (1, 1, 1, 3, 3)])
def test_intervals_cover_the_truth_where_one_kind_of_host_is_rare_and_varies_most(hosts, noise):
    kinds = np.repeat(np.arange(5), hosts)
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(600):
        values = 0.5 + rng.normal(0.0, 0.01 * np.array(noise)[kinds])
        low, high = summarise_runs({"policy": values[None]}, kinds, resamples=99)["policy"].mean.interval
        covered.append(low <= 0.5 <= high)
    assert np.mean(covered) >= 0.93


def test_test_samples_widen_the_interval_and_a_lead_on_each_of_them_does_not():
    rng = np.random.default_rng(0)
    right = (rng.random(50) < 0.6) * np.ones((1, 8, 1), np.float32)
    better = np.minimum(right + 0.25, 1.25)
    results = {"policy": better.mean(axis=-1, dtype=float), "other": right.mean(axis=-1, dtype=float)}
    given = summarise_runs(results, [0] * 8, per_sample={"policy": better, "other": right})
    without = summarise_runs(results, [0] * 8)
    low, high = given["policy"].mean.interval
    np.testing.assert_allclose((high - low) / 2, 2.01 * right.std(axis=-1)[0, 0] / 7, rtol=0.1)
    assert np.ptp(without["policy"].mean.interval) < 1e-9
    np.testing.assert_allclose((given["policy"] - given["other"]).mean.interval, 0.25, atol=1e-6)


def test_policies_that_played_other_hosts_are_refused():
    with pytest.raises(ValueError, match="same hosts"):
        _estimate(np.zeros((1, 4)), control=np.zeros((1, 5)))
    with pytest.raises(ValueError, match="same hosts"):
        summarise_runs({"policy": np.zeros((1, 4))}, kinds=[0])
    results = {"policy": np.zeros((3, 2)), "follower": np.zeros((2, 2))}
    with pytest.raises(ValueError, match="follower has 2 rows, and others that come from policy 3"):
        summarise_runs(results, [0, 0], origins={"follower": "policy"})
    with pytest.raises(ValueError, match="same samples"):
        summarise_runs(
            {"policy": np.zeros((1, 1)), "control": np.zeros((1, 1))},
            [0],
            per_sample={"policy": np.zeros((1, 1, 3)), "control": np.zeros((1, 1, 4))},
        )
