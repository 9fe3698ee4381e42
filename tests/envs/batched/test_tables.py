"""The kernels of a graph network's tables compute what torch's own operators compute."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.batched.kernels import library, operators
from envs.batched.kernels.tables import MOST_NODES, Attended, attention, normed_sums, products
from tests.envs.helpers import torch_alone

pytestmark = pytest.mark.skipif(library.find_compiler() is None, reason="needs a C compiler")

TYPES = st.lists(
    st.tuples(st.one_of(st.integers(0, 20), st.just(MOST_NODES)), st.integers(1, 40), st.integers(1, 3)),
    min_size=1,
    max_size=3,
)
"""Nodes, inputs and roles of each type."""
ALL = torch.ones(3, dtype=torch.bool)
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
    agree(lambda: products(nodes, weights, torch.ones(sum(roles for *_, roles in types), dtype=torch.bool)))


@given(types=TYPES, width=WIDTHS, seed=st.integers(0, 99))
def test_products_that_nobody_wants_need_not_be_computed(types, width, seed):
    nodes, weights = [noise(count, inputs) for count, inputs, _ in types], [noise(*of[1:], width) for of in types]
    wanted = torch.rand(sum(roles for *_, roles in types), generator=torch.Generator().manual_seed(seed)) < 0.5
    split = wanted.split([roles for *_, roles in types])
    counted = torch.cat([of.repeat(len(rows)) for of, rows in zip(split, nodes, strict=True)])
    with torch.no_grad():
        some, every = (products(nodes, weights, of) for of in (wanted, torch.ones_like(wanted)))
    assert some[counted].equal(every[counted])
    assert some.isfinite().all()


@given(types=TYPES, width=WIDTHS, heads=st.integers(1, 5), edges=st.integers(0, 60), seed=st.integers(0, 99))
def test_attention(types, width, heads, edges, seed):
    generator, inboxes, known = torch.Generator().manual_seed(seed), 20, 4

    def drawn(largest):
        return torch.randint(max(largest, 1), (edges,), generator=generator)

    nodes, roles = [count for count, *_ in types], [roles for *_, roles in types]
    rows = sum(count * of for count, of in zip(nodes, roles, strict=True))
    origins = [(at, role) for at, of in enumerate(roles) for role in range(of)]
    # Each edge's relation is the one whose role its message plays.
    played = torch.cat(
        [
            torch.arange(of).repeat(count) + sum(roles[:at])
            for at, (count, of) in enumerate(zip(nodes, roles, strict=True))
        ]
    )
    message = drawn(rows)[: edges if rows else 0]
    inbox = drawn(inboxes)[: len(message)].sort().values
    arrived = inbox.bincount(minlength=inboxes)
    of_edges = Attended(
        message, inbox, arrived.cumsum(0) - arrived, played[message], drawn(7)[: len(message)], noise(7, known)
    )
    source, along = [noise(width, of, heads) / width**0.5 for of in roles], noise(known, len(origins), heads)
    table, target = noise(rows, heads * width), noise(inboxes, heads)
    agree(lambda: attention(table, source, target, along, of_edges, origins, nodes, 0.2))


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
        whole = products([nodes], [weight], ALL)
        for first in (1, 15, 16, 33):
            assert torch.equal(products([nodes[first:]], [weight], ALL), whole[2 * first :])


def test_where_gradients_are_wanted_and_of_many_rows_torch_alone_computes():
    weight = noise(5, 2, 30).requires_grad_()
    products([noise(3, 5)], [weight], ALL).sum().backward()
    assert weight.grad.abs().max() > 0
    many = noise(MOST_NODES + 1, 5)
    with torch.no_grad():
        torch.testing.assert_close(products([many], [weight], ALL), (many @ weight.flatten(1)).view(-1, 30))


def test_threads_change_nothing():
    nodes, weight = noise(17, 30), noise(30, 3, 1000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.no_grad():
            two = products([nodes], [weight], ALL)
        torch.set_num_threads(1)
        with torch.no_grad():
            assert torch.equal(products([nodes], [weight], ALL), two)
    finally:
        torch.set_num_threads(before)
        assert operators.compiled(nodes)
