"""Fixed schedules: what is planned is what grows, host by host."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.slots import SlotConfig
from envs.tasks import make_task
from envs.vocabulary import (
    ALPHA_TARGET_VALUES,
    NO_BLUEPRINT,
    STYLE_ALGORITHM,
    TEMPO_EPOCHS,
    AlphaTarget,
    Blueprint,
    GerminationStyle,
    SeedStage,
    Tempo,
)
from esper_ray.config import EnvConfig
from esper_ray.measuring.episodes import held_out_seeds, run_episodes
from policies.schedule import BY_HAND, GrowthPlan, GrowthSchedule
from policies.scripted import FixedSchedule, NeverGrow

EPOCHS = 26
ENV = EnvConfig(task="digits_impaired", max_epochs=EPOCHS, parameter_budget=10**9)
SLOTS = make_task(ENV.task).slots
CHEAP = (Blueprint.DEPTHWISE, Blueprint.NORM, Blueprint.ATTENTION, Blueprint.CONV_SMALL)

plans = st.builds(
    GrowthPlan,
    slot=st.integers(0, 2),
    blueprint=st.sampled_from(CHEAP),
    epoch=st.integers(0, EPOCHS),
    style=st.sampled_from(GerminationStyle),
    tempo=st.sampled_from(Tempo),
    alpha_target=st.sampled_from(AlphaTarget),
    training_epochs=st.integers(0, 8),
)
schedules = st.lists(plans, max_size=3, unique_by=lambda plan: plan.slot).map(lambda them: GrowthSchedule(tuple(them)))


@settings(max_examples=50)
@given(schedules)
def test_a_schedule_survives_being_written_and_read(schedule):
    assert GrowthSchedule.from_json(schedule.to_json()) == schedule


@settings(max_examples=3, deadline=None)
@given(st.lists(schedules, min_size=3, max_size=3))
def test_every_host_grows_its_own_schedule_and_commits_what_had_the_time(hosts):
    trails, seeds = [], held_out_seeds(0, len(hosts))
    policy = FixedSchedule(SLOTS, EPOCHS, hosts)
    results = run_episodes(
        policy, ENV, seeds, lambda env: trails.append((env.lifecycle.stage.copy(), env.watch.steps.last_success.copy()))
    )
    stages, accepted = (np.stack(values) for values in zip(*trails, strict=True))
    assert accepted.all()
    for host, schedule in enumerate(hosts):
        planned = {plan.slot: plan for plan in schedule.plans}
        for slot in range(3):
            plan, ends_as = planned.get(slot), results.grown.blueprint[host, slot]
            born = np.flatnonzero(stages[:, host, slot] == SeedStage.GERMINATED)
            if plan is None or plan.epoch >= EPOCHS:
                assert not len(born)
                assert ends_as == NO_BLUEPRINT
                continue
            others_act = 4 * 2  # ops of the other seeds that may come first
            assert len(born) == 0 or plan.epoch < born[0] <= plan.epoch + 1 + others_act
            trained = (stages[:, host, slot] == SeedStage.TRAINING).sum()
            if ends_as != NO_BLUEPRINT:
                assert ends_as == plan.blueprint
                assert results.grown.alpha[host, slot] == ALPHA_TARGET_VALUES[plan.alpha_target]
                assert results.grown.algorithm[host, slot] == STYLE_ALGORITHM[plan.style]
                assert trained >= max(3, plan.training_epochs)
                assert (stages[:, host, slot] == SeedStage.BLENDING).sum() >= TEMPO_EPOCHS[plan.tempo]
            longest = 1 + max(3, plan.training_epochs) + TEMPO_EPOCHS[plan.tempo] + 4 + others_act
            assert ends_as != NO_BLUEPRINT or plan.epoch + longest >= EPOCHS


def test_a_population_of_schedules_does_what_each_schedule_does_alone():
    hosts = [
        GrowthSchedule(),
        BY_HAND,
        GrowthSchedule((GrowthPlan(0, Blueprint.CONV_LIGHT, 2), GrowthPlan(2, Blueprint.NORM, 2, training_epochs=6))),
        GrowthSchedule(tuple(GrowthPlan(slot, Blueprint.DEPTHWISE, slot) for slot in range(3))),
    ]
    seeds = held_out_seeds(1, len(hosts))
    together = run_episodes(FixedSchedule(SLOTS, EPOCHS, hosts), ENV, seeds, split="validation")
    assert together.fates["fossilized"].tolist() == [0, 1, 2, 3]
    for host, schedule in enumerate(hosts):
        alone = run_episodes(FixedSchedule(SLOTS, EPOCHS, schedule), ENV, [seeds[host]], split="validation")
        assert alone.score[0] == pytest.approx(together.score[host], abs=0.03)
        assert alone.training_flops[0] == together.training_flops[host]
    bare = run_episodes(NeverGrow(SLOTS), ENV, seeds, split="validation")
    assert bare.score[0] == together.score[0]


def test_the_schedules_must_fit_the_hosts():
    with pytest.raises(ValueError, match="one seed per slot"):
        GrowthSchedule((GrowthPlan(slot=1), GrowthPlan(slot=1, epoch=9)))
    with pytest.raises(ValueError, match="in slot 3 is planned, but slots are numbered from 0, and the last one is 2"):
        FixedSchedule(SLOTS, 12, GrowthSchedule((GrowthPlan(slot=3),)))
    with pytest.raises(ValueError, match="CONV_LADDER in slot 0"):
        FixedSchedule(SlotConfig.for_row(1), 12, GrowthSchedule((GrowthPlan(blueprint=Blueprint.CONV_LADDER),)))
    with pytest.raises(ValueError, match="epoch of a plan must be 0 or more, got -1"):
        GrowthPlan(epoch=-1)
    with pytest.raises(ValueError, match="2 schedules do not fit 3 hosts"):
        run_episodes(FixedSchedule(SLOTS, 12, [BY_HAND, BY_HAND]), ENV, [1, 2, 3])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"slot": 0, "blueprints": "NORM"}, "no 'blueprints'"),
        ({"blueprint": "HUGE"}, "blueprint must be one of NOOP, .*got 'HUGE'"),
        ({"epoch": "5"}, "epoch must be a whole number, got '5'"),
    ],
)
def test_what_is_no_schedule_is_refused_by_name(entry, message):
    with pytest.raises(ValueError, match=message):
        GrowthSchedule.from_json([entry])


def test_a_schedule_says_in_words_what_it_grows():
    schedule = GrowthSchedule((GrowthPlan(1, Blueprint.NORM, 7, tempo=Tempo.SLOW, training_epochs=4), GrowthPlan()))
    assert schedule.described(SLOTS.slot_ids) == "r0c0 depthwise @5; r0c1 norm @7 (slow, trained 4)"
    assert GrowthSchedule().described(SLOTS.slot_ids) == "nothing"
