"""The probe says what is measured of foreign models, leaves out what is not, and changes nothing of their training."""

import math
from collections import defaultdict
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from envs.graph.measurements import ACTIVITY_SAMPLES
from envs.limits import DEFAULT_BUDGET_FACTOR
from envs.live.slot import GROWTH
from envs.vocabulary import SeedStage
from esper_ray.live import LiveError
from esper_ray.live.hardware import DECLARED_ON_CUDA, UTILISATION
from esper_ray.live.probe import DECLARED, DECLARED_OF_GROWERS, Probe
from policies.strategic.coverage import Coverage
from policies.strategic.graph_columns import MOST_NODES
from policies.strategic.input_page import GROWER, PROBE, read_keys
from policies.strategic.messages import KEYS, Budgets, SystemState
from policies.strategic.sampling import Sampling
from tests.esper_ray.live.models import ARCHITECTURES, Loop, growing, images
from tests.esper_ray.live.odd_models import ODD

torch.set_num_threads(1)


class Wired(nn.Module):
    """Residuals, concatenation, functions that are no modules, dropout, a frozen layer, a part that is never run."""

    def __init__(self):
        super().__init__()
        self.stem, self.act = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.a, self.norm, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.drop, self.out, self.unused = nn.Dropout(0.3), nn.Linear(8, 4), nn.Linear(3, 3)
        self.stem.requires_grad_(False)

    def forward(self, x):
        x = self.act(self.stem(x))
        y = F.gelu(self.norm(self.a(x))) + x
        z = torch.cat([y, self.b(y)], dim=1)
        return self.out(self.drop(z.mean((2, 3))))


def wired():
    return Loop(Wired, images)


def bits(loop):
    """Everything that training changes."""
    state = loop.optimizer.state_dict()["state"].values()
    return [
        *loop.model.state_dict().values(),
        *(value for entry in state for value in entry.values() if isinstance(value, torch.Tensor)),
        torch.get_rng_state(),
    ]


def same(one, other):
    return torch.equal(one.to_dense(), other.to_dense())


def graph(packet):
    """Edges of a packet by name, and the layers' rows."""
    names = packet.graph.layers.name
    return {
        (names[s], names[t]) for s, t in zip(packet.graph.connects.source, packet.graph.connects.target, strict=True)
    }


def column(packet, table, name):
    of = getattr(packet.graph, table)
    return dict(zip(of.name, of.column(name), strict=True))


# ------------------------------------------------------------------ nothing changes
@pytest.mark.parametrize("name", ["residual", "TransformerEncoder", *ODD])
def test_measuring_changes_not_a_bit_of_the_training(name):
    model, data = ARCHITECTURES[name][:2] if name in ARCHITECTURES else (ODD[name], images)
    alone, watched = Loop(model, data), Loop(model, data)
    for loop in (alone, watched):
        torch.manual_seed(1)
        probe = Probe(loop.model, loop.optimizer, loop.validation[0]) if loop is watched else None
        for _ in range(3):
            loop.epoch()
            if probe is not None:
                probe.end_epoch()
        loop.final = bits(loop)
        loop.tensors = dict(chain(loop.model.named_parameters(), loop.model.named_buffers()))
    assert all(map(same, alone.final, watched.final))
    assert [t.requires_grad for t in alone.tensors.values()] == [t.requires_grad for t in watched.tensors.values()]
    assert [module.training for module in alone.model.modules()] == [m.training for m in watched.model.modules()]


def test_a_removed_probe_leaves_nothing_behind():
    def hooks(loop):
        found = [loop.optimizer._optimizer_step_pre_hooks, loop.optimizer._optimizer_step_post_hooks]
        for module in loop.model.modules():
            found += [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks]
        return sum(map(len, found))

    loop = wired()
    keys, grads = list(loop.model.state_dict()), [p.requires_grad for p in loop.model.parameters()]
    probe = Probe(loop.model, loop.optimizer, loop.validation[0])
    loop.epoch()
    probe.end_epoch()
    assert hooks(loop) == 1, "between epochs there is one hook, in the optimiser"
    probe.remove()
    assert hooks(loop) == 0
    assert list(loop.model.state_dict()) == keys
    assert [p.requires_grad for p in loop.model.parameters()] == grads


