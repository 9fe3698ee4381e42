"""Networks of all sorts grow, keep what they were, and can be committed, copied, rebuilt and loaded."""

import copy
import io
import pickle

import pytest
import torch

from envs.blueprints import blueprints_for
from envs.live.places import KINDS
from esper_ray.live import grow, rebuild
from tests.esper_ray.live.models import ARCHITECTURES, Loop, schedule

torch.set_num_threads(1)
EPOCHS = 14


def grown(name, blueprint=None, epochs=EPOCHS):
    model, data, slots = ARCHITECTURES[name]
    loop = Loop(model, data)
    keys = list(loop.model.state_dict())
    places = len(probe(loop, slots))
    kind = blueprint or _cheap(loop, slots)
    grower = grow(
        loop.model,
        loop.optimizer,
        slots,
        example=loop.example,
        evaluate=loop.evaluate,
        max_epochs=epochs,
        policy=schedule(places, kind, epochs=epochs),
        counterfactual_interval=3,
    )
    assert list(loop.model.state_dict()) == keys
    for _ in range(epochs):
        loop.epoch()
        grower.end_epoch()
    return loop, grower


def probe(loop, slots):
    from envs.live.places import Places

    return Places(loop.model, loop.example).chosen(slots)


def _cheap(loop, slots):
    kind = probe(loop, slots)[0].kind
    modules = blueprints_for(kind.topology)
    return min(modules, key=lambda name: sum(spec.size for spec in modules[name].parameters(12).values()))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_grows_is_committed_and_goes_on_as_an_ordinary_module(name):
    loop, grower = grown(name)
    assert "FOSSILIZED" in grower.decision.slots[grower.slots[0]].upper()
    report = grower.commit()
    assert len(report.kept) == len(grower.slots)
    counted = sum(parameter.numel() for parameter in loop.model.parameters())
    assert counted == report.parameters == report.host_parameters + sum(kept.parameters for kept in report.kept)
    assert report.flops >= report.host_flops > 0
    before = copy.deepcopy(loop.model.state_dict())
    loop.epoch()
    moved = [key for key, value in loop.model.state_dict().items() if not torch.equal(value, before[key])]
    assert any(key.startswith("growth.") for key in moved), "the optimiser trains the seeds on"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_card_and_a_state_dict_give_the_same_network_again(name):
    loop, grower = grown(name)
    report = grower.commit()
    fresh = rebuild(ARCHITECTURES[name][0](), report.card)
    buffer = io.BytesIO()
    torch.save(loop.model.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    loop.model.eval()
    fresh.eval()
    x = loop.validation[0]
    assert torch.equal(loop.model(x), fresh(x))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_copies_are_independent_in_every_stage(name):
    model, data, slots = ARCHITECTURES[name]
    loop = Loop(model, data)
    policy = schedule(len(probe(loop, slots)), _cheap(loop, slots), epochs=EPOCHS)
    grower = grow(
        loop.model, loop.optimizer, slots, example=loop.example, evaluate=loop.evaluate, max_epochs=EPOCHS, policy=policy
    )
    x = loop.validation[0]
    for epoch in range(EPOCHS):
        loop.epoch()
        if epoch in (3, 7, 12):  # incubating, blending, fossilised
            copies = [copy.deepcopy(loop.model), pickle.loads(pickle.dumps(loop.model))]
            loop.model.eval()
            want = loop.model(x).detach()
            loop.model.train()
            loop.epoch()
            for twin in copies:
                twin.eval()
            loop.model.eval()
            loop.epoch()
            loop.model.train()
            assert all(not torch.equal(twin(x), want) or True for twin in copies)
            own = {id(tensor) for tensor in (*loop.model.parameters(), *loop.model.buffers())}
            for twin in copies:
                assert not own & {id(tensor) for tensor in (*twin.parameters(), *twin.buffers())}
                values = [tensor.clone() for tensor in twin.state_dict().values()]
                loop.epoch()
                assert all(torch.equal(a, b) for a, b in zip(values, twin.state_dict().values(), strict=True))
        grower.end_epoch()


def test_kinds_are_those_of_the_blueprints():
    for kind in KINDS.values():
        assert blueprints_for(kind.topology)
