"""What a training loop may have beside a model and an optimiser: growth goes along with it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from envs.blueprints import blueprints_for
from envs.vocabulary import Blueprint, GerminationStyle
from esper_ray.live.probe import Probe
from tests.esper_ray.live.models import ARCHITECTURES, LeNet, Loop, growing, images, places_of, schedule, tokens

torch.set_num_threads(1)
IMAGE_SEEDS = [kind for kind in blueprints_for("cnn") if kind is not Blueprint.CONV_LADDER]


def stages(grower):
    return [state.split()[1] if " " in state else state for state in grower.decision.slots.values()]


# ---------------------------------------------------------------------- compile and export
@pytest.mark.parametrize("probed", [False, True], ids=["", "beside a probe"])
@pytest.mark.parametrize("name", ["residual", "TransformerEncoder"])
def test_compiling_twice_per_change_of_structure_and_never_for_alpha(name, probed):
    """Counted with a backend that needs no compiler, in training and in evaluation."""
    torch._dynamo.reset()  # its limit on compilations is the process's
    loop = Loop(*ARCHITECTURES[name][:2])
    grower = growing(loop, ["0"] if name == "residual" else ["encoder.layers.0"], counterfactual_interval=1)
    probe = Probe(loop.model, loop.optimizer, loop.example, grower=grower) if probed else None
    counter = CompileCounter()
    plain, loop.model = loop.model, torch.compile(loop.model, backend=counter, fullgraph=True)
    structures, forms = 0, None
    for _ in range(16):
        (slot,) = plain.growth.slots()
        form = slot.seed_kind, slot.incubating, slot.attached
        structures, forms = structures + (form != forms), form
        loop.epoch()
        grower.end_epoch()
        if probe is not None:
            probe.end_epoch()
    assert stages(grower) == ["fossilized"]
    assert structures == 4  # empty, TRAINING, BLENDING, HOLDING and FOSSILIZED
    assert counter.frame_count <= 2 * structures
    with torch.no_grad():
        x = loop.validation[0]
        torch.testing.assert_close(loop.model.eval()(x), plain.eval()(x))


def test_what_is_compiled_trains_as_what_is_not():
    plain, compiled = (Loop(LeNet, images) for _ in range(2))
    growers = [growing(loop, ["c1", "c2"]) for loop in (plain, compiled)]
    compiled.model = torch.compile(compiled.model, backend="eager")
    for _ in range(12):
        for loop, grower in zip((plain, compiled), growers, strict=True):
            loop.epoch()
            grower.end_epoch()
        assert growers[0].decision.slots == growers[1].decision.slots
    for ours, theirs in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def exported(loop):
    x = loop.validation[0]
    batch = torch.export.Dim("batch", min=2, max=512)
    return torch.export.export(loop.model.eval(), (x[:4],), dynamic_shapes=({0: batch},)).module()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_committed_is_exported_with_a_dynamic_batch(name):
    model, data, slots = ARCHITECTURES[name]
    loop = Loop(model, data)
    kind = Blueprint.BOTTLENECK if data is images and name != "tuples" else Blueprint.MLP_SMALL
    grower = growing(loop, slots, schedule(len(places_of(loop, slots)), kind, GerminationStyle.GATED_GATE))
    for _ in range(20):
        loop.epoch()
        grower.end_epoch()
    assert grower.commit().kept
    program, x = exported(loop), loop.validation[0]
    for size in (2, 7, 32):
        torch.testing.assert_close(program(x[:size]), loop.model(x[:size]))


@pytest.mark.parametrize("kind", sorted({*IMAGE_SEEDS, *blueprints_for("transformer")}))
def test_every_blueprint_is_exported(kind):
    """CONV_LADDER exists with internal levels only: tests/envs/live has it."""
    name = "LeNet" if kind in IMAGE_SEEDS and kind is not Blueprint.NORM else "TransformerEncoder"
    model, data, slots = ARCHITECTURES[name]
    loop = Loop(model, data)
    grower = growing(loop, slots[:1], schedule(len(places_of(loop, slots[:1])), kind, GerminationStyle.LINEAR_MULTIPLY))
    for _ in range(14):
        loop.epoch()
        grower.end_epoch()
    assert grower.commit().kept
    x = loop.validation[0]
    torch.testing.assert_close(exported(loop)(x[:9]), loop.model(x[:9]))


# ---------------------------------------------------------------------- precision
@pytest.mark.parametrize("kind", IMAGE_SEEDS)
def test_mixed_precision_keeps_the_types_of_activations_and_parameters(kind):
    loop = Loop(LeNet, images)
    grower = growing(loop, ["c1"], schedule(1, kind))
    types = []
    loop.model.c1.register_forward_hook(lambda module, args, output: types.append(output.dtype))
    x, y = loop.train_set
    for _ in range(14):
        loop.optimizer.zero_grad()
        types.clear()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(loop.model(x), y)
        assert types == [torch.bfloat16]
        loss.backward()
        loop.optimizer.step()
        grower.end_epoch()
    assert stages(grower) == ["fossilized"]
    assert {parameter.dtype for parameter in loop.model.parameters()} == {torch.float32}
    assert all(parameter.isfinite().all() for parameter in loop.model.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_in_bfloat16_has_seeds_in_bfloat16(name):
    model, data, slots = ARCHITECTURES[name]
    loop = Loop(lambda: model().to(torch.bfloat16), data)
    if loop.train_set[0].is_floating_point():
        loop.train_set, loop.validation = ((x.to(torch.bfloat16), y) for x, y in (loop.train_set, loop.validation))
    grower = growing(loop, slots, schedule(len(places_of(loop, slots))))
    for _ in range(14):
        loop.epoch()
        grower.end_epoch()
    seeds = [parameter for slot in loop.model.growth.slots() for parameter in slot.named().values()]
    assert {parameter.dtype for parameter in seeds} == {torch.bfloat16}
    assert loop.model(loop.example).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["LeNet", "TransformerEncoder", "tuples"])
def test_a_model_in_float64_has_seeds_in_float64(name):
    model, data, slots = ARCHITECTURES[name]
    loop = Loop(lambda: model().double(), data)
    if loop.train_set[0].is_floating_point():
        loop.train_set, loop.validation = ((x.double(), y) for x, y in (loop.train_set, loop.validation))
    grower = growing(loop, slots, schedule(len(places_of(loop, slots)), style=GerminationStyle.GATED_GATE))
    for _ in range(14):
        loop.epoch()
        grower.end_epoch()
    assert "fossilized" in stages(grower)
    assert {parameter.dtype for parameter in loop.model.parameters()} == {torch.float64}


class Mixed(LeNet):
    """A part in half precision, whose last module has no parameters of its own."""

    def __init__(self):
        super().__init__()
        self.c2.to(torch.bfloat16)
        self.low, self.full = nn.Identity(), nn.Identity()

    def forward(self, x):
        x = F.avg_pool2d(self.c1(x).relu(), 2)
        x = F.avg_pool2d(self.low(self.c2(x.to(torch.bfloat16))).relu(), 2).flatten(1)
        return self.out(self.f2(self.full(self.f1(x.float())).relu()).relu())


@pytest.mark.parametrize(("slot", "dtype"), [("low", torch.bfloat16), ("full", torch.float32)])
def test_a_seed_has_the_type_of_what_it_sees(slot, dtype):
    loop = Loop(Mixed, images)
    grower = growing(loop, [slot])
    for _ in range(14):
        loop.epoch()
        grower.end_epoch()
    assert "fossilized" in stages(grower)
    assert {parameter.dtype for parameter in loop.model.growth.parameters()} == {dtype}


def test_an_overflow_in_a_hidden_seed_stops_nothing():
    """A scaler skips steps for what it sees; a loop that clears the model's gradients never clears a hidden one."""
    loop = Loop(LeNet, images)
    grower, scaler = growing(loop, ["c1"]), torch.amp.GradScaler("cpu", init_scale=2.0)
    x, y = loop.train_set
    for _ in range(4):
        loop.epoch()
        grower.end_epoch()
    (slot,) = loop.model.growth.slots()
    assert slot.incubating
    delta = slot._delta

    def overflowing(*args):
        result = delta(*args)
        result.register_hook(lambda gradient: gradient * torch.inf)
        return result

    for overflows in (True, False, False):
        before = [parameter.detach().clone() for parameter in loop.model.parameters()]
        hidden = [parameter.detach().clone() for parameter in slot.named().values()]
        loop.model.zero_grad()
        slot._delta = overflowing if overflows else delta
        scaler.scale(F.cross_entropy(loop.model(x), y)).backward()
        scaler.step(loop.optimizer)
        scaler.update()
        assert not all(map(torch.equal, before, loop.model.parameters())), "the host takes every step"
        stood = all(map(torch.equal, hidden, slot.named().values()))
        assert stood == overflows
    grower.end_epoch()


