"""A search on a single host: what it can try, what it pays, what it picks."""

import json

import numpy as np
import torch

from envs.vocabulary import NO_BLUEPRINT, Blueprint
from esper_ray.config import EnvConfig
from esper_ray.measuring.controls import static_big
from esper_ray.measuring.episodes import run_episodes, search_seeds
from esper_ray.measuring.search.host_pool import (
    Candidate,
    HostPool,
    draw_candidates,
    grown_from_start,
    rungs,
    train_pool,
)
from esper_ray.measuring.search.purse import SEARCHES, search_hosts
from policies.schedule import BY_HAND
from policies.scripted import FixedSchedule, NeverGrow

torch.set_num_threads(1)

ENV = EnvConfig(task="digits_impaired", max_epochs=18)
(SEED,) = search_seeds(5, 1)


def pool_of(score, cost, test):
    """Candidates of one host that cost the same in each of the two stretches between three rungs."""
    cost = np.array(cost, float)
    return HostPool(
        score=np.array(score, float)[None],
        training_flops=(cost[:, None] * [1.0, 2.0, 3.0])[None],
        look_flops=np.full((1, len(cost), 3), 0.5),
        test_score=np.array(test, float)[None],
        hits=np.arange(len(cost))[None, :, None].astype(float),
    )


HALVING, WHOLE = SEARCHES["halving"], SEARCHES["each trained whole"]


def found(pool, *purses, first_rung=HALVING):
    return search_hosts(pool, np.array(purses, float)[:, None], first_rung)


def test_what_a_purse_buys_is_what_can_be_counted_by_hand():
    """Two candidates: both to the first rung (1 + 2 + looks), the better one on to the end (2 × 2 + 2 looks)."""
    pool = pool_of([[0.1, 0.2, 0.3], [0.2, 0.3, 0.2]], [1.0, 2.0], [0.5, 0.7])
    one, two = 3 * 1.0 + 3 * 0.5, (1.0 + 2.0 + 2 * 0.5) + (2 * 2.0 + 2 * 0.5)
    result = found(pool, 0.0, one, two - 0.01, two)
    assert result.tried[:, 0].tolist() == [1, 1, 1, 2]
    np.testing.assert_allclose(result.score[:, 0], [0.5, 0.5, 0.5, 0.7])
    np.testing.assert_allclose(result.hits[:, 0, 0], [0, 0, 0, 1])
    whole = found(pool, 3 * 3.0 + 2 * 0.5 - 0.01, 3 * 3.0 + 2 * 0.5, first_rung=WHOLE)
    assert whole.tried[:, 0].tolist() == [1, 2]
    np.testing.assert_allclose(whole.score[:, 0], [0.5, 0.5])  # at the end the first one is ahead


def test_without_a_limit_the_best_by_validation_is_picked_whatever_the_order():
    rng = np.random.default_rng(0)
    score = np.repeat(rng.random(20)[:, None], 3, axis=1)  # whoever is ahead at the first rung stays so
    test = rng.random(20)
    for first_rung in SEARCHES.values():
        result = found(pool_of(score, np.ones(20), test), 1e9, first_rung=first_rung)
        np.testing.assert_allclose(result.score, test[score[:, 0].argmax()])
        assert (result.tried.tolist(), result.used_up.tolist()) == ([[20]], [[1]])


def test_more_compute_tries_no_fewer_and_halving_tries_more():
    rng = np.random.default_rng(1)
    pool = pool_of(rng.random((30, 3)), rng.uniform(0.5, 2.0, 30), rng.random(30))
    halved, whole = (found(pool, 3, 6, 12, 24, first_rung=rung).tried[:, 0] for rung in (HALVING, WHOLE))
    assert (np.diff(halved) >= 0).all()
    assert (np.diff(whole) >= 0).all()
    assert (halved[1:] >= whole[1:]).all()


