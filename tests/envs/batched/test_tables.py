"""The kernels of a graph network's tables compute what torch's own operators compute."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.batched.kernels import library, operators
from envs.batched.kernels.tables import MOST_NODES, normed_sums, products
from tests.envs.helpers import torch_alone

pytestmark = pytest.mark.skipif(library.find_compiler() is None, reason="needs a C compiler")

TYPES = st.lists(
    st.tuples(st.one_of(st.integers(0, 20), st.just(MOST_NODES)), st.integers(1, 40), st.integers(1, 3)),
    min_size=1,
    max_size=3,
)
"""Nodes, inputs and roles of each type."""
WIDTHS = st.one_of(st.integers(1, 40), st.sampled_from([64, 128, 256, 520, 1030]))


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def agree(function):
    """By the kernels, which are called once, and by torch alone; as gradients are wanted, torch alone computes."""
    with torch.no_grad():
        with torch.profiler.profile() as profile:
            ours = function()
        assert sum(event.name.startswith("esper::") for event in profile.events()) == 1
        with torch_alone():
            torch.testing.assert_close(ours, function(), atol=1e-5, rtol=1e-5)


@given(types=TYPES, width=WIDTHS)
def test_products_of_few_rows(types, width):
    nodes = [noise(count, inputs) for count, inputs, _ in types]
    weights = [noise(inputs, roles, width) / inputs**0.5 for _, inputs, roles in types]
    agree(lambda: products(nodes, weights))


@given(types=TYPES, width=WIDTHS, seed=st.integers(0, 99))
def test_normed_sums(types, width, seed):
    counts, roles = [count for count, *_ in types], [roles for *_, roles in types]
    rows = sum(count * of for count, of in zip(counts, roles, strict=True))
    reached = torch.rand(rows, 1, generator=torch.Generator().manual_seed(seed)).round()
    of_roles = [[noise(of, width) + at for of in roles] for at in range(3)]
    agree(lambda: normed_sums(noise(rows, width), reached, *of_roles, counts))


def test_a_row_is_the_same_bit_for_bit_whatever_it_is_computed_with():
    nodes, weight = noise(MOST_NODES, 19), noise(19, 2, 100)
    with torch.no_grad():
        whole = products([nodes], [weight])
        for first in (1, 15, 16, 33):
            assert torch.equal(products([nodes[first:]], [weight]), whole[2 * first :])


def test_where_gradients_are_wanted_and_of_many_rows_torch_alone_computes():
    weight = noise(5, 2, 30).requires_grad_()
    products([noise(3, 5)], [weight]).sum().backward()
    assert weight.grad.abs().max() > 0
    many = noise(MOST_NODES + 1, 5)
    with torch.no_grad():
        torch.testing.assert_close(products([many], [weight]), (many @ weight.flatten(1)).view(-1, 30))


def test_threads_change_nothing():
    nodes, weight = noise(17, 30), noise(30, 3, 1000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.no_grad():
            two = products([nodes], [weight])
        torch.set_num_threads(1)
        with torch.no_grad():
            assert torch.equal(products([nodes], [weight]), two)
    finally:
        torch.set_num_threads(before)
        assert operators.compiled(nodes)
