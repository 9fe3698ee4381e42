"""The search for a fixed schedule: its budget, and that it finds what there is to find."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.morphogenesis import MorphogenesisVectorEnv, host_variant
from envs.tasks import make_task
from envs.vocabulary import Blueprint
from esper_ray.config import EnvConfig
from esper_ray.errors import UserError
from esper_ray.measuring.episodes import held_out_seeds
from esper_ray.measuring.search import halving, schedule_episodes
from esper_ray.measuring.search.halving import Brackets, SearchSettings, search_schedule
from esper_ray.measuring.search.schedule_files import read_trace, trace_path, write_trace
from policies.schedule import BY_HAND, GrowthPlan, GrowthSchedule

ENV = EnvConfig(task="digits_mixed", max_epochs=60)
TASK = make_task(ENV.task)


def worth(schedule):
    """A made-up landscape with one best place: CONV_LIGHT in the second slot, early."""
    gains = [
        0.3 * (plan.blueprint == Blueprint.CONV_LIGHT) * (plan.slot == 1) - 0.002 * plan.epoch - 0.05
        for plan in schedule.plans
    ]
    return 0.5 + sum(gains)


@pytest.fixture
def landscape(monkeypatch):
    """Episodes in no time: a schedule's worth, an offset of the host, and noise."""
    played = []

    def play(pool, env, episodes):
        for i in range(0, len(episodes), schedule_episodes.MAX_POPULATION):
            part = episodes[i : i + schedule_episodes.MAX_POPULATION]
            played.extend(part)
            noise = [np.random.default_rng([seed, *map(ord, repr(schedule))]).normal() for schedule, seed in part]
            hosts = [np.random.default_rng(seed).normal() for _, seed in part]
            yield np.array([worth(s) for s, _ in part]) + 0.1 * np.array(hosts) + 0.03 * np.array(noise)

    monkeypatch.setattr(halving, "play", play)
    return played


@settings(max_examples=200)
@given(st.integers(0, 20_000), st.integers(1, 8))
def test_the_budget_is_kept_and_hardly_any_of_it_is_left(episodes, variants):
    try:
        plan = Brackets.of(episodes, variants)
    except UserError:
        assert episodes < 110 * variants
        return
    assert plan.episodes <= episodes
    assert episodes - plan.episodes < plan.finalists * variants
    assert plan.finalists >= 2
    assert plan.final_hosts >= variants
    assert all(hosts % variants == 0 for hosts in (*plan.hosts, plan.final_hosts))
    assert list(plan.candidates) == sorted(plan.candidates, reverse=True)


def test_a_search_finds_the_best_place_and_counts_every_episode(landscape):
    result = search_schedule(ENV, SearchSettings(host_epochs=60 * 4000, seed=1))
    assert result.host_epochs == 60 * len(landscape) <= 60 * 4000
    best = result.best
    assert [plan.slot for plan in best.plans] == [1]
    assert best.plans[0].blueprint == Blueprint.CONV_LIGHT
    assert best.plans[0].epoch <= 5
    final = [scores.mean() for _, scores in result.finalists]
    assert final == sorted(final, reverse=True)
    assert {GrowthSchedule(), BY_HAND} <= set(result.rungs[0].schedules)


def test_schedules_of_a_rung_meet_the_same_hosts_of_every_variant_and_the_finalists_fresh_ones(landscape):
    result = search_schedule(ENV, SearchSettings(host_epochs=60 * 1500))
    seen = set()
    for rung in result.rungs:
        assert not seen & set(rung.seeds)
        seen |= set(rung.seeds)
        counts = np.bincount([host_variant(TASK, seed) for seed in rung.seeds], minlength=len(TASK.variants))
        assert counts.min() == counts.max() > 0
        assert rung.scores.shape == (len(rung.schedules), len(rung.seeds))
    assert not seen & set(held_out_seeds(0, 1000))


def test_the_same_seed_searches_the_same_and_another_one_does_not(landscape):
    runs = [search_schedule(ENV, SearchSettings(host_epochs=60 * 1200, seed=seed)) for seed in (3, 3, 4)]
    assert runs[0].rungs[-1].schedules == runs[1].rungs[-1].schedules
    assert runs[0].rungs[0].schedules != runs[2].rungs[0].schedules