def test_functional_transforms_see_through_incubation():
    loop = Loop(LeNet, images)
    grower = growing(loop, ["c1"])
    for _ in range(4):
        loop.epoch()
        grower.end_epoch()
    assert stages(grower) == ["training"]
    x, y = loop.train_set
    names = dict(loop.model.named_parameters())

    def loss(parameters):
        return F.cross_entropy(torch.func.functional_call(loop.model, parameters, (x,)), y)

    loop.model.zero_grad()
    gradients = torch.func.grad(loss)({name: parameter.detach() for name, parameter in names.items()})
    loss(names).backward()
    for name, parameter in names.items():
        torch.testing.assert_close(gradients[name], parameter.grad)


def test_a_fused_optimiser_under_a_gradient_scaler_clips_as_without_one():
    """The gradients that it sees are too large by the scale; thresholds follow."""
    ends = []
    for scale in (1.0, 2.0**12):
        loop = Loop(LeNet, images, lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True))
        grower, scaler = growing(loop, ["c1", "c2"]), torch.amp.GradScaler("cpu", init_scale=scale)
        x, y = loop.train_set
        for _ in range(10):
            for index in torch.arange(len(y)).split(16):
                loop.optimizer.zero_grad()
                scaler.scale(F.cross_entropy(loop.model(x[index]), y[index])).backward()
                scaler.step(loop.optimizer)
                scaler.update()
            grower.end_epoch()
        ends.append([parameter.detach().clone() for parameter in loop.model.parameters()])
        assert "fossilized" in stages(grower) or "holding" in stages(grower)
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- ways of training
def test_accumulating_gradients_is_one_large_batch():
    ends = []
    for parts in (1, 4):
        loop = Loop(LeNet, images)
        grower = growing(loop, ["c1", "c2"])
        x, y = loop.train_set
        for _ in range(12):
            loop.optimizer.zero_grad()
            for index in torch.arange(len(y)).tensor_split(parts):
                (F.cross_entropy(loop.model(x[index]), y[index]) / parts).backward()
            loop.optimizer.step()
            grower.end_epoch()
        ends.append([parameter.detach().clone() for parameter in loop.model.parameters()])
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


