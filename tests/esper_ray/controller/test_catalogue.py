"""Risks are what the record says, the page is what the catalogue says, and a file of one's own is checked."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.action_masks import build_mask
from envs.blueprints import blueprints_for
from envs.blueprints.costs import cost_tables, parameters_of
from envs.live.places import KINDS
from envs.vocabulary import HEAD_NAMES, Blueprint, LifecycleOp, SeedStage
from esper_ray.config import EnvConfig
from esper_ray.controller.catalogue import Amendment, CatalogueCache, make_catalogue, read_catalogue, shipped_outcomes
from esper_ray.controller.catalogue_page import PAGE_FILE, page
from esper_ray.controller.commands import Severity
from esper_ray.controller.outcomes import HARM, End, RecordedOutcomes, SeedOutcomes, ends_of_seeds
from esper_ray.controller.risk import forbidden
from esper_ray.controller.thresholds import Thresholds
from esper_ray.errors import UserError
from esper_ray.measuring.recording import RecordedWorld, record_episodes
from policies.scripted import RandomValid
from policies.strategic.labels import ACTIONS
from policies.strategic.replay_store import Replay, ReplayStore
from tests.envs.helpers import EAGER, random_valid_action
from tests.envs.plain_lifecycle import build, worlds

ROOT = Path(__file__).parents[3]
CATALOGUE = read_catalogue()
COUNTS = st.builds(SeedOutcomes, **{end.value: st.integers(0, 10**6) for end in End})


def test_the_page_is_up_to_date():
    assert (ROOT / "docs" / PAGE_FILE).read_text() == page(), "bash studies/catalogue.sh"


# ---------------------------------------------------------------------- what is on record
@given(worlds(internal_levels=True), st.integers(0, 2**32 - 1), st.booleans())
def test_every_seed_of_an_episode_has_the_end_that_its_life_says(world, chance, stopped):
    life, _ = build(world)
    rng, steps, lives = np.random.default_rng(chance), [], {}
    for _ in range(40):
        stages, blueprints = life.stage[0].copy(), life.blueprint[0].copy()
        action = random_valid_action(build_mask(life)[0], life.slots.heads, rng, EAGER)
        risk = int(rng.choice(5, p=[0.9, 0.0, 0.0, 0.06, 0.04]))
        steps.append((stages, blueprints, action, risk))
        for slot, number in enumerate(life.seed_number[0]):
            if number:
                lives.setdefault(number, []).append((stages[slot], Blueprint(blueprints[slot]), slot, action, risk))
        life.apply(np.array([action]))
        life.tick()
        life.book_gradients(np.ones(life.stage.shape, bool))
        life.book_measurement(np.ones(life.stage.shape, bool))
    columns = (np.array(column) for column in zip(*steps, strict=True))
    found = Counter(ends_of_seeds(*columns, stopped=stopped))
    expected = Counter()
    for lived in lives.values():
        stages, blueprint, slot = [stage for stage, *_ in lived], lived[0][1], lived[0][2]
        own = [(action[0], risk) for *_, action, risk in lived if action[1] == slot and action[0] != LifecycleOp.WAIT]
        relied = [risk for op, risk in own if op not in (LifecycleOp.PRUNE, LifecycleOp.SHRINK_INTERNAL)]
        at_the_end = lived[-1][3] is steps[-1][2]
        if not {SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED} & set(stages):
            end = End.UNSEEN
        elif 4 in relied or (stopped and at_the_end and stages[-1] != SeedStage.FOSSILIZED):
            end = End.ROLLED_BACK
        elif 3 in relied:
            end = End.REGRESSED
        else:
            end = End.PRUNED if LifecycleOp.PRUNE in [op for op, _ in own] else End.HARMLESS
        expected[blueprint, end] += 1
    assert found == expected


def test_the_record_of_real_episodes_is_counted_whole(tmp_path):
    env = EnvConfig(task="tabular").lasting(14)
    episodes = record_episodes(RandomValid(env.make_task().slots), env, [1, 2, 3])
    store = ReplayStore(tmp_path)
    store.append(RecordedWorld.of(env).text, "random_valid", episodes[:2])
    store.append(RecordedWorld.of(env).text, "random_valid", episodes[2:])
    recorded = RecordedOutcomes.of(Replay.open(tmp_path), "abc", "this test")
    assert [(source.world, source.policy, source.episodes) for source in recorded.sources] == [
        ("tabular", "random_valid", 3)
    ]
    germinated = sum(
        int((episode.steps[ACTIONS][:-1, HEAD_NAMES.index("op")] == LifecycleOp.GERMINATE).sum())
        for episode in episodes
    )
    assert sum(of.blended + of.unseen for of in recorded.blueprints.values()) == germinated > 0
    assert RecordedOutcomes.model_validate_json(recorded.model_dump_json()) == recorded


@given(COUNTS, st.sampled_from(list(HARM)), st.sampled_from(list(HARM)))
def test_a_risk_is_a_mean_that_begins_low_and_grows_with_the_harm(outcomes, better, worse):
    assert 0.0 < outcomes.risk < 1.0
    if HARM[better] < HARM[worse]:
        plus = {end: outcomes.model_copy(update={end.value: getattr(outcomes, end) + 1}) for end in (better, worse)}
        assert plus[better].risk < plus[worse].risk
    assert SeedOutcomes(unseen=outcomes.unseen).risk == 0.25


def test_a_risk_by_hand():
    assert SeedOutcomes(unseen=50, rolled_back=1, regressed=2, pruned=4, harmless=5).risk == (1 + 1.5 + 1 + 2) / 20
    assert SeedOutcomes(rolled_back=1).risk == pytest.approx(1 / 3)
    assert SeedOutcomes(rolled_back=10**6).risk > 0.9999


# ---------------------------------------------------------------------- catalogue
def test_every_blueprint_that_can_grow_has_an_entry_with_its_parameters():
    grows = {blueprint for kind in KINDS.values() for blueprint in blueprints_for(kind.topology)}
    assert {entry.blueprint for entry in CATALOGUE.values()} == grows == set(Blueprint) - {Blueprint.NOOP}
    assert [entry.name for entry in CATALOGUE.values()] == list(CATALOGUE)
    for entry in CATALOGUE.values():
        for kind in entry.kinds:
            modules, widths = blueprints_for(kind.topology), np.array([[3, 24, 64]])
            costs, _ = cost_tables(modules, list(Blueprint), widths, parameters_of)
            assert [entry.parameters(kind, int(width)) for width in widths[0]] == costs[0, entry.blueprint].tolist()
        assert entry.risk < 0.5, "what ships can be planted"
        assert not entry.quarantined


@given(COUNTS)
def test_the_tier_is_what_the_risk_table_makes_of_the_risk(outcomes):
    recorded = RecordedOutcomes(commit=None, command="", record="", sources=(), blueprints={"norm": outcomes})
    entry, thresholds = make_catalogue(recorded, {})["norm"], Thresholds()
    assert (entry.tier is Severity.CRITICAL) == (entry.name in forbidden({entry.name: entry}, thresholds))
    assert (entry.tier >= Severity.WARNING) == (entry.risk >= thresholds.blueprint_risk_slows)


def _written(tmp_path, content):
    path = tmp_path / "catalogue.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_file_of_ones_own_adds_to_what_is_known(tmp_path):
    hazards = [{"name": name, "severity": name, "what": "it may"} for name in ("HIGH", "CRITICAL")]
    path = _written(
        tmp_path,
        {
            "conv_heavy": {"quarantined": "too large", "blending_methods": ["cosine"]},
            "attention": {"hazards": hazards[:1]},
            "norm": {"hazards": hazards[1:]},
        },
    )
    catalogue = read_catalogue(path)
    assert [name for name, entry in catalogue.items() if entry.quarantined] == ["conv_heavy"]
    assert forbidden(catalogue, Thresholds()) == ("norm", "conv_heavy")
    assert forbidden(CATALOGUE, Thresholds()) == ()
    heavy, attention = catalogue["conv_heavy"], catalogue["attention"]
    assert (heavy.quarantined, heavy.blending_methods) == ("too large", ("cosine",))
    assert (attention.hazard, catalogue["norm"].hazard) == (Severity.HIGH, Severity.CRITICAL)
    assert [hazard.name for hazard in attention.hazards] == ["no_cache", "HIGH"]
    assert attention.risk == CATALOGUE["attention"].risk
    unchanged = catalogue.keys() - json.loads(path.read_text()).keys()
    assert all(catalogue[name] == CATALOGUE[name] for name in unchanged)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv_huge": {}}, r"catalogue\.json: there is no blueprint 'conv_huge': choose from conv_light, "),
        ({"noop": {}}, "no blueprint 'noop'"),
        ({"norm": {"quarantine": "yes"}}, "norm.quarantine: Extra inputs"),
        ({"norm": {"quarantined": True}}, "norm.quarantined: Input should be a valid string"),
        ({"norm": {"hazards": [{"name": "a", "severity": "BAD", "what": "b"}]}}, r"norm\.hazards\.0\.severity"),
        ({"norm": {"blending_methods": ["jump"]}}, r"norm\.blending_methods\.0"),
        ({"norm": {"blending_methods": []}}, r"norm\.blending_methods"),
        ([], "catalogue.json: content"),
        ("{", "is not JSON"),
        ('{"norm": {}, "norm": {}}', "'norm' is given twice"),
    ],
)
def test_a_wrong_file_is_said_in_one_line(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read_catalogue(_written(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_said():
    with pytest.raises(UserError, match=r"cannot read nowhere\.json"):
        read_catalogue(Path("nowhere.json"))


def test_a_catalogue_is_read_anew_when_it_is_old_and_again_after_a_failure():
    now, reads, broken = [100.0], [], []

    def read():
        reads.append(now[0])
        if broken:
            raise UserError("cannot read it")
        return make_catalogue(shipped_outcomes(), {"norm": Amendment(quarantined=f"at {now[0]:g}")})

    cache = CatalogueCache(read, ttl=10.0, now=lambda: now[0])
    for now[0] in (100.0, 105.0, 109.9, 110.0, 119.0):
        cache.get()
    assert reads == [100.0, 110.0]
    assert cache.get()["norm"].quarantined == "at 110"
    broken.append(True)
    for now[0] in (120.0, 121.0):
        with pytest.raises(UserError, match="cannot read it"):
            cache.get()
    broken.clear()
    assert cache.get()["norm"].quarantined == "at 121"
    assert reads == [100.0, 110.0, 120.0, 121.0, 121.0]
