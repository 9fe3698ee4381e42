"""The compiled kernels compute what torch's own operators compute, values and gradients."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.living_seeds import fresh_population
from envs.batched.groups import group_size
from envs.batched.kernels import library, operators
from envs.batched.layers import average_pool, batch_norm, conv, conv_of_inference, group_norm
from envs.tasks import make_task
from tests.envs.helpers import torch_alone
from tests.envs.packages import with_their_data

pytestmark = pytest.mark.skipif(library.find_compiler() is None, reason="needs a C compiler")

MEMBERS, BATCHES, SIDES = st.integers(1, 3), st.integers(1, 9), st.integers(1, 5)
WIDTHS = st.one_of(st.sampled_from([4, 8, 12, 16, 32, 64]), st.integers(1, 40))
KERNELS = st.sampled_from([1, 3, 5])


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def both(function, *inputs):
    """Value, and gradients for the inputs, by the kernels and by torch alone."""

    def result():
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = function(*leaves)
        weighted = (value * noise(*value.shape, seed=1)).sum()
        return [value, *torch.autograd.grad(weighted, leaves)]

    with torch_alone():
        expected = result()
    return result(), expected


def agree(function, *inputs):
    ours, expected = both(function, *inputs)
    for value, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(value, other, atol=2e-4, rtol=2e-4)


def test_where_there_is_a_compiler_the_kernels_compile():
    assert library.library() is not None


@given(batch=st.integers(2, 20), side=st.sampled_from([1, 2, 3, 4, 5, 8, 9]), inputs=WIDTHS, outputs=WIDTHS, k=KERNELS)
def test_a_sample_is_the_same_bit_for_bit_whatever_it_is_computed_with(batch, side, inputs, outputs, k):
    """Members and samples: how an evaluation is cut in chunks depends on what else is evaluated."""
    x, weight = noise(3, batch, side, side, inputs), noise(3, outputs, inputs, k, k, seed=2)
    bias = noise(3, outputs, seed=3)
    whole = conv_of_inference(x, weight, bias, pool=True)
    for first in {1, batch // 2, batch - 1}:
        assert torch.equal(conv_of_inference(x[:, :first].contiguous(), weight, bias, pool=True), whole[:, :first])
        rest = conv_of_inference(x[1:, first:].contiguous(), weight[1:], bias[1:], pool=True)
        assert torch.equal(rest, whole[1:, first:])


@given(members=MEMBERS, batch=BATCHES, side=SIDES, inputs=WIDTHS, outputs=WIDTHS, k=KERNELS, style=st.integers(0, 2))
def test_convolutions(members, batch, side, inputs, outputs, k, style):
    x = noise(members, batch, side, side + 1, inputs)
    weight = noise(members, outputs, inputs, k, k, seed=2) / (k * k * inputs) ** 0.5
    bias = noise(members, outputs, seed=3)
    if inputs == 1 < outputs or inputs > 1:  # one channel in and out is a depthwise one
        if style == 0:
            agree(lambda x, w: conv(x, w), x, weight)
        else:
            agree(lambda x, w, b: conv(x, w, b, relu=style == 2), x, weight, bias)
    if inputs > 1:
        agree(lambda x, w: conv(x, w), x, noise(members, inputs, 1, k, k, seed=2))


@given(batch=BATCHES, side=SIDES, inputs=WIDTHS, outputs=WIDTHS, k=KERNELS, shared=st.booleans(), pool=st.booleans())
def test_convolutions_of_inference(batch, side, inputs, outputs, k, shared, pool):
    members = 3
    x = noise(*([] if shared else [members]), batch, side, side, inputs)
    weight, bias = noise(members, outputs, inputs, k, k, seed=2), noise(members, outputs, seed=3)
    ours = conv_of_inference(x, weight, bias, pool)
    with torch_alone():
        expected = conv_of_inference(x, weight, bias, pool)
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=1e-4)
    one_by_one = [
        torch.nn.functional.conv2d(
            (x if shared else x[m]).permute(0, 3, 1, 2), weight[m], bias[m], padding=k // 2
        ).permute(0, 2, 3, 1)
        for m in range(members)
    ]
    plain = torch.stack(one_by_one).relu()
    torch.testing.assert_close(ours, average_pool(plain) if pool else plain, atol=2e-3, rtol=1e-4)


@given(members=MEMBERS, batch=st.integers(2, 9), side=SIDES, channels=WIDTHS, relu=st.booleans(), pool=st.booleans())
def test_batch_norm_with_relu_and_pooling(members, batch, side, channels, relu, pool):
    statistics = []

    def normed(x, weight, bias):
        statistics.append((torch.zeros(members, channels), torch.ones(members, channels)))
        return batch_norm(x, weight, bias, *statistics[-1], relu, pool)

    up = (torch.arange(batch) % 2)[:, None, None, None]  # a channel without a spread has no digits left
    x = 3.0 + 2.0 * up + noise(members, batch, side, side, channels)
    agree(normed, x, noise(members, channels, seed=2), noise(members, channels, seed=3))
    expected, ours = statistics
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def groups_by_the_rule(width):
    """The most groups that divide the width and have 4 channels or more; one where there is none."""
    return max((n for n in range(1, width + 1) if width % n == 0 and width // n >= 4), default=1)


def test_groups_are_as_many_as_divide_the_width_and_keep_four_channels():
    for width in range(1, 200):
        assert width // group_size(width) == groups_by_the_rule(width)
    assert [group_size(width) for width in (1, 2, 3, 4, 8, 12, 64)] == [1, 2, 3, 4, 4, 4, 4]
    assert [group_size(width) for width in (5, 6, 9, 10, 14, 30)] == [5, 6, 9, 5, 7, 5]


@given(
    data=st.data(),
    batch=st.integers(2, 9),
    side=SIDES,
    channels=st.integers(1, 40),
    relu=st.booleans(),
    mixed=st.booleans(),
)
def test_group_norm_of_members_of_any_widths_is_that_of_torch_on_each_alone(data, batch, side, channels, relu, mixed):
    counts = data.draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))
    members, present = sum(counts), None
    widths = [channels] * members
    if mixed:
        widths = data.draw(st.lists(st.integers(1, channels), min_size=members, max_size=members))
        present = torch.tensor(widths)
    mask = (torch.arange(channels) < torch.tensor(widths)[:, None]).float()
    # Up and down over places and channels, for the same reason.
    up = (torch.arange(side)[:, None, None] + torch.arange(side)[:, None] + torch.arange(channels)) % 2
    x = (2.0 * up + 0.3 * noise(members, batch, side, side, channels)) * mask[:, None, None, None]
    weight, bias = noise(members, channels, seed=2) * mask, noise(members, channels, seed=3) * mask

    def ours(x, weight, bias):
        # What is absent is shown to nobody, as in a host; a square's gradient does not jump where a ReLU opens.
        return group_norm(x.split(counts), weight, bias, present, relu).square() * mask[:, None, None, None]

    def each_alone(x, weight, bias):
        out = torch.zeros_like(x)
        for m, width in enumerate(widths):
            maps, of = x[m, ..., :width].permute(0, 3, 1, 2), (weight[m, :width], bias[m, :width])
            normed = torch.nn.functional.group_norm(maps.contiguous(), groups_by_the_rule(width), *of)
            out[m, ..., :width] = normed.permute(0, 2, 3, 1)
        return (out.relu() if relu else out).square()

    kernel, composite = both(ours, x, weight, bias)
    plain, _ = both(each_alone, x, weight, bias)
    for value, other, expected in zip(kernel, composite, plain, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(other, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "task",
    with_their_data(
        ("digits_impaired", "digits_mixed", "digits_scale", "tabular_wide", "text_attending", "mnist5k_mixed")
    ),
)
def test_an_epoch_of_hosts_with_every_kind_of_seed(task):
    """Limits, gates, MULTIPLY, incubation and the optimiser too; tolerances are those of eight steps' rounding."""
    results = []
    for by_torch in (False, True):
        population, lifecycle = fresh_population(make_task(task), 12, 2, torch.device("cpu"), share=0.8)
        if by_torch:
            with torch_alone():
                gradients = population.train_epoch(np.zeros(12, np.int64), lifecycle)
        else:
            gradients = population.train_epoch(np.zeros(12, np.int64), lifecycle)
        banks = population.banks.values()
        tensors = [population.flat, population.momentum, *population.buffers.values()]
        tensors += [rows for bank in banks for rows in (bank.rows.flat, bank.rows.momentum)]
        results.append((tensors, gradients))
    for ours, expected in zip(*(tensors for tensors, _ in results), strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-2, rtol=2e-2)
        assert (ours - expected).abs().mean() < 2e-5
    for name in ("norm", "exploding"):  # what vanishes is a matter of rounding
        ours, expected = (getattr(gradients, name) for _, gradients in results)
        np.testing.assert_allclose(ours, expected, rtol=2e-2, atol=1e-4)


