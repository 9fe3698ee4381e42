"""What is grown lives where its host lives: nothing is left on the CPU, and what a user has there is as it was."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F

from envs.vocabulary import Blueprint
from esper_ray.live import rebuild
from esper_ray.live.hardware import HardwareMeter
from esper_ray.live.probe import Probe
from tests.devices import DEVICES, GPU
from tests.envs.helpers import advance, germinate
from tests.envs.live.loops import Script
from tests.esper_ray.live.models import (
    ARCHITECTURES,
    Encoder,
    LeNet,
    Loop,
    growing,
    images,
    places_of,
    schedule,
    tokens,
)

torch.set_num_threads(1)


class Incubating(Script):
    """Plants in every slot, and waits."""

    def __init__(self, slots):
        planted = {slot: germinate(slot, Blueprint.ATTENTION) for slot in range(slots)}
        super().__init__(planted | {slots + slot: advance(slot) for slot in range(slots)}, slots, 24)


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def _train(loop, grower, epochs):
    for _ in range(epochs):
        loop.epoch()
        grower.end_epoch()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_host_grows_is_resumed_and_is_rebuilt_on_its_device(name, device):
    """Kept states are read back onto the device, as users do."""
    model, data, slots = ARCHITECTURES[name]
    loop, again = Loop(model, data, device=device), Loop(model, data, device=device)
    plan = schedule(len(places_of(loop, slots)), epochs=24)
    grower, resumed = growing(loop, slots, plan), growing(again, slots, plan)
    _train(loop, grower, 6)
    buffer = io.BytesIO()
    torch.save([grower.state_dict(), loop.model.state_dict(), loop.optimizer.state_dict()], buffer)
    buffer.seek(0)
    parts = (resumed, again.model, again.optimizer)
    for part, state in zip(parts, torch.load(buffer, map_location=device), strict=True):
        part.load_state_dict(state)
    for which, their_grower in ((loop, grower), (again, resumed)):
        torch.manual_seed(3)  # for dropout
        _train(which, their_grower, 10)
    assert "fossilized" in " ".join(filter(None, grower.decision.slots.values()))
    assert str(grower.decision) == str(resumed.decision)
    for ours, theirs in zip(loop.model.parameters(), again.model.parameters(), strict=True):
        assert ours.device.type == theirs.device.type == device
        torch.testing.assert_close(ours, theirs)
    moments = [m for state in loop.optimizer.state.values() for m in state.values() if torch.is_tensor(m) and m.dim()]
    assert {moment.device.type for moment in moments} == {device}

    fresh = rebuild(model().to(device), grower.commit().card)
    fresh.load_state_dict(loop.model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(loop.example), loop.model.eval()(loop.example))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["LeNet", "residual", "TransformerEncoder"])
def test_growing_leaves_generators_and_an_untouched_twin_as_they_were(name, device):
    """Seeds incubate; dropout draws from the device's generator all the while."""
    model, data, slots = ARCHITECTURES[name]
    ends = []
    for grows in (False, True):
        loop = Loop(model, data, device=device)
        own = dict(loop.model.named_parameters())
        if grows:
            grower = growing(loop, slots, Incubating(len(places_of(loop, slots))))
        torch.manual_seed(5)
        for _ in range(10):
            loop.epoch()
            if grows:
                grower.end_epoch()
        state = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
        ends.append(([parameter.detach() for parameter in own.values()], state))
    assert "training" in " ".join(filter(None, grower.decision.slots.values()))
    (plain, generator), (host, their_generator) = ends
    assert torch.equal(generator, their_generator)
    assert all(map(torch.equal, plain, host))


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_fused_optimiser_under_autocast_and_a_scaler(dtype, device):
    fused = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True)  # noqa: E731
    loop = Loop(LeNet, images, fused, device=device)
    grower = growing(loop, ["c1", "c2"])
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)
    x, y = loop.train_set
    for _ in range(16):
        for index in torch.arange(len(y)).split(16):
            loop.optimizer.zero_grad()
            with torch.autocast(device, dtype):
                loss = F.cross_entropy(loop.model(x[index]), y[index])
            scaler.scale(loss).backward()
            scaler.unscale_(loop.optimizer)
            torch.nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
            scaler.step(loop.optimizer)
            scaler.update()
        grower.end_epoch()
    assert "fossilized" in " ".join(filter(None, grower.decision.slots.values()))
    assert all(parameter.isfinite().all() for parameter in loop.model.parameters())
    assert loop.evaluate()[0] < 1.3


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize(
    ("model", "data", "slots"), [(LeNet, images, ["c1", "c2"]), (Encoder, tokens, ["encoder.layers.0"])]
)
def test_what_a_compiler_makes_of_it_trains_as_it_does_without(model, data, slots, device):
    """With torch's own compiler for the device, through every stage of a seed."""
    torch._dynamo.reset()
    losses = []
    for compiles in (False, True):
        loop = Loop(model, data, device=device)
        for module in loop.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # a compiler draws other numbers
        grower = growing(loop, slots)
        if compiles:
            loop.model = torch.compile(loop.model)
        _train(loop, grower, 14)
        assert "fossilized" in " ".join(filter(None, grower.decision.slots.values()))
        losses.append(loop.evaluate()[0])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("device", [GPU])
def test_a_probe_measures_the_device(device):
    loop = Loop(LeNet, images, device=device)
    grower = growing(loop, ["c1", "c2"])
    probe = Probe(loop.model, loop.optimizer, loop.example, grower=grower)
    loop.epoch()
    grower.end_epoch()
    packet = probe.end_epoch()
    assert packet.hardware.device == device
    described, measured = (getattr(HardwareMeter(), name)(torch.device(device)) for name in ("describe", "measure"))
    assert described.devices >= 1
    assert 0.0 < measured["gpu_mem_free_gb"] <= described.device_memory_gb
    assert 0.0 <= measured.get("gpu_util_percent", 0.0) <= 100.0


@pytest.mark.parametrize("device", [GPU])
def test_a_copy_on_the_cpu_answers_as_the_model(device):
    loop = Loop(LeNet, images, device=device)
    _train(loop, growing(loop, ["c1", "c2"]), 8)
    with torch.no_grad():
        theirs = copy.deepcopy(loop.model).cpu().eval()(loop.example.cpu())
        torch.testing.assert_close(theirs, loop.model.eval()(loop.example).cpu(), rtol=1e-4, atol=1e-5)
