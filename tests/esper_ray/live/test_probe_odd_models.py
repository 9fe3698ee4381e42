"""Models that do what is allowed and seldom thought of are measured, or what cannot be known of them is unknown."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from esper_ray.live import LiveError
from esper_ray.live.probe import Probe
from esper_ray.live.tracing import trace
from tests.esper_ray.live.models import ARCHITECTURES, Loop, images
from tests.esper_ray.live.odd_models import Checkpointed, Dataclassed, FrozenBackbone
from tests.esper_ray.live.test_probe import column, graph, wired

torch.set_num_threads(1)


class Last(nn.Module):
    """The last state of a sequence."""

    def forward(self, states):
        return states[0][:, -1]


def test_what_autograd_cannot_follow_is_unknown():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(256, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.b(torch.from_numpy(self.a(x.flatten(1)).detach().numpy()))

    loop = Loop(Cut, images)
    packet = Probe(loop.model, loop.optimizer, loop.validation[0]).end_epoch()
    assert graph(packet) == set()
    assert column(packet, "layers", "in_degree") == {"a": 0, "b": None}


@pytest.mark.parametrize(
    ("reentrant", "edges"), [(False, {("a", "b"), ("b", "c"), ("c", "out")}), (True, {("a", "b")})]
)
def test_a_block_that_is_computed_again_hides_its_edges_or_has_them_right(reentrant, edges):
    loop = Loop(lambda: Checkpointed(reentrant), images)
    packet = Probe(loop.model, loop.optimizer, loop.validation[0]).end_epoch()
    assert graph(packet) == edges
    read = column(packet, "layers", "in_degree")
    assert read == {"a": 0, "b": 1} | (dict.fromkeys(("c", "out")) if reentrant else {"c": 1, "out": 1})
    assert packet.graph.activations.activation_type == ("relu", "gelu"), (
        "functions are watched wherever they are called"
    )


def test_functions_are_watched_where_there_are_no_gradients():
    loop = Loop(lambda: FrozenBackbone(torch.inference_mode), images)
    packet = Probe(loop.model, loop.optimizer, loop.validation[0]).end_epoch()
    assert packet.graph.activations.activation_type == ("gelu", "gelu", "relu")
    assert all(rate is not None for rate in packet.graph.activations.saturation_rate)
    assert column(packet, "layers", "in_degree")["out"] is None


def test_edges_pass_through_dataclasses():
    loop = Loop(Dataclassed, images)
    packet = Probe(loop.model, loop.optimizer, loop.validation[0]).end_epoch()
    assert graph(packet) == {("encoder", "out")}
    assert packet.graph.layers.output_channels == (8, 4)


def test_dropout_is_0_where_none_follows_and_unknown_where_one_may():
    class Dropping(nn.Module):
        def __init__(self, cut):
            super().__init__()
            self.a, self.b, self.out, self.cut = nn.Linear(256, 8), nn.Linear(8, 8), nn.Linear(8, 4), cut

        def forward(self, x):
            x = F.dropout(self.a(x.flatten(1)).relu(), 0.2, self.training)
            x = self.b(x)
            return self.out(F.dropout(x.detach() if self.cut else x, 0.4, self.training))

    for cut, rates in ((False, {"a": 0.2, "b": 0.4, "out": 0.0}), (True, {"a": 0.2, "b": None, "out": None})):
        model = Dropping(cut)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        packet = Probe(model, optimizer, torch.randn(4, 1, 16, 16)).end_epoch()
        assert column(packet, "layers", "dropout_rate") == rates


def test_a_part_that_is_never_called_belongs_to_the_layer_that_has_it():
    """As the last product of multi-head attention, which is done by a function."""
    loop = Loop(ARCHITECTURES["TransformerEncoder"][0], ARCHITECTURES["TransformerEncoder"][1])
    seen = trace(loop.model, loop.validation[0], 32)
    names = [layer.name for layer in seen.layers]
    assert not [name for name in names if "out_proj" in name]
    attention = seen.layers[names.index("encoder.layers.0.self_attn")]
    own = dict(loop.model.encoder.layers[0].self_attn.named_parameters())
    assert set(attention.parameters) == set(own.values())


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(256, affine=False), nn.Linear(256, 4)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.Sigmoid()),
        lambda: nn.Sequential(nn.Linear(16, 1), nn.Flatten(), nn.Unflatten(1, (4, 4)), nn.LSTM(4, 4), Last()),
    ],
    ids=["a layer without parameters", "a function at the end", "a tuple between layers"],
)
def test_odd_models(model):
    loop = Loop(model, images)
    probe = Probe(loop.model, loop.optimizer, loop.validation[0])
    loop.epoch()
    packet = probe.end_epoch()
    assert len(packet.graph.layers.name) == len([m for m in loop.model.modules() if [*m.parameters(recurse=False)]])
    assert all(column(packet, "layers", "gradient_norm").values())


def test_a_model_without_any_layer():
    model = nn.Flatten()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1)
    packet = Probe(model, optimizer, torch.zeros(2, 3)).end_epoch()
    assert packet.graph.layers.name == ()


def test_a_sparse_gradient_is_unknown_and_so_are_all_shares():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(11, 5, sparse=True), nn.Linear(5, 4)

        def forward(self, x):
            return self.out(self.embed(x).mean(1))

    loop = Loop(Bag, ARCHITECTURES["LSTM, its sequences"][1], lambda of: torch.optim.SGD(of, lr=0.1))
    probe = Probe(loop.model, loop.optimizer, loop.validation[0])
    loop.epoch()
    packet = probe.end_epoch()
    norms = column(packet, "layers", "gradient_norm")
    assert norms["embed"] is None
    assert norms["out"] > 0
    assert packet.graph.layers.loss_share is None


def test_a_model_may_become_of_another_type():
    loop = wired()
    probe = Probe(loop.model, loop.optimizer, loop.validation[0])
    loop.epoch()
    loop.model.double()
    loop.train_set = loop.train_set[0].double(), loop.train_set[1]
    loop.epoch()
    packet = probe.end_epoch()
    assert all(column(packet, "layers", "gradient_norm")[name] > 0.0 for name in ("a", "norm", "b", "out"))
    loop.epoch()
    again = probe.end_epoch()
    assert graph(again) == graph(packet)
    norm = math.sqrt(sum(p.detach().square().sum().item() for p in loop.model.a.parameters()))
    assert column(again, "layers", "weight_norm")["a"] == pytest.approx(norm, rel=1e-12)


def test_whole_numbers_among_the_parameters_are_unknown():
    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.codes = nn.Parameter(torch.arange(-4, 4, dtype=torch.int8), requires_grad=False)

        def forward(self, x):
            return x[:, :8] * self.codes

    loop = Loop(lambda: nn.Sequential(nn.Flatten(), Quantised(), nn.Linear(8, 4)), images)
    probe = Probe(loop.model, loop.optimizer, loop.validation[0])
    loop.epoch()
    packet = probe.end_epoch()
    assert column(packet, "layers", "weight_norm")["1"] is None
    assert column(packet, "layers", "gradient_norm")["2"] > 0.0


def test_complex_parameters_are_refused():
    model = nn.Linear(3, 2, dtype=torch.complex64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(LiveError, match=r"^the parameter 'weight' is torch.complex64, and .* real numbers only: .*"):
        Probe(model, optimizer, torch.zeros(4, 3, dtype=torch.complex64))
    assert not optimizer._optimizer_step_pre_hooks