def test_of_several_searches_and_of_what_was_known_the_best_on_fresh_hosts_counts(landscape):
    alone = [search_schedule(ENV, SearchSettings(host_epochs=60 * 1200, seed=seed)) for seed in (3, 4)]
    known = GrowthSchedule((GrowthPlan(slot=1, blueprint=Blueprint.CONV_LIGHT, epoch=0),))
    landscape.clear()
    asked = SearchSettings(host_epochs=60 * 1200, seed=3, searches=2, known=(known,))
    result = search_schedule(ENV, asked)
    assert result.host_epochs == 60 * len(landscape)
    winners = [search.best for search in alone]
    assert result.rungs[-1].schedules == tuple(dict.fromkeys([*winners, known]))
    *searched, last = result.rungs
    assert [rung.schedules for rung in searched] == [rung.schedules for search in alone for rung in search.rungs]
    assert last.name == "final"
    assert not set(last.seeds) & {seed for rung in searched for seed in rung.seeds}
    assert len(last.seeds) == 60
    assert result.best == last.schedules[int(np.argmax(last.scores.mean(axis=1)))]
    landscape.clear()
    resumed = search_schedule(ENV, asked, known=result.rungs[:-2])
    assert (resumed.best, resumed.host_epochs) == (result.best, result.host_epochs)
    assert len(landscape) == sum(rung.scores.size for rung in result.rungs[-2:])


def test_an_interrupted_search_goes_on_from_its_trace_and_ends_as_if_nothing_had_happened(landscape, tmp_path):
    asked = SearchSettings(host_epochs=60 * 1200)
    path, whole = tmp_path / "found.json", search_schedule(ENV, asked)
    write_trace(path, ENV, asked, whole.rungs[:5])
    known = read_trace(path, ENV, asked)
    assert [rung.schedules for rung in known] == [rung.schedules for rung in whole.rungs[:5]]
    landscape.clear()
    resumed = search_schedule(ENV, asked, known=known)
    assert resumed.best == whole.best
    assert resumed.host_epochs == whole.host_epochs
    assert len(landscape) * 60 == whole.host_epochs - 60 * sum(rung.scores.size for rung in known)


def test_a_trace_of_another_search_is_refused_and_so_is_a_damaged_one(landscape, tmp_path):
    path, asked = tmp_path / "found.json", SearchSettings(host_epochs=60 * 1200)
    assert read_trace(path, ENV, asked) == []
    write_trace(path, ENV, asked, [])
    for other, says in (({"host_epochs": 60 * 1300}, "another host_epochs: "), ({"seed": 1}, "another seed: ")):
        with pytest.raises(UserError, match=says):
            read_trace(path, ENV, dataclasses.replace(asked, **other))
    with pytest.raises(UserError, match="another env: give another --output, or remove it"):
        read_trace(path, dataclasses.replace(ENV, max_epochs=61), asked)
    whole = json.loads(trace_path(path).read_text())
    rung = {"name": "final", "schedules": [[]], "host_seeds": [1, 2], "scores": [[0.5, 0.5]]}
    trace_path(path).write_text(json.dumps(whole | {"rungs": [rung]}))
    assert len(read_trace(path, ENV, asked)) == 1
    damaged = [
        {"scores": [[0.5]]},
        {"scores": "high"},
        {"host_seeds": 3},
        {"schedules": [3]},
        {"schedules": [[{"slot": []}]]},
    ]
    for content in ([], whole | {"rungs": None}, *(whole | {"rungs": [rung | change]} for change in damaged)):
        trace_path(path).write_text(json.dumps(content))
        with pytest.raises(UserError, match="is no trace of a search: remove it"):
            read_trace(path, ENV, asked)
    trace_path(path).write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_trace(path, ENV, asked)


def test_too_small_a_budget_is_refused_with_the_number(landscape):
    with pytest.raises(UserError, match=r"10 episodes are too few .*--host-epochs"):
        search_schedule(ENV, SearchSettings(host_epochs=600))


def test_a_host_seed_leads_to_the_variant_that_is_foretold():
    env = MorphogenesisVectorEnv(24, task="digits_mixed", max_epochs=1)
    env.reset(seed=list(range(24)))
    assert env.population.variant.tolist() == [host_variant(env.task, seed) for seed in range(24)]