def test_a_nan_is_seen_by_its_own_member_and_by_no_other():
    x = noise(3, 4, 4, 4, 8)
    weight, bias = noise(3, 8, seed=2), noise(3, 8, seed=3)
    kernel = noise(3, 8, 8, 3, 3, seed=4)
    layers = {
        "conv": lambda x: conv(x, kernel, bias, relu=True),
        "batch norm": lambda x: batch_norm(x, weight, bias, torch.zeros(3, 8), torch.ones(3, 8), True, True),
        "group norm": lambda x: group_norm(x, weight, bias, None, relu=True),
    }
    broken = x.clone()
    broken[1, 2, 3, 3, 5] = torch.nan
    for name, layer in layers.items():
        out, clean = layer(broken), layer(x)
        assert out[1].isnan().any(), name
        assert torch.equal(out[[0, 2]], clean[[0, 2]]), name


def test_the_library_is_built_once_and_by_the_compiler_that_was_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build = library.library.__wrapped__
    first = build()
    (built,) = (tmp_path / "esper-ray").glob("*.so")
    assert first is not None
    stamp = built.stat().st_mtime_ns
    assert build() is not None
    assert built.stat().st_mtime_ns == stamp
    for broken in ("no-such-compiler", "false", 'gcc "'):
        monkeypatch.setenv("CC", broken)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert build() is None
        (record,) = caplog.records
        assert "without" in record.message
        assert "\n" not in record.message