def test_it_says_what_it_costs():
    loop = wired()
    probe = Probe(loop.model, loop.optimizer, loop.validation[0])
    assert probe.seconds == 0.0
    loop.epoch()
    first = probe.end_epoch()
    cost = probe.seconds
    assert cost > 0.0
    assert first.metrics["hook_latency_ms"] > 0.0
    loop.epoch()
    probe.end_epoch()
    assert probe.seconds > cost


# ------------------------------------------------------------------ structure
def test_who_reads_whom():
    loop = wired()
    packet = Probe(loop.model, loop.optimizer, loop.validation[0]).end_epoch()
    layers = packet.graph.layers
    assert layers.name == ("stem", "a", "norm", "b", "out")
    assert layers.layer_type == ("conv2d", "conv2d", "batchnorm2d", "conv2d", "linear")
    assert layers.input_channels == (1, 4, 4, 4, 8)
    assert layers.output_channels == (4, 4, 4, 4, 4)
    assert graph(packet) == {
        *(("stem", "a"), ("a", "norm"), ("norm", "b"), ("stem", "b")),
        *(("norm", "out"), ("stem", "out"), ("b", "out")),
    }
    assert column(packet, "layers", "in_degree") == {"stem": 0, "a": 1, "norm": 1, "b": 2, "out": 3}
    assert layers.out_degree == (3, 1, 2, 1, 0)
    assert layers.depth == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert layers.activation_type == ("relu", None, "gelu", None, None)
    assert layers.dropout_rate == (0.3, 0.0, 0.3, 0.3, 0.0)
    strength = dict(zip(_ends(packet, "connects"), packet.graph.connects.connection_strength, strict=True))
    assert strength["norm", "b"] == strength["stem", "b"] == 1.0, "what is added up is read by all weights"
    assert strength["b", "out"] is None, "what lies side by side is read by some, and nobody says by which"
    volume = dict(zip(_ends(packet, "connects"), packet.graph.connects.data_flow_volume, strict=True))
    assert volume["norm", "b"] == volume["stem", "a"] == 4 * 256
    assert volume["b", "out"] == volume["stem", "out"] == 4, "the mean of its half of the channels"
    activations = packet.graph.activations
    assert (activations.name, activations.activation_type) == (("act", "gelu"), ("relu", "gelu"))
    assert activations.computational_cost == (4 * 256, 5 * 4 * 256)


def _ends(packet, table):
    names = packet.graph.layers.name
    edges = getattr(packet.graph, table)
    return [(names[s], names[t]) for s, t in zip(edges.source, edges.target, strict=True)]


