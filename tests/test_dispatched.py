import pytest
import torch

from tests.dispatched import Dispatched

X = torch.arange(6.0, requires_grad=True)
SLOW = {
    "a number": lambda x: x.sum().item(),
    "a condition": lambda x: bool(x.sum() > 1),
    "a mask as index": lambda x: x[x > 2],
    "assigned by mask": lambda x: x.detach().clone().index_put_((x > 2,), torch.ones(3)),
    "masked_select": lambda x: x.masked_select(x > 2),
    "where it is not zero": lambda x: x.nonzero(),
    "how many there are": lambda x: x.unique(),
    "equality": lambda x: torch.equal(x, x + 1),
    "a table made now": lambda x: x[torch.tensor([1, 2])],
    "a list as index": lambda x: x[[1, 2]],
    "how often each": lambda x: x.repeat_interleave(torch.arange(6)),
    "within the backward pass": lambda x: _ReadsBackward.apply(x).sum().backward(),
}


class _ReadsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * gradient[0].item()


@pytest.mark.parametrize("work", SLOW.values(), ids=SLOW.keys())
def test_what_waits_is_caught(work):
    with Dispatched() as dispatched:
        work(X)
    assert sum(dispatched.waits.values()) > 0


def test_what_does_not_wait_is_only_counted():
    table = torch.tensor([1, 2])
    with Dispatched() as dispatched:
        torch.where(X > 2, X, 0.0).index_select(0, table).exp().sum().backward()
        X.detach().masked_fill(X > 2, 0.0)[table].argmax()
    assert not dispatched.waits
    assert dispatched.calls["aten.index_select.default"] == 1
    assert dispatched.calls["aten.where.self"] == 2  # there and back
