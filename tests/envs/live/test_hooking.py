"""A model in which nothing grows is called as if it had no slots; seeds come and go among the user's own hooks."""

import copy
import io
import pickle
from functools import partial
from types import MethodType

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from envs.live.places import Places
from envs.live.planting import graft
from envs.live.slot import Growth
from envs.vocabulary import AlphaAlgorithm, Blueprint
from tests.envs.helpers import advance, germinate
from tests.envs.live.loops import NETWORKS, Encoder, Loop, Script, prune, same

torch.set_num_threads(1)
KINDS = {"cnn": Blueprint.DEPTHWISE, "mlp": Blueprint.LORA}


def grafted(model, x, names):
    possible = Places(model, x)
    places = possible.chosen(names)
    growth = Growth(places, [possible.device(place) for place in places])
    graft(model, growth)
    return growth.slots()


def grow_in(slot, kind=Blueprint.LORA):
    """A seed that is seen."""
    slot.plant(kind)
    slot.set_form(AlphaAlgorithm.ADD, 1, np.random.default_rng(0))
    slot.set_stage(incubating=False, attached=True)
    slot.set_alpha(1.0)
    with torch.no_grad():
        for parameter in slot.named().values():
            parameter += 0.5


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 8)), torch.randn(4, 6)


def ways(model):
    """What ``nn.Module.__call__`` looks at to choose its way, for each module but the slots."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        name: ([list(vars(module)[kind].items()) for kind in kinds], vars(module).get("forward"))
        for name, module in model.named_modules()
        if not name.startswith("growth")
    }


# ---------------------------------------------------------------------- while nothing grows
@pytest.mark.parametrize("network", KINDS)
def test_modules_are_called_as_the_user_left_them_before_a_seed_and_after_it(network):
    loop = Loop(network)
    loop.model[0].register_forward_hook(lambda *_: None)
    before = ways(loop.model)
    kind = KINDS[network]
    plan = {0: germinate(0, kind), 1: advance(0), 3: germinate(1, kind), 4: advance(1), 6: prune(0)}
    grower = loop.grow(Script(plan))
    hooked = []
    for _ in range(7):
        loop.epoch()
        grower.end_epoch()
        now = ways(loop.model)
        hooked.append([name for name, way in now.items() if way != before[name]])
    first, second = NETWORKS[network][2]
    assert hooked == [[first], [first], [first], [first, second], [first, second], [second], [second]]
    grower.commit()
    for slot in getattr(loop.model, "growth", Growth([], [])).slots():
        slot.empty()
    assert ways(loop.model) == before


def test_torchs_own_encoder_layers_are_hooked_all_the_time_and_left_alone_in_the_end():
    """In evaluation they leave out their parts while nothing in them is hooked."""
    loop = Loop("transformer")
    before = ways(loop.model)
    grower = loop.grow(Script({}))
    assert [name for name, way in ways(loop.model).items() if way != before[name]] == list(loop.slots)
    grower.commit()
    assert ways(loop.model) == before


# ---------------------------------------------------------------------- among others
def test_a_seed_is_seen_by_hooks_that_came_after_the_slot_and_by_no_earlier_ones():
    model, x = mlp()
    module, raw, seen = model[0], [], []
    module.register_forward_hook(lambda module, args, output: raw.append(output))
    (slot,) = grafted(model, x, ["0"])
    raw.clear()  # of the example
    module.register_forward_hook(lambda module, args, output: seen.append(output))
    own = list(module._forward_hooks)
    for _ in range(2):
        model(x)
        assert same(raw[-1], seen[-1])
        grow_in(slot)
        model(x)
        assert same(raw[-1], raw[0])
        assert not torch.allclose(seen[-1], raw[-1])
        slot.empty()
        assert list(module._forward_hooks) == own


def test_the_users_hooks_keep_their_order():
    model, x = mlp()
    module = model[0]
    earlier = [module.register_forward_hook(lambda *_: None).id for _ in range(2)]
    (slot,) = grafted(model, x, ["0"])
    later = [module.register_forward_hook(lambda *_: None, prepend=number == 2).id for number in range(3)]
    own = [later[2], *earlier, *later[:2]]
    assert list(module._forward_hooks) == own
    grow_in(slot)
    numbers = list(module._forward_hooks)
    assert numbers[3] not in own
    assert numbers == [*own[:3], numbers[3], *own[3:]]


def test_a_forward_of_the_modules_own_is_the_same_afterwards():
    model, x = mlp()
    own = model[0].forward = lambda x: nn.Linear.forward(model[0], x) + 3.0
    (slot,) = grafted(model, x, ["0"])
    expected = model[0](x)
    grow_in(slot)
    assert not torch.allclose(model[0](x), expected)
    assert same(model[0].forward(x), own(x))
    slot.empty()
    assert model[0].forward is own


def copied(model):
    return copy.deepcopy(model)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copying", [copied, pickled, saved])
@pytest.mark.parametrize("growing", [False, True])
def test_a_copy_grows_by_itself(copying, growing):
    model, x = mlp()
    (slot,) = grafted(model, x, ["0"])
    plain = model(x)
    if growing:
        grow_in(slot)
    before = model(x)
    other = copying(model)
    assert same(other(x), before)
    (theirs,) = other.growth.slots()
    other[0].register_forward_hook(lambda *_: None)
    theirs.empty()
    assert "forward" not in vars(other[0])
    assert same(other(x), plain)
    assert same(model(x), before)
    grow_in(theirs)
    assert len(other[0]._forward_hooks) == 2
    assert not torch.allclose(other(x), plain)
    assert same(model(x), before)
    with torch.no_grad():
        other[0].weight.zero_()
    assert same(model(x), before)
    slot.empty()
    assert same(model(x), plain)
    assert "forward" in vars(other[0])


# ---------------------------------------------------------------------- compiled
def forward_of_a_class(module):
    """The usual one."""


def method(module):
    module.forward = MethodType(lambda module, x: nn.Linear.forward(module, x) * 2.0, module)


def function(module):
    forward = module.forward
    module.forward = lambda x: forward(x) * 2.0


def a_partial(module):
    module.forward = partial(nn.Linear.forward, module)


def whole(model, backend):
    return torch.compile(model, backend=backend, fullgraph=True)


def in_place(model, backend):
    model[0].compile(backend=backend)  # torch compiles no frames of its own by themselves, unless they are hooked
    return model


def within_a_function(model, backend):
    return torch.compile(lambda x: model(x) + 0.0, backend=backend, fullgraph=True)


WAYS_TO_COMPILE = [(forward_of_a_class, way) for way in (whole, in_place, within_a_function)]
OWN_FORWARDS = [(forward, whole) for forward in (method, function, a_partial)]


@pytest.mark.parametrize(("forward", "compiling"), WAYS_TO_COMPILE + OWN_FORWARDS)
def test_compiled_code_sees_seeds_come_and_go_and_is_compiled_once_for_each(forward, compiling):
    torch._dynamo.reset()
    model, x = mlp()
    (slot,) = grafted(model, x, ["0"])
    forward(model[0])  # someone has set it since
    counter = CompileCounter()
    compiled, compilations = compiling(model, counter), []
    with torch.no_grad():
        plain = compiled(x)
        for _ in range(2):
            grow_in(slot)
            with torch.compiler.set_stance("force_eager"):
                expected = model(x)
            torch.testing.assert_close(compiled(x), expected)
            assert not torch.allclose(expected, plain)
            compilations.append(counter.frame_count)
            slot.empty()
            torch.testing.assert_close(compiled(x), plain)
    assert compilations == [counter.frame_count] * 2
    assert counter.frame_count <= 2


@pytest.mark.parametrize("part", ["encoder.layers.0", "encoder.layers.0.linear1", "encoder.layers.1.norm2"])
@pytest.mark.parametrize("training", [False, True])
def test_compiled_encoder_layers_see_seeds_in_their_parts(part, training):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Encoder(), torch.randint(0, 11, (4, 5))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    (slot,) = grafted(model, x, [part])
    model.train(training)
    compiled = torch.compile(model, backend="eager")
    with torch.set_grad_enabled(training):
        plain = compiled(x)
        grow_in(slot, Blueprint.MLP_SMALL)
        seen = compiled(x)
        torch.testing.assert_close(seen, model(x))
        assert not torch.allclose(seen, plain)
        slot.empty()
        torch.testing.assert_close(compiled(x), plain)