def test_activations_are_joined_to_the_layers_around_them():
    loop = wired()
    packet = Probe(loop.model, loop.optimizer, loop.validation[0]).end_epoch()
    layers, activations = packet.graph.layers.name, packet.graph.activations.name
    feeds, influences = packet.graph.feeds, packet.graph.influences
    assert {(layers[s], activations[t]) for s, t in zip(feeds.source, feeds.target, strict=True)} == {
        ("stem", "act"),
        ("norm", "gelu"),
    }
    assert {(activations[s], layers[t]) for s, t in zip(influences.source, influences.target, strict=True)} == {
        *(("act", "a"), ("act", "b"), ("act", "out"), ("gelu", "b"), ("gelu", "out")),
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_of_all_sorts(name):
    model, data, _ = ARCHITECTURES[name]
    loop = Loop(model, data)
    probe = Probe(loop.model, loop.optimizer, loop.validation[0])
    loop.epoch()
    probe.end_epoch(training_loss=1.0)
    loop.epoch()
    packet = probe.end_epoch(training_loss=0.9, samples=32)
    again = SystemState.model_validate_json(packet.model_dump_json())
    assert again == packet
    with_parameters = {m for m in loop.model.modules() if m._parameters}
    assert len(packet.graph.layers.name) + 2 * name.startswith("Transformer") == len(with_parameters)
    missing = {key for key, share in Coverage.of(packet).keys.items() if share == 0.0}
    assert missing <= {
        *("run.max_epochs", "run.validation_loss", "run.validation_accuracy"),
        *("layers.activation_type", "influences.gradient_contribution", "activations.gradient_flow"),
        "metrics.cpu_util_percent",  # of less than a hundredth of a second the system knows nothing
    }


# ------------------------------------------------------------------ numbers
def test_numbers_are_those_of_their_formulas():
    """Against a plain account of every step's gradients."""
    loop = wired()
    probe = Probe(loop.model, loop.optimizer, loop.validation[0])
    kept, magnitudes = defaultdict(list), []

    def keep(*_):
        for name, parameter in loop.model.named_parameters():
            if parameter.grad is not None:
                kept[name].append(parameter.grad.clone())

    loop.optimizer.register_step_pre_hook(keep)
    for _ in range(2):
        kept.clear()
        before = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
        loop.epoch()
        packet = probe.end_epoch()
        change = sum((p.detach() - before[f"a.{n}"]).square().sum() for n, p in loop.model.a.named_parameters())
        norm = sum(before[f"a.{n}"].square().sum() for n, _ in loop.model.a.named_parameters())
        magnitudes.append((change / norm).sqrt().item())
    of = {
        layer: sum(g.square().sum().item() for n, gs in kept.items() if n.startswith(f"{layer}.") for g in gs) / 2
        for layer in packet.graph.layers.name
    }
    gradient = column(packet, "layers", "gradient_norm")
    assert gradient == pytest.approx({layer: math.sqrt(square) for layer, square in of.items()}, rel=1e-4)
    shares = column(packet, "layers", "loss_share")
    assert shares == pytest.approx({layer: square / sum(of.values()) for layer, square in of.items()}, rel=1e-4)
    assert column(packet, "layers", "update_frequency") == {"stem": 0.0, "a": 1.0, "norm": 1.0, "b": 1.0, "out": 1.0}
    now = math.sqrt(sum(p.detach().square().sum() for p in loop.model.a.parameters()))
    assert column(packet, "layers", "weight_norm")["a"] == pytest.approx(now, rel=1e-5)
    flow = gradient["stem"] / math.hypot(*(gradient[reader] for reader in ("a", "b", "out")))
    assert column(packet, "activations", "gradient_flow")["act"] == pytest.approx(flow, rel=1e-4), (
        "all readers together"
    )
    tunes = packet.graph.tunes
    at = tunes.target.index(packet.graph.layers.name.index("a"))
    assert tunes.update_magnitude[at] == pytest.approx(magnitudes[1], rel=1e-4)
    assert tunes.convergence_rate[at] == pytest.approx(1 - magnitudes[1] / magnitudes[0], rel=1e-3)
    numbers = sum(p.numel() for p in loop.model.parameters())
    variance = sum(torch.stack(gs).var(dim=0, unbiased=False).sum().item() for gs in kept.values()) / numbers
    assert packet.graph.parameters.gradient_variance == pytest.approx((variance,), rel=1e-3)
    assert packet.metrics["grad_var"] == pytest.approx(variance, rel=1e-3)
    totals = [math.sqrt(sum(gs[step].square().sum().item() for gs in kept.values())) for step in range(2)]
    assert packet.metrics["gradient_norm"] == pytest.approx(np.mean(totals), rel=1e-4)
    group = packet.graph.parameters
    assert (group.count, group.learning_rate, group.momentum) == ((numbers,), (0.05,), (0.9,))
    assert group.optimizer_family == ("sgd",)


@pytest.mark.parametrize("by_name", [False, True])
def test_steps_whose_gradients_a_closure_makes_are_measured_alike(by_name):
    packets = []
    for closed in (False, True):
        loop = wired()
        probe = Probe(loop.model, loop.optimizer, loop.validation[0])
        x, y = loop.train_set

        def backward(loop=loop, x=x, y=y):
            loop.optimizer.zero_grad()
            loss = F.cross_entropy(loop.model(x), y)
            loss.backward()
            return loss

        for _ in range(3):
            if closed:
                loop.optimizer.step(**{"closure": backward}) if by_name else loop.optimizer.step(backward)
            else:
                backward()
                loop.optimizer.step()
        packets.append(probe.end_epoch())
    plain, closed = packets
    assert closed.graph == plain.graph
    assert closed.metrics["gradient_norm"] == plain.metrics["gradient_norm"] > 0.0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_layer_without_a_gradient_is_moved_by_momentum_of_an_earlier_one(momentum):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    probe = Probe(model, optimizer, torch.ones(4, 3))
    shares = []
    for scales in ((0.0, 1.0, 0.0, 0.0), (0.0, 0.0)):
        moved = []
        for scale in scales:
            optimizer.zero_grad()
            (scale * model(torch.ones(4, 3)).sum()).backward()
            before = model.weight.detach().clone()
            optimizer.step()
            moved.append(not torch.equal(before, model.weight))
        shares.append(np.mean(moved))
        assert probe.end_epoch().graph.layers.update_frequency == (shares[-1],)
    assert shares == ([0.75, 1.0] if momentum else [0.25, 0.0])


def test_activations_are_watched_on_32_samples():
    loop = Loop(Wired, images, size=50)
    packet = Probe(loop.model, loop.optimizer, loop.validation[0]).end_epoch()
    with torch.no_grad():
        x = loop.model.stem(loop.validation[0][:ACTIVITY_SAMPLES])
    silent = (x <= 0).float().mean().item()
    assert column(packet, "activations", "saturation_rate")["act"] == pytest.approx(silent)
    feeds = packet.graph.feeds
    assert feeds.activation_frequency[0] == pytest.approx(1 - silent)
    assert feeds.saturation_events[0] == pytest.approx(silent * x[0].numel())
    unexplained = 1 - np.corrcoef(x.flatten(), x.relu().flatten())[0, 1] ** 2
    assert packet.graph.influences.nonlinearity_strength[0] == pytest.approx(unexplained, abs=1e-5)


def test_what_was_not_trained_or_given_is_unknown_and_not_zero():
    loop = wired()
    packet = Probe(loop.model, loop.optimizer, loop.validation[0]).end_epoch(training_loss=math.inf)
    assert packet.training_loss is None
    assert set(packet.metrics) - {"cpu_util_percent"} == {"optimizer_lr", "process_memory_share"}
    assert packet.graph.layers.gradient_norm is None
    assert packet.graph.tunes.update_magnitude is None
    assert packet.graph.layers.weight_norm is not None
    assert packet.seeds == ()


def test_losses_of_the_last_epochs():
    loop = wired()
    probe = Probe(loop.model, loop.optimizer, loop.validation[0], max_epochs=9)
    losses = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0]
    for loss in losses:
        loop.epoch()
        packet = probe.end_epoch(loss, validation_loss=2.0, validation_accuracy=40.0, samples=32)
    assert (packet.epoch, packet.max_epochs, packet.global_step) == (6, 9, 12)
    assert (packet.metrics["loss"], packet.metrics["loss_delta"]) == (9.0, 4.0)
    assert packet.metrics["loss_volatility"] == pytest.approx(np.std(losses[-5:]))
    assert (packet.validation_loss, packet.validation_accuracy) == (2.0, 40.0)
    assert packet.metrics["samples_per_s"] > 0