def test_a_library_that_others_could_have_written_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    open_to_all = tmp_path / "esper-ray"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert library._cache_directory() is None
    open_to_all.chmod(0o755)
    assert library._cache_directory() == open_to_all


def test_without_a_compiler_hosts_train_by_torch_alone_and_it_is_said_once(monkeypatch, caplog):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.WARNING):
        assert library.library.__wrapped__() is None
    assert "C compiler" in caplog.text
    assert operators.compiled(torch.zeros(1))
    with torch_alone():
        assert not operators.compiled(torch.zeros(1))
    assert not operators.compiled(torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("task", ["digits_mixed", "digits_scale", "text"])
def test_hosts_are_the_same_on_any_number_of_threads(task):
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            population, lifecycle = fresh_population(make_task(task), 5, 2, torch.device("cpu"), share=0.8)
            population.train_epoch(np.zeros(5, np.int64), lifecycle)
            loss, _ = population.evaluate(np.arange(5), lifecycle.alpha, lifecycle, "validation")
        finally:
            torch.set_num_threads(1)
        seeds = [bank.rows.flat for bank in population.banks.values()]
        results.append([population.flat, *seeds, *population.buffers.values(), torch.from_numpy(loss)])
    for one, several in zip(*results, strict=True):
        torch.testing.assert_close(one, several, atol=1e-5, rtol=1e-5)  # torch's own sums may be shared out otherwise
