"""Scales move by what was measured and by nothing else; what comes out is finite."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.full_disk import files_of_at_most
from policies.strategic.normaliser import (
    LIVE_METRICS,
    METRIC_PRIORS,
    PARAMETER_FIELDS,
    SCALED_METRICS,
    MetricNormaliser,
    metric_sums,
    metric_values,
    normalise_parameters,
    normalise_seed_statistics,
)

PACKETS = st.lists(st.dictionaries(st.sampled_from(SCALED_METRICS), st.floats(-1e6, 1e6)), max_size=8)
ANYTHING = st.floats(allow_nan=True, allow_infinity=True)


def observe(normaliser, **metrics):
    normaliser.observe(metric_sums(metric_values(metrics)))


def test_the_priors_are_where_it_starts():
    means = {metric: mean for metric, (mean, _) in METRIC_PRIORS.items()}
    scaled, measured = MetricNormaliser().normalise(metric_values(means))
    assert scaled.tolist() == [0.0] * 4
    assert measured.all()
    above = {metric: mean + deviation for metric, (mean, deviation) in METRIC_PRIORS.items()}
    torch.testing.assert_close(MetricNormaliser().normalise(metric_values(above))[0], torch.ones(4))


@pytest.mark.parametrize("absent", SCALED_METRICS)
def test_sixty_packets_without_a_metric_leave_its_scale_exact(absent):
    normaliser = MetricNormaliser()
    before = normaliser.to_json()[absent]
    for packet in range(60):
        metrics = {metric: float(packet) for metric in SCALED_METRICS if metric != absent}
        normaliser.observe(metric_sums(metric_values(metrics)))
        scaled, measured = normaliser.normalise(metric_values(metrics))
        assert scaled[SCALED_METRICS.index(absent)] == 0.0
        assert measured.tolist() == [metric != absent for metric in SCALED_METRICS]
    assert normaliser.to_json()[absent] == before


@given(PACKETS)
def test_the_moments_are_the_moving_averages_of_what_was_measured(packets):
    normaliser, means = MetricNormaliser(), dict(METRIC_PRIORS)
    variances = {metric: deviation**2 for metric, (_, deviation) in METRIC_PRIORS.items()}
    means = {metric: mean for metric, (mean, _) in METRIC_PRIORS.items()}
    for packet in packets:
        observe(normaliser, **packet)
        for metric, value in packet.items():
            mean = means[metric]
            means[metric] = 0.9 * mean + 0.1 * value
            # of the past about the new mean, and of the new value about it
            past = variances[metric] + (mean - means[metric]) ** 2
            variances[metric] = 0.9 * past + 0.1 * (value - means[metric]) ** 2
    for metric, entry in normaliser.to_json().items():
        assert entry["mean"] == pytest.approx(means[metric], rel=1e-9, abs=1e-9)
        assert entry["variance"] == pytest.approx(variances[metric], rel=1e-6, abs=1e-6)


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_an_iteration_is_one_step_whoever_saw_which_part_of_it(seed, parts):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(12, 5, 4, generator=generator, dtype=torch.float64) * 9.0
    values[torch.rand(values.shape, generator=generator) < 0.3] = torch.nan
    whole, split = MetricNormaliser(), MetricNormaliser()
    whole.observe(metric_sums(values))
    split.observe(sum(metric_sums(part) for part in values.tensor_split(parts)) / parts)
    torch.testing.assert_close(whole.moments, split.moments)
    for column, metric in enumerate(SCALED_METRICS):
        seen = values[..., column][values[..., column].isfinite()]
        expected = 0.9 * METRIC_PRIORS[metric][0] + 0.1 * seen.mean()
        torch.testing.assert_close(whole.moments[0, column], expected)


def test_a_pooled_iteration_reads_an_early_loss_as_little_unusual():
    losses = torch.linspace(2.3, 0.1, 150, dtype=torch.float64)
    pooled, single = MetricNormaliser(), MetricNormaliser()
    rows = torch.full((150, 4), torch.nan, dtype=torch.float64)
    rows[:, 0] = losses
    for _ in range(20):
        pooled.observe(metric_sums(rows))
        for row in rows:
            single.observe(metric_sums(row))
    early = metric_values({"loss": 2.3})
    assert pooled.normalise(early)[0][0] < 2.5
    assert single.normalise(early)[0][0] > 10.0


@given(st.lists(ANYTHING, min_size=4, max_size=4), PACKETS)
def test_whatever_comes_in_finite_numbers_come_out(values, packets):
    normaliser = MetricNormaliser()
    for packet in packets:
        observe(normaliser, **packet)
    scaled, measured = normaliser.normalise(torch.tensor(values, dtype=torch.float64))
    assert scaled.isfinite().all()
    assert measured.tolist() == [math.isfinite(value) for value in values]
    normaliser.observe(metric_sums(torch.tensor(values, dtype=torch.float64)))
    assert normaliser.moments.isfinite().all()
    assert (normaliser.moments[1] >= 0).all()


def test_normalising_changes_nothing_and_what_is_observed_counts_from_the_next_packet_on():
    normaliser = MetricNormaliser()
    first, second = (metric_values({"loss": loss}) for loss in (2.0, 1.4))
    once, again = normaliser.normalise(first)[0], normaliser.normalise(first)[0]
    assert torch.equal(once, again)
    assert once[0] == pytest.approx((2.0 - 0.8) / 0.3)
    normaliser.observe(metric_sums(first))
    assert normaliser.normalise(second)[0][0] != pytest.approx((1.4 - 0.8) / 0.3)


def test_a_run_adapts_to_its_machine_and_to_nothing_else():
    trained = MetricNormaliser()
    observe(trained, loss=0.5, samples_per_s=9000.0)
    before = trained.to_json()
    runs = [trained.for_run(), trained.for_run()]
    assert all(run.to_json() == before for run in runs)
    observe(runs[0], loss=3.0, gradient_norm=9.0, samples_per_s=100.0, hook_latency_ms=99.0)
    changed = {metric for metric, entry in runs[0].to_json().items() if entry != before[metric]}
    assert changed == set(LIVE_METRICS)
    assert runs[1].to_json() == trained.to_json() == before


def test_a_metric_that_hardly_varies_is_not_blown_up():
    normaliser = MetricNormaliser()
    for _ in range(500):
        observe(normaliser, loss=0.5)
    assert normaliser.normalise(metric_values({"loss": 0.53}))[0][0] == pytest.approx(1.0, rel=1e-3)


@given(PACKETS)
def test_what_is_saved_is_loaded_to_the_bit(tmp_path_factory, packets):
    path = tmp_path_factory.mktemp("n") / "moments.json"
    normaliser = MetricNormaliser()
    for packet in packets:
        observe(normaliser, **packet)
    normaliser.save(path)
    assert torch.equal(MetricNormaliser().load(path).moments, normaliser.moments)


def test_a_write_that_fails_leaves_the_file(tmp_path):
    path = tmp_path / "moments.json"
    normaliser = MetricNormaliser()
    normaliser.save(path)
    content = path.read_bytes()
    with files_of_at_most(20), pytest.raises(OSError, match="File too large"):
        normaliser.save(path)
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [content]


GOOD = MetricNormaliser().to_json()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "3",
        "{}",
        json.dumps(GOOD | {"more": {"mean": 0.0, "variance": 1.0}}),
        json.dumps(GOOD | {"loss": {"mean": 0.0}}),
        json.dumps(GOOD | {"loss": {"mean": 0.0, "variance": -1.0}}),
        json.dumps(GOOD | {"loss": {"mean": math.nan, "variance": 1.0}}),
        json.dumps(GOOD | {"loss": {"mean": 0.0, "variance": math.inf}}),
        json.dumps(GOOD | {"loss": {"mean": "0", "variance": 1.0}}),
    ],
)
def test_a_damaged_file_is_refused_and_changes_nothing(tmp_path, content):
    path = tmp_path / "moments.json"
    path.write_text(content)
    normaliser = MetricNormaliser()
    with pytest.raises(ValueError, match=r"moments\.json does not hold moments of metrics"):
        normaliser.load(path)
    assert normaliser.to_json() == GOOD


def test_parameters_are_scaled_by_their_formulas():
    values = torch.tensor([[8102.083927575384, 0.01, 0.9, 0.001], [0.0, 1.0, 0.95, 1.0], [1e9, 0.0, 9.0, 0.0]])
    scaled, measured = normalise_parameters(values.double())
    expected = [[0.0, 0.0, 0.0, 0.0], [-3.0, 2.0, 1.0, 2.0], [(math.log1p(1e9) - 9) / 3, -5.0, 5.0, -5.0]]
    torch.testing.assert_close(scaled, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    assert measured.all()


@given(st.lists(ANYTHING, min_size=len(PARAMETER_FIELDS), max_size=len(PARAMETER_FIELDS)))
def test_parameters_and_seed_statistics_are_bounded_and_masked(values):
    numbers = torch.tensor(values, dtype=torch.float64)
    scaled, measured = normalise_parameters(numbers)
    assert (scaled.abs() <= 5.0).all()
    assert (scaled[~measured] == 0.0).all()
    shares, known = normalise_seed_statistics(numbers)
    assert ((shares >= 0.0) & (shares <= 1.0)).all()
    assert (shares[~known] == 0.5).all()
    assert measured.tolist() == known.tolist() == [math.isfinite(value) for value in values]