# ------------------------------------------------------------------ large models, growers, errors
def test_a_large_model_is_sampled():
    loop = Loop(lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 4), *(nn.Linear(4, 4) for _ in range(200))), images)
    probe = Probe(loop.model, loop.optimizer, loop.validation[0])
    loop.epoch()
    packet = probe.end_epoch()
    assert (packet.graph.layer_count, packet.graph.sampled) == (201, True)
    assert len(packet.graph.layers.name) == MOST_NODES
    depths = {name: (int(name) - 1) / 200 for name in packet.graph.layers.name}
    assert column(packet, "layers", "depth") == pytest.approx(depths), "in the whole model"
    probe.remove()
    fewer = Probe(loop.model, loop.optimizer, loop.validation[0], sampling=Sampling(nodes=20, roots=4)).end_epoch()
    assert len(fewer.graph.layers.name) == 20


class Unrolled(nn.Module):
    """Two functions in loops, one of which is called elsewhere, too."""

    def __init__(self, steps, grad=True):
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(256, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.act, self.steps, self.grad = nn.Tanh(), steps, grad

    def forward(self, x):
        with torch.set_grad_enabled(self.grad and torch.is_grad_enabled()):
            x = self.first(x.flatten(1))
            for _ in range(self.steps):
                x = x - 0.1 * torch.relu(x)
            state = x
            for _ in range(self.steps):
                state = self.act(self.cell(state) + x)
            return self.last(self.act(self.last(state)))


@pytest.mark.parametrize("steps", [3, 300])
def test_a_function_in_a_loop_is_one_however_often_it_is_called(steps):
    loop = Loop(lambda: Unrolled(steps), images)
    packet = Probe(loop.model, loop.optimizer, loop.validation[0]).end_epoch()
    activations, layers = packet.graph.activations, packet.graph.layers.name
    assert activations.name == ("relu", "act", "act:2")
    assert activations.activation_type == ("relu", "tanh", "tanh")
    assert activations.computational_cost == (4 * steps, 5 * 4 * steps, 5 * 4)
    feeds = zip(packet.graph.feeds.source, packet.graph.feeds.target, strict=True)
    assert {(layers[s], activations.name[t]) for s, t in feeds} == {
        *(("first", "relu"), ("first", "act"), ("cell", "act"), ("last", "act:2"))
    }
    assert not packet.graph.sampled


def test_its_numbers_are_those_of_all_that_it_gave():
    loop = Loop(lambda: Unrolled(3), images)
    packet = Probe(loop.model, loop.optimizer, loop.validation[0]).end_epoch()
    read, gave = [], []
    with torch.no_grad():
        x = loop.model.first(loop.validation[0][:ACTIVITY_SAMPLES].flatten(1))
        for _ in range(3):
            read.append(x)
            gave.append(x.relu())
            x = x - 0.1 * gave[-1]
    read, gave = torch.cat(read).double().flatten(), torch.cat(gave).double().flatten()
    silent = (gave == 0.0).double().mean().item()
    assert packet.graph.activations.saturation_rate[0] == pytest.approx(silent)
    assert packet.graph.feeds.activation_frequency[0] == pytest.approx(1 - silent)
    influences = packet.graph.influences
    unexplained = 1 - np.corrcoef(read, gave)[0, 1] ** 2
    assert influences.nonlinearity_strength[influences.source.index(0)] == pytest.approx(unexplained, abs=1e-5)


def test_where_nobody_knows_what_a_loop_reads_its_calls_are_sampled():
    loop = Loop(lambda: Unrolled(100, grad=False), images)
    packet = Probe(loop.model, loop.optimizer, loop.validation[0]).end_epoch()
    assert len(packet.graph.activations.name) == MOST_NODES
    assert (packet.graph.sampled, packet.graph.layer_count) == (True, 3)
    assert SystemState.model_validate_json(packet.model_dump_json()) == packet


def test_what_a_model_does_not_have_is_not_missed():
    loop = Loop(lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.Linear(4, 4)), images)
    probe = Probe(loop.model, loop.optimizer, loop.validation[0])
    loop.epoch()
    probe.end_epoch(training_loss=1.0)
    loop.epoch()
    coverage = Coverage.of(probe.end_epoch(training_loss=1.0))
    assert not {"activations", "feeds", "influences"} & set(coverage.types)
    assert (coverage.level.name, coverage.lacking) == ("OK", ())


