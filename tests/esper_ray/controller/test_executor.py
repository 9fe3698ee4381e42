"""Commands are carried out as they say, or not at all; whoever trains never notices a bad one."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.alpha import ramp_value
from envs.slots import SlotConfig
from envs.vocabulary import ALPHA_TARGET_VALUES, BLENDING_METHODS, TEMPO_EPOCHS, Blueprint, SeedStage
from esper_ray.controller.commands import Blending, Expectation, Kind, Outcome, Reason, Refusal, RiskReport, Severity
from esper_ray.live import LiveError
from tests.envs.helpers import advance, fossilize, germinate, grow_inside, random_valid_action
from tests.envs.live.loops import Loop, Script, prune, same
from tests.esper_ray.controller.commanding import Commanded, commanded, expectation, pause, seed, slower

PLAN = {
    0: germinate(1, Blueprint.LORA),
    1: advance(1),
    2: germinate(0, Blueprint.MLP_SMALL, style=3),
    3: advance(0),
    4: advance(1),
    7: advance(1),
    8: fossilize(1),
    9: prune(0),
}


def test_a_run_by_commands_is_the_policys_run_bit_for_bit():
    plain, run = Commanded(), Commanded(plan=commanded(PLAN))
    plain.grower.commit()
    plain.grower = plain.loop.grow(Script(PLAN))
    for each in (plain, run):
        torch.manual_seed(0)
        each.run(12)
    assert same(run.loop.model.state_dict(), plain.loop.model.state_dict())
    assert same(run.loop.optimizer.state_dict(), plain.loop.optimizer.state_dict())
    assert [(result.outcome, result.epoch) for result in run.results] == [(Outcome.APPLIED, at) for at in PLAN]
    stages = [(result.stages_before["2"].name, result.stages_after["2"].name) for result in run.results]
    assert stages[0] == ("DORMANT", "GERMINATED")
    assert stages[1] == ("GERMINATED", "TRAINING")
    assert stages[4] == ("TRAINING", "BLENDING")
    assert stages[-2] == ("HOLDING", "FOSSILIZED")


def _expecting(**changes):
    def make(grower):
        held = expectation(grower, "2").model_dump()
        return seed(grower, prune(1), expects=Expectation(**held | changes))

    return make


def _another_seed(grower):
    return seed(grower, prune(1), expects=Expectation(epoch=5, slot="2", seed_id="2#7", stage=SeedStage.BLENDING))


def _another_slot(grower):
    command = seed(grower, prune(1))
    what = command.operation.model_copy(update={"slot": "9"})
    return seed(grower, operation=what, expects=Expectation(epoch=5, slot="9", stage=SeedStage.BLENDING))


BAD = {
    "another run": (lambda grower: seed(grower, prune(1), run_id="another"), Refusal.WRONG_RUN, "'another'"),
    "an epoch behind": (_expecting(epoch=4), Refusal.EPOCH_CHANGED, "expects 4 epochs, 5 are done"),
    "an epoch ahead": (_expecting(epoch=6), Refusal.EPOCH_CHANGED, "expects 6 epochs"),
    "no such slot": (_another_slot, Refusal.UNKNOWN_SLOT, "no slot '9', only 0, 2"),
    "another seed": (_another_seed, Refusal.SEED_CHANGED, "expects 2#7 in 2, there lives 2#1"),
    "a seed where none is": (_expecting(slot="2", seed_id="0#1"), Refusal.SEED_CHANGED, "0#1"),
    "another stage": (_expecting(stage=SeedStage.HOLDING), Refusal.STAGE_CHANGED, "HOLDING, it is BLENDING"),
    "no stage": (_expecting(stage=SeedStage.DORMANT, seed_id=None), Refusal.STAGE_CHANGED, "it is BLENDING"),
    "a closed op": (lambda grower: seed(grower, fossilize(1)), Refusal.NOT_ADMITTED, "FOSSILIZE is not possible now"),
    "another kind of host": (
        lambda grower: seed(grower, germinate(0, Blueprint.CONV_HEAVY)),
        Refusal.NOT_ADMITTED,
        "GERMINATE is not possible now",
    ),
    "an op of another world": (lambda grower: seed(grower, grow_inside(1)), Refusal.NOT_ADMITTED, "(op)"),
    "a blueprint of another world": (
        lambda grower: seed(grower, germinate(0, Blueprint.CONV_LADDER)),
        Refusal.NOT_ADMITTED,
        "(blueprint)",
    ),
    "too late": (
        lambda grower: seed(grower, prune(1), issued_at_ns=0, deadline_ms=999),
        Refusal.TOO_LATE,
        "1000 ms after it was issued, not 999",
    ),
}


@pytest.mark.parametrize(("bad", "reason", "detail"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused_and_changes_not_a_bit(bad, reason, detail):
    plans = commanded({at: action for at, action in PLAN.items() if at < 5})
    alone, run = Commanded(plan=plans), Commanded(plan=plans | {5: bad, 7: lambda grower: seed(grower, advance(1))})
    states = []
    for each in (alone, run):
        torch.manual_seed(0)
        states.append(each.run(6).state())
    assert same(*states)
    result = run.results[-1]
    assert (result.reason, result.epoch, result.stages_after) == (reason, 5, result.stages_before)
    assert result.outcome is (Outcome.EXPIRED if reason is Refusal.TOO_LATE else Outcome.REFUSED)
    assert detail in result.detail
    run.run(1)
    assert run.results[-1].outcome is Outcome.APPLIED
    assert run.results[-1].stages_after["2"] is SeedStage.HOLDING


def test_an_id_is_applied_once_also_by_whoever_goes_on():
    kept = []
    plan = commanded(PLAN) | {4: lambda grower: kept.append(seed(grower, advance(1))) or kept[0]}
    run = Commanded(plan=plan).run(4)
    state = copy.deepcopy(run.state() | {"grower": run.grower.state_dict()})
    again = Commanded(plan={5: lambda grower: kept[0]})
    again.grower.load_state_dict(state["grower"])
    again.loop.model.load_state_dict(state["model"])
    again.loop.optimizer.load_state_dict(state["optimizer"])
    run.plan[5] = again.plan[5]
    for each in (run, again):
        each.run(1)
        assert each.results[-1].reason is Refusal.ALREADY_APPLIED
    assert [command.command_id for command in kept] == [run.results[-2].command_id]


def test_a_run_by_commands_that_stops_and_goes_on_does_not_differ():
    plan = commanded(PLAN) | {5: slower, 6: pause}
    whole, states = Commanded(plan=plan, optimizer="AdamW"), []
    torch.manual_seed(0)
    for _ in range(12):
        state = whole.run(1).state() | {"everything": whole.grower.state_dict(), "chance": torch.get_rng_state()}
        states.append(copy.deepcopy(state))
    for stopped in (4, 5, 6, 8):
        part, state = Commanded(plan=plan, optimizer="AdamW"), copy.deepcopy(states[stopped - 1])
        part.grower.load_state_dict(state["everything"])
        part.loop.model.load_state_dict(state["model"])
        part.loop.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["chance"])
        part.run(12 - stopped)
        assert same(part.state(), whole.state())


@pytest.mark.parametrize("slack", [0, 1])
def test_a_host_may_be_ahead_by_the_slack_and_commands_wait_their_turn(slack):
    run = Commanded(plan=commanded({0: PLAN[0]}), slack_epochs=slack).run(1)
    run.executor.receive(seed(run.grower))
    run.executor.receive(seed(run.grower, advance(1)))
    run.run(1)
    assert len(run.results) == (2 if slack else 3)
    assert run.grower.reports()[1].stage is SeedStage.GERMINATED
    run.run(1)
    assert [result.outcome for result in run.results[1:]] == [
        Outcome.APPLIED if slack else Outcome.REFUSED,
        Outcome.REFUSED,
    ]
    assert run.results[-1].reason is Refusal.EPOCH_CHANGED


SHAPES = [
    *zip(BLENDING_METHODS, [(0.0, 1.0), (0.2, 0.7), (0.1, 0.5), (0.3, 1.0)], [2, 1, 2, 0], [2, 0, 1, 2], strict=True)
]


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(("method", "window", "tempo", "target"), SHAPES)
def test_a_seed_is_blended_in_as_commanded(method, window, tempo, target, early):
    blending = Blending(method=method, schedule_start=window[0], schedule_end=window[1])
    plan = {
        0: lambda grower: seed(
            grower, germinate(0, Blueprint.MLP, tempo=tempo, target=target), blending if early else None
        ),
        1: lambda grower: seed(grower, advance(0)),
        4: lambda grower: seed(grower, advance(0), None if early else blending),
    }
    run, epochs = Commanded(plan=plan).run(4), TEMPO_EPOCHS[tempo]
    alphas = []
    for _ in range(epochs):
        alphas.append(run.grower.reports()[0].alpha)
        run.run(1)
    shares = np.arange(1, epochs + 1) / epochs
    wanted = ALPHA_TARGET_VALUES[target] * ramp_value(BLENDING_METHODS.index(method), *window, shares)
    np.testing.assert_allclose(alphas, wanted, atol=1e-12)
    slot = run.loop.model.growth.slots()[0]
    assert float(slot.alpha) == pytest.approx(ALPHA_TARGET_VALUES[target])
    assert all(result.outcome is Outcome.APPLIED for result in run.results)


def test_how_a_seed_is_blended_in_is_not_said_too_late():
    plan = commanded(PLAN)
    plan[7] = lambda grower: seed(grower, advance(1), Blending(method="cosine"))
    run = Commanded(plan=plan).run(7)
    assert run.results[-1].reason is Refusal.NOT_ADMITTED
    assert run.grower.reports()[1].stage is SeedStage.BLENDING


@pytest.mark.parametrize("kind", [Kind.PAUSE, Kind.CIRCUIT_BREAKER])
def test_a_pause_lets_a_ramp_go_on_and_destroys_nothing(kind):
    plan = commanded({at: action for at, action in PLAN.items() if at < 5})
    alone = Commanded(plan=plan)
    paused = Commanded(plan=plan | {at: lambda grower: pause(grower, kind) for at in range(5, 10)})
    states = []
    for run in (alone, paused):
        torch.manual_seed(0)
        states.append(run.run(9).state())
    assert same(*states)
    assert paused.grower.reports()[1].alpha == 1.0
    assert "loss_delta" in paused.grower.decision.note
    assert [result.outcome for result in paused.results[-5:]] == [Outcome.APPLIED] * 5


# ---------------------------------------------------------------------- slower seeds
def _moves(run):
    """How a step moves every parameter, by name."""
    loop = run.loop
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    loop.optimizer.zero_grad()
    F.cross_entropy(loop.model(loop.x), loop.y).backward()
    loop.optimizer.step()
    return {name: value - before[name] for name, value in loop.model.state_dict().items()}


def _grown(optimizer, commands):
    """A run with two seeds, one of them blended in, that has trained the same whatever is commanded then."""
    run = Commanded(plan=commanded({at: action for at, action in PLAN.items() if at < 5}), optimizer=optimizer)
    torch.manual_seed(0)
    run.run(5)
    for command in commands:
        run.plan[run.grower.epoch + 1] = command
        run.grower.end_epoch()
    assert all(result.outcome is Outcome.APPLIED for result in run.results)
    return run


RATES = {
    "one": ([slower], 0.5),
    "two do not add up": ([slower, slower], 0.5),
    "the later one counts": ([slower, lambda grower: slower(grower, 0.25)], 0.25),
    "a pause does not end it": ([slower, pause], 0.5),
    "nor does what a signal stands against": (
        [slower, lambda grower: seed(grower, risk=RiskReport(severity=Severity.WARNING), reason=Reason.SEED_STUCK)],
        0.5,
    ),
    "what is clean ends it": ([slower, seed], 1.0),
}


@pytest.mark.parametrize(("commands", "factor"), RATES.values(), ids=RATES)
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_seeds_take_exactly_their_share_of_a_step_and_the_host_all_of_it(optimizer, commands, factor):
    usual, slowed = _grown(optimizer, [pause] * len(commands)), _grown(optimizer, commands)
    assert same(slowed.loop.model.state_dict(), usual.loop.model.state_dict())
    assert same(slowed.loop.optimizer.state_dict(), usual.loop.optimizer.state_dict())
    whole, part = _moves(usual), _moves(slowed)
    seeds = [name for name, _ in slowed.loop.model.growth.named_parameters(prefix="growth")]
    assert all((whole[name] != 0).any() for name in seeds)
    for name, move in whole.items():
        if name in seeds:
            torch.testing.assert_close(part[name], factor * move, rtol=1e-9, atol=1e-15)
        elif not name.startswith("growth."):
            assert torch.equal(part[name], move)


# ---------------------------------------------------------------------- whatever comes
BACKWARDS, FORWARDS = -(10**6), 10**6


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_whatever_comes_the_training_goes_on_and_every_command_has_one_result(chance):
    """Commands that fit and that do not, of every kind, several at a time, early and late, in any order."""
    rng, sent = np.random.default_rng(chance), []
    run = Commanded(slack_epochs=1)
    heads = SlotConfig.for_row(4, internal_levels=True).heads
    for _ in range(20):
        for _ in range(rng.integers(3)):
            commands = [*sent[-2:], pause(run.grower), slower(run.grower, rng.uniform(0.1, 1.0))]
            mask = run.grower.observe()["action_mask"][0]
            commands.append(seed(run.grower, random_valid_action(mask, run.grower.slot_config.heads, rng)))
            wild = [int(rng.integers(head.size)) for head in heads]
            wild[1] %= 2
            held = seed(run.grower, wild).expects
            epoch = max(0, held.epoch + int(rng.integers(-2, 3)))
            commands.append(seed(run.grower, wild, expects=held.model_copy(update={"epoch": epoch})))
            command = commands[rng.integers(len(commands))]
            run.time_ns = command.issued_at_ns + int(rng.choice([BACKWARDS, FORWARDS, 10**12]))
            run.executor.receive(command)
            sent.append(command)
        run.run(1)
    while len(run.results) < len(sent):
        before = len(run.results)
        run.run(1)
        assert len(run.results) > before, "at least one is settled at every end of an epoch"
    counted = [result.command_id for result in run.results]
    assert sorted(counted) == sorted(command.command_id for command in sent)
    applied = [result.command_id for result in run.results if result.outcome is Outcome.APPLIED]
    assert len(applied) == len(set(applied))
    run.run(1)


class Broken(Loop):
    """Has no loss after its third epoch."""

    done = 0

    def epoch(self):
        super().epoch()
        self.done += 1

    def evaluate(self):
        loss, accuracy = super().evaluate()
        return (float("nan") if self.done == 3 else loss), accuracy


def test_where_the_governor_stopped_the_growth_commands_are_refused_and_pauses_are_not():
    plan = commanded({0: PLAN[0], 4: germinate(0, Blueprint.LORA)}) | {3: pause, 5: seed}
    run = Commanded(plan=plan, loop=Broken).run(5)
    assert run.grower.stopped
    assert [result.outcome for result in run.results] == [
        Outcome.APPLIED,
        Outcome.APPLIED,
        Outcome.REFUSED,
        Outcome.APPLIED,
    ]
    assert run.results[2].reason is Refusal.NOT_ADMITTED


def test_a_controller_decides_alone_and_for_slots_enough():
    with pytest.raises(LiveError, match="a policy and a controller"):
        Loop("mlp").grow("heuristic", controller=Commanded())
    with pytest.raises(LiveError, match="2 slots are more than the 1"):
        Commanded(slots=SlotConfig.for_row(1))
    wide = Commanded(plan=commanded({0: germinate(2, Blueprint.LORA)}), slots=SlotConfig.for_row(3)).run(1)
    assert wide.grower.slot_names == ("0", "2", "r0c2")
    assert wide.results[0].reason is Refusal.NOT_ADMITTED


def test_no_two_seeds_of_a_run_have_the_same_id():
    plan = {
        0: germinate(0, Blueprint.NORM),
        1: prune(0),
        2: germinate(1, Blueprint.NORM),
        10: germinate(0, Blueprint.NORM),
    }
    run, seen = Commanded(plan=commanded(plan)), set()
    for _ in range(11):
        seen |= {seed_id for seed_id in run.grower.seed_ids if seed_id}
        run.run(1)
    assert seen == {"0#1", "2#2", "0#3"}
    assert run.grower.seed_ids == ("0#3", "2#2")
