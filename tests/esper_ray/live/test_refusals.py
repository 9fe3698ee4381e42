"""Whatever cannot be grown is refused with one sentence at once, and the user's model is as it was."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from envs.slots import SlotConfig
from envs.vocabulary import Blueprint
from esper_ray.errors import UserError
from esper_ray.live import LiveError, candidates, grow, rebuild
from policies.schedule import GrowthPlan, GrowthSchedule
from policies.scripted import FixedSchedule, NeverGrow
from tests.esper_ray.live.models import Encoder, LeNet, Loop, images, same_state, schedule, state_of, tokens

torch.set_num_threads(1)


class Odd(nn.Module):
    """Modules that are awkward to grow on."""

    def __init__(self):
        super().__init__()
        self.conv, self.unused = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(2, 2)
        self.twice = nn.Linear(6, 6)
        self.lines, self.after_lines, self.after_maps = nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.GELU()
        self.last, self.other = nn.Linear(6, 6), nn.Linear(6, 4)
        self.alias = self.other
        self.maps = nn.LayerNorm(6)
        self.choice = Choice()
        self.pairs = nn.Identity()

    def forward(self, x):
        x = self.maps(self.conv(x).permute(0, 2, 3, 1)[:, :13])  # features last
        x = self.after_maps(x)
        self.after_lines(self.lines(x[:, 0, :, 0].unsqueeze(1)))
        x = self.twice(self.twice(x.mean((1, 2))))
        self.choice(x)
        self.pairs(x.unsqueeze(1).unsqueeze(1).unsqueeze(1))
        return self.other(self.last(x))


class Choice(nn.Module):
    def forward(self, x):
        return x.argmax(1)


class Wrapping(torch.optim.Optimizer):
    def __init__(self, model):
        self.optimizer = torch.optim.SGD(model.parameters())


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.out = nn.LazyConv2d(6, 3), nn.LazyLinear(4)

    def forward(self, x):
        return self.out(self.c1(x).mean((2, 3)))


def test_lazy_modules_are_run_first():
    model, x = Lazy(), torch.zeros(2, 1, 8, 8)
    with pytest.raises(LiveError, match=r"'c1.weight' has no shape yet: run the model once"):
        candidates(model, x)
    assert isinstance(model.c1, nn.LazyConv2d)


GOOD = {"slots": ["c1"], "max_epochs": 12, "policy": "heuristic"}


def refused(match, model=LeNet, data=images, optimizer=None, error=LiveError, wrap=None, build=None, **changes):
    """What ``grow`` says, and that it left model and optimiser as they were."""
    loop = Loop(model, data)
    built = loop.optimizer if build is None else build(loop.model)
    given = loop.model if wrap is None else wrap(loop.model)
    before = state_of(loop.model, loop.optimizer)
    keywords = {"example": loop.example, "evaluate": loop.evaluate} | GOOD | changes
    slots = keywords.pop("slots")
    with pytest.raises(error, match=match) as caught:
        grow(given, built, slots, **keywords)
    assert same_state(before, state_of(loop.model, loop.optimizer))
    return str(caught.value)


@pytest.mark.parametrize(
    ("match", "changes"),
    [
        (
            r"no module is called 'c3'; slots can be\n  c1  an image of width 6, seeds from \d+ parameters",
            {"slots": ["c3"]},
        ),
        (r"name the slots.*this model has\n  c1", {"slots": None}),
        ("must be of one kind, but .*'c1' gives images.*'f1' gives vectors", {"slots": ["c1", "f1"]}),
        ("at least 12, got 11", {"max_epochs": 11}),
        ("at least 12, got 20.0", {"max_epochs": 20.0}),
        ("batch of at least 2 samples.*got 1", {"example": torch.zeros(1, 1, 16, 16)}),
        ("must be a tensor, or a tuple or dict", {"example": {"x": 3}}),
        ("does not run on the example: RuntimeError", {"example": torch.zeros(2, 3, 16, 16)}),
        ("does not run on the example: TypeError", {"example": {"pixels": torch.zeros(2, 1, 16, 16)}}),
        (r"evaluate\(\) raised ZeroDivisionError: division by zero", {"evaluate": lambda: 1 / 0}),
        (r"evaluate\(\) returned a Tensor: two numbers are needed", {"evaluate": lambda: torch.zeros(2)}),
        (r"evaluate\(\) returned 3 values: two numbers", {"evaluate": lambda: (0.1, 90.0, 3)}),
        (r"evaluate\(\) returned .*: two numbers", {"evaluate": lambda: (0.1, "90 %")}),
        ("in percent, from 0 to 100", {"evaluate": lambda: (0.1, 101.0)}),
        ("no policy 'nobody': give the directory of an export", {"policy": "nobody"}),
        ("above 0 and at most 1, got 2", {"lr_scale": 2.0}),
        ("above 0 and at most 1, got 'a'", {"lr_scale": "a"}),
        ("chance must be .* in percent.*got 101.0", {"chance": 101.0}),
        ("chance must be .* above 0.*got 0", {"chance": 0}),
        ("chance must be .* got '10 %'", {"chance": "10 %"}),
        ("seed must be a whole number from 0 .*got 'a'", {"seed": "a"}),
        ("seed must be a whole number from 0 .*got -1", {"seed": -1}),
        ("policy must be a name, a path, or .*got a value of type int, which has no slot_config", {"policy": 3}),
        ("policy must be .*got the class NeverGrow itself", {"policy": NeverGrow}),
        ("controller must be .*got a value of type str, which has no attend", {"controller": "c", "policy": None}),
        ("writer must be .*got a value of type object, which has no add_scalar", {"writer": object()}),
        ("slots must be a name or a list of names, got a value of type Conv2d", {"slots": [nn.Conv2d(1, 1, 1)]}),
        ("without must be a name or a list of names, got a value of type int", {"without": 3}),
        ("contributions must be", {"contributions": "none"}),
        ("counterfactual_interval must be", {"counterfactual_interval": 0}),
        ("no kind of seed is called 'CONV'", {"without": ["CONV"]}),
        ("no kind of seed is called 'CONV'", {"without": "CONV"}),
        ("without= names every kind of seed that can grow on images", {"without": Blueprint.__members__}),
        ("parameter_budget", {"parameter_budget": -1}),
        (r"a parameter_budget of 0 lets nothing grow.*NORM, has up to 20 parameters", {"parameter_budget": 0}),
        (r"a parameter_budget of 19 lets nothing grow.*NORM, has up to 20 parameters", {"parameter_budget": 19}),
        ("max_living_seeds=0 lets nothing grow: allow at least 1", {"max_living_seeds": 0}),
        ("2 slots are more than the 1 that the policy was made for", {"slots": ["c1", "c2"], "policy": schedule(1)}),
    ],
)
def test_arguments(match, changes):
    refused(match, **changes)


@pytest.mark.parametrize(
    ("slot", "match"),
    [
        ("unused", "never called"),
        ("twice", "called 2 times"),
        ("alias", r"one module under several names \(other, alias\)"),
        ("maps", r"features on axis 3"),
        ("lines", r"features on axis 1"),
        ("after_lines", r"features on axis 1"),
        ("after_maps", r"features on axis 3"),
        ("choice", r"torch.int64 tensor"),
        ("pairs", r"shape \[3, 1, 1, 1, 6\]"),
    ],
)
def test_modules_that_are_no_slots(slot, match):
    refused(match, model=Odd, slots=[slot])
    loop = Loop(Odd, images)
    listed = [line.split()[0] for line in candidates(loop.model, loop.example).splitlines()]
    assert listed == ["conv", "last"]


def test_nested_tensors():
    class Padded(Encoder):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 24, batch_first=True), 2)

        def forward(self, tokens):
            mask = torch.zeros(tokens.shape, dtype=torch.bool)
            mask[0, -1] = True
            return self.out(self.encoder(self.embed(tokens), src_key_padding_mask=mask).mean(1))

    refused("nested", model=Padded, data=tokens, slots=["encoder.layers.0"])


@pytest.mark.parametrize(
    ("match", "build"),
    [
        ("LBFGS keeps", lambda model: torch.optim.LBFGS(model.parameters())),
        ("Muon takes matrices only", lambda model: torch.optim.Muon([model.f1.weight])),
        ("SparseAdam takes sparse", lambda model: torch.optim.SparseAdam(list(model.parameters()))),
        ("Wrapping wraps an optimizer and takes no hooks", lambda model: Wrapping(model)),
        ("none of the model's parameters", lambda model: torch.optim.SGD([nn.Parameter(torch.zeros(1))])),
        ("must be a torch.optim.Optimizer, got a list", lambda model: list(model.parameters())),
    ],
)
def test_optimisers(match, build):
    refused(match, build=build)


def compiled_in_place(model):
    model.c1.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("match", "wrap"),
    [
        ("DataParallel copies the model", nn.DataParallel),
        ("compiled already", lambda model: torch.compile(model, backend="eager")),
        ("'c1' is compiled already", compiled_in_place),
        ("must be a torch.nn.Module, got a function", lambda model: lambda x: model(x)),
    ],
)
def test_wrapped_models(match, wrap):
    refused(match, wrap=wrap)


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_model_of_several_processes(process_group, monkeypatch):
    refused("DistributedDataParallel fixes", wrap=nn.parallel.DistributedDataParallel)
    loop = Loop(LeNet, images)
    grower = grow(loop.model, loop.optimizer, ["c1"], example=loop.example, evaluate=loop.evaluate, **_rest())
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(LiveError, match="one of 2 that train together"):
        grower.end_epoch()
    refused("one of 2 that train together")


def _rest():
    return {name: value for name, value in GOOD.items() if name != "slots"}


def test_a_name_that_is_taken_and_a_model_that_has_grown():
    class Taken(LeNet):
        def __init__(self):
            super().__init__()
            self.growth = nn.Identity()

    refused("has an attribute 'growth'", model=Taken)
    loop = Loop(LeNet, images)
    keywords = {"example": loop.example, "evaluate": loop.evaluate} | _rest()
    grow(loop.model, loop.optimizer, ["c1"], **keywords)
    with pytest.raises(LiveError, match="grows already, or has grown"):
        grow(loop.model, loop.optimizer, ["c1"], **keywords)


def test_a_policy_that_breaks_leaves_nothing_behind():
    class Broken(type(schedule(1))):
        def get_action(self, *args, **kwargs):
            raise RuntimeError("broken policy")

    policy = schedule(1, epochs=12)
    policy.__class__ = Broken
    refused("broken policy", policy=policy, error=RuntimeError)


def test_schedules_that_do_not_fit(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text('{"schedule": [{"slot": 1}]}')
    said = refused("DEPTHWISE in slot 1 is planned, but slots are numbered from 0, and the last one is 0", policy=file)
    assert "NORM" not in said, "the kinds of seed are not what is wrong"
    file.write_text("{}")
    refused('no list "schedule"', policy=file, error=UserError)


def planned(*plans, slots=1, epochs=12):
    return FixedSchedule(SlotConfig.for_row(slots), epochs, GrowthSchedule(plans))


SEQUENCES = {"model": Encoder, "data": tokens, "slots": ["encoder.layers.*"]}
ON_SEQUENCES = "possible there are ATTENTION, NORM, LORA, LORA_LARGE, MLP_SMALL, MLP, FLEX_ATTENTION$"
NO_NORM = GrowthPlan(blueprint=Blueprint.NORM)
LATE = GrowthPlan(blueprint=Blueprint.NORM, epoch=12)


@pytest.mark.parametrize(
    ("match", "changes"),
    [
        (
            rf"fixed_schedule plans DEPTHWISE in slot 0 \('encoder.layers.0'\), where it cannot grow: {ON_SEQUENCES}",
            SEQUENCES | {"policy": "fixed_schedule"},
        ),
        (
            rf"plans CONV_LIGHT in slot 1 \('encoder.layers.1'\), where it cannot grow: {ON_SEQUENCES}",
            SEQUENCES | {"policy": planned(GrowthPlan(1, Blueprint.CONV_LIGHT), slots=2)},
        ),
        (
            r"plans NORM in slot 0 \('c1'\), where it cannot grow: possible there are CONV_LIGHT, ATTENTION, DEPTH",
            {"policy": planned(NO_NORM), "without": "NORM"},
        ),
        (
            r"plans DEPTHWISE in slot 0 \('c1'\), where it cannot grow: possible there are NORM$",
            {"policy": "fixed_schedule", "parameter_budget": 20},
        ),
        (r"plans NORM in slot 0 \('c1'\) at epoch 12, and the run of 12 epochs is over", {"policy": planned(LATE)}),
        (
            r"plans NORM in slot 1, but the model's slots, from 0 on, are 'c1'$",
            {"policy": planned(GrowthPlan(1, Blueprint.NORM), slots=2)},
        ),
        ("counts the epochs of a run of 30, and this one has 12", {"policy": schedule(1, epochs=30)}),
        (
            "has 2 schedules, one per host",
            {"policy": FixedSchedule(SlotConfig.for_row(1), 12, [GrowthSchedule()] * 2)},
        ),
    ],
)
def test_schedules_that_can_never_be_carried_out(match, changes):
    refused(match, **changes)


def test_the_last_plan_that_can_be_carried_out_is():
    loop, last = Loop(LeNet, images), GrowthPlan(blueprint=Blueprint.NORM, epoch=11)
    keywords = {"example": loop.example, "evaluate": loop.evaluate, "max_epochs": 12, "parameter_budget": 20}
    grower = grow(loop.model, loop.optimizer, ["c1"], policy=planned(last), without="LORA", **keywords)
    for _ in range(11):
        loop.epoch()
        grower.end_epoch()
    assert grower.decision.action.startswith("germinate norm in c1")


def test_a_misspelt_name_lists_a_screenful():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(256, 6), *(nn.Linear(6, 6) for _ in range(40)))

        def forward(self, x):
            return self.layers(x)

    said = refused(r"no module is called 'layer.30' \(close to it: layers.30, ", model=Deep, slots=["layer.30"])
    lines = said.splitlines()[1:]
    assert len(lines) == 21
    assert lines[-1] == "  and 23 more: candidates(model, example) lists all"
    loop = Loop(Deep, images)
    assert candidates(loop.model, loop.example).splitlines()[:20] == lines[:20]


def test_while_it_runs():
    """A failure in the middle loses nothing: the call can be repeated."""
    loop = Loop(LeNet, images)
    results = {"now": (0.5, 50.0)}

    def evaluate():
        result = results["now"]
        if isinstance(result, Exception):
            raise result
        return result

    keywords = {"example": loop.example, "evaluate": evaluate, "policy": schedule(1, epochs=12), "max_epochs": 12}
    grower = grow(loop.model, loop.optimizer, ["c1"], **keywords)
    for epoch in range(12):
        loop.epoch()
        before = state_of(loop.model, loop.optimizer)
        for wrong, match in ((ValueError("no disk"), "ValueError: no disk"), ((1.0,), "1 values"), (None, "NoneType")):
            results["now"] = wrong
            with pytest.raises(LiveError, match=match):
                grower.end_epoch()
            assert grower.epoch == epoch
            assert same_state(before, state_of(loop.model, loop.optimizer))
        with pytest.raises(LiveError, match="both the loss and the accuracy"):
            grower.end_epoch(0.5)
        results["now"] = (0.5, 50.0)
        assert "took no part" not in grower.end_epoch().note
    with pytest.raises(LiveError, match="all 12 epochs are over"):
        grower.end_epoch()
    assert grower.decision.slots["c1"].startswith("depthwise") or "norm" in grower.decision.slots["c1"]
    grower.commit()
    for call in (grower.commit, grower.end_epoch, grower.state_dict):
        with pytest.raises(LiveError, match="is committed"):
            call()


def test_a_width_that_changes_between_calls():
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = Cut(), nn.Linear(256, 4)

        def forward(self, x):
            h = self.inner(x.flatten(1))
            return self.out(nn.functional.pad(h, (0, 256 - h.shape[1])))

    class Cut(nn.Module):
        width = 256

        def forward(self, x):
            return x[:, : self.width]

    loop = Loop(Changing, images)
    keywords = {"example": loop.example, "evaluate": loop.evaluate, "max_epochs": 12}
    grower = grow(loop.model, loop.optimizer, ["inner"], policy=schedule(1, epochs=12), **keywords)
    for _ in range(4):
        loop.epoch()
        grower.end_epoch()
    loop.model.inner.width = 100
    with pytest.raises(LiveError, match=r"made for a vector of width 256, but its module now gives shape \[16, 100\]"):
        loop.epoch()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: {}, "no state of a grower"),
        (lambda state: state | {"slots": ["c1: image of width 8"]}, "its slots are"),
        (lambda state: state | {"max_epochs": 40}, "its max_epochs are 40, here 12"),
        (lambda state: state | {"policy": "another"}, "its policy are another"),
        (lambda state: state | {"watch": state["watch"] | {"steps": {}}}, "does not fit"),
    ],
)
def test_states_of_other_runs(change, match):
    loop = Loop(LeNet, images)
    keywords = {"example": loop.example, "evaluate": loop.evaluate, "policy": schedule(1, epochs=12), "max_epochs": 12}
    grower = grow(loop.model, loop.optimizer, ["c1"], **keywords)
    for _ in range(3):
        loop.epoch()
        grower.end_epoch()
    before = state_of(loop.model, loop.optimizer)
    with pytest.raises(LiveError, match=match):
        grower.load_state_dict(change(grower.state_dict()))
    assert same_state(before, state_of(loop.model, loop.optimizer))
    loop.epoch()
    grower.end_epoch()


def card_of(**changes):
    seed = {
        "slot": "c1",
        "kind": "image",
        "width": 6,
        "batch_axis": 0,
        "places": 64,
        "item": None,
        "dtype": "float32",
        "blueprint": "NORM",
        "algorithm": "ADD",
        "level": 0,
        "alpha": 1.0,
    }
    return {"format": "esper-ray growth 1", "seeds": [seed | changes]}


@pytest.mark.parametrize(
    ("card", "match"),
    [
        ({}, "a card is what Report.card gives"),
        ({"format": "esper-ray growth 1", "seeds": [{"slot": "c1"}]}, "no seed of a card: KeyError"),
        (card_of(slot="c9"), "no module 'c9'"),
        (card_of(width="8"), "width must be a whole number of at least 1, got '8'"),
        (card_of(level="a"), "level must be a whole number"),
        (card_of(item="a"), "item must be a whole number"),
        (card_of(alpha=1.5), "alpha must be from 0 to 1"),
        (card_of(dtype="load"), "no seed of a card"),
        (card_of(blueprint="LORA"), "on images no LORA grows"),
        ({"format": "esper-ray growth 1", "seeds": card_of()["seeds"] * 2}, "two seeds on one module"),
    ],
)
def test_cards_that_do_not_fit(card, match):
    model = LeNet()
    keys = list(model.state_dict())
    with pytest.raises(LiveError, match=match):
        rebuild(model, card)
    assert list(model.state_dict()) == keys


def test_copies_that_do_not_follow():
    loop, early = Loop(LeNet, images), LeNet()
    grower = grow(loop.model, loop.optimizer, ["c1"], example=loop.example, evaluate=loop.evaluate, **_rest())
    with pytest.raises(LiveError, match=r"copy the model after grow\(\)"):
        grower.mirror(early)
    other = Loop(LeNet, images)
    grow(other.model, other.optimizer, ["c2"], example=other.example, evaluate=other.evaluate, **_rest())
    with pytest.raises(LiveError, match="no slot 'c1'"):
        grower.mirror(other.model)


def test_importing_it_loads_no_ray():
    code = "import sys, esper_ray.live.probe; assert not [name for name in sys.modules if name.split('.')[0] == 'ray']"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