def test_a_model_that_is_compiled_later_is_watched_as_it_is_written():
    loop = wired()
    probe = Probe(loop.model, loop.optimizer, loop.validation[0])
    before = probe.end_epoch().graph
    loop.model.compile(backend="eager")
    assert probe.end_epoch().graph == before


def test_with_a_grower_the_packet_has_its_slots():
    loop = wired()
    grower = growing(loop, ["stem", "a", "b"])
    probe = Probe(loop.model, loop.optimizer, loop.validation[0], grower=grower)
    stages = set()
    for _ in range(12):
        loop.epoch()
        grower.end_epoch()
        packet = probe.end_epoch()
        stages |= {seed.stage for seed in packet.seeds}
    assert {SeedStage.TRAINING, SeedStage.BLENDING} <= stages
    assert [seed.slot for seed in packet.seeds] == ["stem", "a", "b"]
    observed = grower.observe()
    assert packet.observation == pytest.approx(observed["obs"][0].tolist())
    assert packet.blueprint_indices == tuple(observed["blueprint_indices"][0].tolist())
    assert packet.action_mask == tuple(observed["action_mask"][0].tolist())
    assert packet.graph.layers.name == ("stem", "a", "norm", "b", "out"), "seeds are no layers"
    assert len(packet.graph.activations.name) == 2
    names = packet.graph.layers.name
    watched = [{names[row] for row in seed.monitored_layers.layer} for seed in packet.seeds]
    assert watched == [{"stem", "a"}, {"a", "norm"}, {"b", "out"}]
    assert [seed.scope for seed in packet.seeds] == [0.4, 0.4, 0.4]
    assert packet.seeds[0].blueprint == "norm"
    assert packet.seeds[0].activity_level > 0.0
    assert packet.validation_loss == pytest.approx(grower.decision.loss)


