"""Networks of all sorts grow, keep what they were, and can be committed, copied, rebuilt and loaded."""

import copy
import io
import pickle

import pytest
import torch

from envs.blueprints import blueprints_for
from esper_ray.live import rebuild
from tests.esper_ray.live.models import ARCHITECTURES, Loop, growing, places_of, schedule

torch.set_num_threads(1)
EPOCHS = 22


def planned(name):
    """A network under a schedule that plants the cheapest seed in every slot."""
    model, data, slots = ARCHITECTURES[name]
    loop = Loop(model, data)
    keys = list(loop.model.state_dict())
    policy = schedule(len(places_of(loop, slots)), _cheap(loop, slots), epochs=EPOCHS)
    grower = growing(loop, slots, policy, EPOCHS, counterfactual_interval=3)
    assert list(loop.model.state_dict()) == keys
    return loop, grower


def grown(name):
    loop, grower = planned(name)
    for _ in range(EPOCHS):
        loop.epoch()
        grower.end_epoch()
    return loop, grower


def _cheap(loop, slots):
    kind = places_of(loop, slots)[0].kind
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
    loop, grower = planned(name)
    stages = set()
    for epoch in range(EPOCHS):
        loop.epoch()
        if epoch % 3 == 2:
            stages |= {state.split()[1] for state in grower.decision.slots.values() if " " in state}
            twins = [copy.deepcopy(loop.model), pickle.loads(pickle.dumps(loop.model))]
            same_outputs(loop, twins)
            own = tensors_of(loop.model)
            frozen = [[tensor.clone() for tensor in twin.state_dict().values()] for twin in twins]
            loop.epoch()
            for twin, values in zip(twins, frozen, strict=True):
                assert not {id(tensor) for tensor in own} & {id(tensor) for tensor in tensors_of(twin)}
                assert all(map(torch.equal, values, twin.state_dict().values()))
        grower.end_epoch()
    assert {"training", "blending", "fossilized"} <= stages


def same_outputs(loop, twins):
    x = loop.validation[0]
    loop.model.eval()
    for twin in twins:
        assert torch.equal(twin.eval()(x), loop.model(x))
    loop.model.train()


def tensors_of(model):
    """Hidden parameters of seeds included."""
    hidden = [tensor for slot in model.growth.slots() for tensor in slot.named().values()]
    return [*model.parameters(), *model.buffers(), *hidden]
