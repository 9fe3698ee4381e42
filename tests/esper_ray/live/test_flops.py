"""What a report says of FLOPs."""

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