def test_budgets_are_those_that_the_grower_keeps():
    loop = wired()
    grower = growing(loop, ["stem", "a", "b"])
    probe = Probe(loop.model, loop.optimizer, loop.validation[0], grower=grower)
    loop.epoch()
    grower.end_epoch()
    host = sum(parameter.numel() for parameter in Wired().parameters())
    packet = probe.end_epoch()
    assert packet.budgets == Budgets(living_seeds=3, parameters=DEFAULT_BUDGET_FACTOR * host)
    assert Coverage.of(packet).keys["run.budgets"] == 1.0

    loop = wired()
    bound = growing(loop, ["stem", "a", "b"], max_living_seeds=1, parameter_budget=500)
    packet = Probe(loop.model, loop.optimizer, loop.validation[0], grower=bound).end_epoch()
    assert packet.budgets == Budgets(living_seeds=1, parameters=500)


def test_a_seeds_activity_is_its_change_over_what_it_was():
    loop = wired()
    grower = growing(loop, ["stem", "a", "b"])
    probe = Probe(loop.model, loop.optimizer, loop.validation[0], grower=grower)
    known = 0
    for _ in range(5):
        (slot, *_) = getattr(loop.model, GROWTH).slots()
        before = {name: p.detach().clone() for name, p in slot.named().items()}
        loop.epoch()
        grower.end_epoch()
        packet = probe.end_epoch()
        if before and packet.seeds[0].activity_level is not None:
            changes = [p.detach() - before[name] for name, p in slot.named().items()]
            norms = (torch.cat([t.flatten() for t in of]).norm() for of in (changes, before.values()))
            assert packet.seeds[0].activity_level == pytest.approx((next(norms) / next(norms)).item(), rel=1e-5)
            known += 1
    assert known >= 2


def test_a_grower_and_its_probe_change_no_bit_of_each_other():
    finals = []
    for watched in (False, True):
        loop = wired()
        grower = growing(loop, ["stem", "a", "b"])
        probe = Probe(loop.model, loop.optimizer, loop.validation[0], grower=grower) if watched else None
        for _ in range(8):
            loop.epoch()
            grower.end_epoch()
            if probe is not None:
                probe.end_epoch()
        finals.append(bits(loop))
    assert all(map(torch.equal, *finals))


def test_what_it_declares_it_measures():
    assert set(DECLARED) | set(DECLARED_OF_GROWERS) <= set(KEYS)
    assert len(set(DECLARED + DECLARED_OF_GROWERS)) == len(DECLARED + DECLARED_OF_GROWERS)
    assert {*DECLARED, *DECLARED_ON_CUDA, UTILISATION} & read_keys() == PROBE, "as docs/inputs.md says"
    assert set(DECLARED_OF_GROWERS) & read_keys() == GROWER


def test_inputs_that_the_model_does_not_take_are_refused():
    loop = wired()
    with pytest.raises(LiveError, match="the model does not run on the probe's inputs: RuntimeError"):
        Probe(loop.model, loop.optimizer, torch.zeros(4, 3))
    assert not loop.optimizer._optimizer_step_pre_hooks


def test_what_is_no_optimizer_or_no_plain_model_is_refused():
    loop = wired()
    with pytest.raises(LiveError, match=r"must be a torch.optim.Optimizer, got a list"):
        Probe(loop.model, [], loop.validation[0])
    with pytest.raises(
        LiveError, match=r"the model cannot be measured: nn.DataParallel .* give the probe .* its .module"
    ):
        Probe(nn.DataParallel(loop.model), loop.optimizer, loop.validation[0])
    with pytest.raises(LiveError, match=r"the module '1' is compiled already, .* make the probe first"):
        Probe(nn.Sequential(loop.model, torch.compile(nn.Identity())), loop.optimizer, loop.validation[0])


def test_an_accuracy_that_is_no_percentage_is_refused_and_the_call_can_be_repeated():
    loop = wired()
    probe = Probe(loop.model, loop.optimizer, loop.validation[0])
    loop.epoch()
    with pytest.raises(LiveError, match=r"accuracy of 140: it must be in percent"):
        probe.end_epoch(validation_accuracy=140.0)
    packet = probe.end_epoch(validation_loss=1.0, validation_accuracy=100.0001)
    assert (packet.epoch, packet.validation_accuracy) == (1, 100.0), "means of percentages are rounded"
