"""What a report says of FLOPs."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import torch
from torch import nn

from envs.live.places import forward_flops


def test_flops_of_torchs_transformer_layers_do_not_depend_on_whether_something_hooks_them():
    model, tokens = nn.Sequential(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)), torch.randn(2, 8, 32)
    before, fast = forward_flops(model, tokens), torch.backends.mha.get_fastpath_enabled()
    model[0].register_forward_hook(lambda *_: None)
    assert forward_flops(model, tokens) == before
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert before >= 2 * 8 * weights
    assert torch.backends.mha.get_fastpath_enabled() == fast


class Waiting(nn.Linear):
    """Says that its forward has begun, and waits for somebody a while."""

    def __init__(self, begun, waits_for):
        super().__init__(3, 3)
        self.begun, self.waits_for = begun, waits_for

    def forward(self, x):
        self.begun.set()
        self.waits_for.wait(0.2)
        return super().forward(x)


def test_two_threads_that_count_at_once_leave_the_process_as_it_was():
    """The second must not find the first one's setting, and put that back in the end."""
    first, second, x = Event(), Event(), torch.ones(2, 3)
    with ThreadPoolExecutor(2) as pool:
        counts = [pool.submit(forward_flops, Waiting(first, second), x)]
        assert first.wait(10)
        counts.append(pool.submit(forward_flops, Waiting(second, Event()), x))
        assert [count.result() for count in counts] == [18, 18]
    assert torch.backends.mha.get_fastpath_enabled()