def test_hosts_of_fewer_candidates_are_searched_as_if_they_were_alone():
    rng = np.random.default_rng(2)
    small, large = (pool_of(rng.random((n, 3)), np.ones(n), rng.random(n)) for n in (4, 9))
    together = search_hosts(HostPool.joined([small, large]), np.full((1, 2), 40.0), WHOLE)
    assert together.tried.tolist() == [[4, 9]]
    assert together.used_up.tolist() == [[1, 1]]
    best = small.score[0, :, -1].argmax()
    np.testing.assert_allclose(together.score[0, 0], small.test_score[0, best])


def test_a_search_that_costs_more_with_fewer_candidates_takes_the_most_that_its_purse_pays_for():
    """The dear one is ahead of the first at the first rung, and is not trained on once the third is there."""
    pool = pool_of([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [0.3, 0.3, 0.3]], [1.0, 9.0, 1.0], [0.1, 0.2, 0.3])
    two, three = (10 + 1.0) + 2 * (9 + 0.5), (11 + 1.5) + 2 * (1 + 0.5)
    assert three < two
    assert found(pool, three).tried.tolist() == [[3]]
    np.testing.assert_allclose(found(pool, three).score, 0.3)


def test_candidates_are_what_anybody_would_try_and_as_many_networks_as_schedules():
    candidates = draw_candidates(ENV, 21, SEED)
    assert candidates == draw_candidates(ENV, 21, SEED)
    assert len(set(candidates)) == 21
    assert candidates[0] == Candidate()
    assert candidates[1].schedule == BY_HAND
    assert candidates[2].network == tuple((slot, Blueprint.CONV_LIGHT) for slot in range(3))
    drawn = candidates[3:]
    assert sum(bool(candidate.network) for candidate in drawn) == 9
    assert all(candidate.network or candidate.schedule.plans for candidate in drawn)


def test_what_is_kept_as_text_comes_back():
    rng = np.random.default_rng(3)
    pool = pool_of(rng.random((5, 3)), rng.random(5), rng.random(5))
    again = HostPool.of_texts(json.loads(json.dumps(pool.texts())))
    for name, array in vars(pool).items():
        np.testing.assert_allclose(getattr(again, name), array, rtol=1e-6)


def test_networks_are_there_from_the_start():
    slots = ENV.make_task().slots
    grown = grown_from_start([(), [(0, Blueprint.NORM), (2, Blueprint.CONV_LIGHT)]], slots)
    assert grown.blueprint.tolist() == [[NO_BLUEPRINT] * 3, [Blueprint.NORM, NO_BLUEPRINT, Blueprint.CONV_LIGHT]]
    everywhere = grown_from_start([[(slot, Blueprint.CONV_LIGHT) for slot in range(3)]], slots)
    for name, array in vars(static_big(ENV, 1)).items():
        np.testing.assert_array_equal(getattr(everywhere, name), array)


def test_a_pool_is_what_its_candidates_do_alone():
    pool = train_pool(ENV, SEED, 5)
    candidates, slots = draw_candidates(ENV, 5, SEED), ENV.make_task().slots
    alone = run_episodes(NeverGrow(slots), ENV, [SEED])
    assert pool.test_score[0, 0] == alone.score[0]
    assert pool.hits[0, 0].sum() == round(alone.accuracy[0] / 100 * pool.hits.shape[2])
    network = 3
    grown = grown_from_start([candidates[network].network], slots)
    alone = run_episodes(NeverGrow(slots), ENV, [SEED], grown=grown)
    np.testing.assert_allclose(pool.test_score[0, network], alone.score[0], atol=0.01)  # sums are in another order
    by_hand = run_episodes(FixedSchedule(slots, ENV.max_epochs), ENV, [SEED])
    np.testing.assert_allclose(pool.test_score[0, 1], by_hand.score[0], atol=0.01)
    assert rungs(ENV.max_epochs) == (2, 6, 18)
    # What growing nothing costs is proportional to its epochs.
    np.testing.assert_allclose(pool.training_flops[0, 0] / pool.training_flops[0, 0, -1], [1 / 9, 1 / 3, 1.0])
    assert (pool.training_flops[0, network] > pool.training_flops[0, 0]).all()