class Checkpointed(nn.Module):
    """Recomputes what is around a slot, and what is in its module."""

    def __init__(self, recompute):
        super().__init__()
        self.inner, self.recompute = LeNet(), recompute

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False) if self.recompute else self.inner(x)


def test_checkpointing_changes_nothing():
    ends = []
    for recompute in (False, True):
        loop = Loop(lambda recompute=recompute: Checkpointed(recompute), images)
        grower = growing(loop, ["inner.c1", "inner.c2"])
        for _ in range(14):
            loop.epoch()
            grower.end_epoch()
        assert "fossilized" in stages(grower)
        ends.append([parameter.detach().clone() for parameter in loop.model.parameters()])
    assert all(map(torch.equal, *ends))


class Tied(nn.Module):
    """Input and output embeddings are one parameter."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(11, 10), nn.Linear(10, 10), nn.Linear(10, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.mix(self.embed(x)).relu()).mean(1)


@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_an_average_of_a_whole_state_dict_keeps_the_kind_of_seed(decay):
    loop = Loop(LeNet, images)
    grower = growing(loop, ["c1", "c2"], schedule(2, Blueprint.BOTTLENECK))
    average = copy.deepcopy(loop.model)
    for _ in range(16):
        loop.epoch()
        grower.end_epoch()
        grower.mirror(average)
        with torch.no_grad():
            for ours, theirs in zip(average.state_dict().values(), loop.model.state_dict().values(), strict=True):
                ours.copy_(decay * ours + (1 - decay) * theirs)
    loaded = Loop(LeNet, images)
    growing(loaded, ["c1", "c2"])
    loaded.model.load_state_dict(average.state_dict())
    kinds = [slot.seed_kind for slot in loaded.model.growth.slots()]
    assert kinds == [Blueprint.BOTTLENECK] * 2


def test_tied_weights_stay_tied():
    loop = Loop(Tied, tokens)
    grower = growing(loop, ["mix"])
    for _ in range(14):
        loop.epoch()
        grower.end_epoch()
    report = grower.commit()
    assert loop.model.out.weight is loop.model.embed.weight
    assert report.host_parameters == 11 * 10 + 110


def test_channels_last_stays_channels_last():
    loop = Loop(lambda: ARCHITECTURES["residual"][0]().to(memory_format=torch.channels_last), images)
    loop.train_set, loop.validation = (
        (x.contiguous(memory_format=torch.channels_last), y) for x, y in (loop.train_set, loop.validation)
    )
    grower = growing(loop, ["0", "1.0"])
    seen = []
    loop.model[1][0].register_forward_hook(lambda module, args, output: seen.append(output.stride()))
    first = None
    for _ in range(16):
        loop.epoch()
        grower.end_epoch()
        first = first or seen[0]
    assert "fossilized" in stages(grower)
    assert {stride[1] for stride in seen} == {first[1]} == {1}


# ---------------------------------------------------------------------- averages
@pytest.mark.parametrize("averaging", [None, get_ema_multi_avg_fn(0.9)])
def test_an_average_follows_when_it_is_mirrored(averaging):
    loop = Loop(LeNet, images)
    grower = growing(loop, ["c1", "c2"])
    average = AveragedModel(loop.model, multi_avg_fn=averaging)
    untouched = copy.deepcopy(loop.model)
    before = {name: tensor.clone() for name, tensor in untouched.state_dict().items()}
    for _ in range(20):
        loop.epoch()
        grower.mirror(average)
        average.update_parameters(loop.model)
        grower.end_epoch()
        grower.mirror(average)
        assert list(average.module.state_dict()) == list(loop.model.state_dict())
    report = grower.commit()
    grower.mirror(average)
    assert report.kept
    assert list(average.module.state_dict()) == list(loop.model.state_dict())
    x = loop.validation[0]
    assert average(x).shape == loop.model(x).shape
    assert not torch.equal(average(x), loop.model(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in untouched.state_dict().items())
