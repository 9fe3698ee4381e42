"""The counter of operators counts those that compute, once each, and says who called them."""

import pytest
import torch

from benchmarks.operator_calls import AUTOGRAD, OTHERS, Case, OperatorCalls, count_calls


def test_views_are_no_calls():
    x = torch.ones(2, 3)
    with OperatorCalls() as calls:
        total = (x.view(6) + 1.0).mul_(2.0)[1:].sum()
    assert total == 5 * 4.0
    assert calls.by_source == {OTHERS: 3}


def test_what_an_operator_of_ours_calls_inside_does_not_count():
    @torch.library.custom_op("esper_tests::four_times", mutates_args=())
    def four_times(x: torch.Tensor) -> torch.Tensor:
        return (x + x) + (x + x)

    x = torch.ones(1)
    with OperatorCalls() as calls:
        y = four_times(x)
    assert y == 4.0
    assert calls.by_source == {OTHERS: 1}


def test_the_backward_is_that_of_the_autograd_engine():
    x = torch.ones(3, requires_grad=True)
    with OperatorCalls() as calls:
        y = x * x
        forward = calls.by_source.total()
        torch.autograd.grad(y, x, torch.ones(3))
    assert forward == 1
    assert calls.by_source[AUTOGRAD] == 3  # two products and their sum


@pytest.mark.parametrize("seeds", ["alone", "mixed seeds"])
def test_a_mini_batch_calls_the_same_in_an_epoch_of_any_length(seeds):
    counted = count_calls(Case("digits_impaired", seeds, 3), torch.device("cpu"))
    assert sum(counted.per_batch.values()) > 0
    assert all(calls.is_integer() for calls in counted.per_batch.values())
    assert all(calls >= 0 for calls in counted.beside.values())
