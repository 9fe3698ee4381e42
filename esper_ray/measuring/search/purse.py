"""What a search on a host finds with a purse of FLOPs, its pick trained out of the same purse."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from envs.seeding import Purpose, seed_sequence
from esper_ray.measuring.search.host_pool import FEWER_EPOCHS, GIVEN, HostPool

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MULTIPLES = (1, 2, 4, 8, 16)
"""Purses, in multiples of what the policy's run on the host cost."""

ORDERS = 32
"""In which a search may meet the candidates; what it finds is averaged over them."""


SEARCHES = {"halving": 0, "late halving": 1, "each trained whole": 2}
"""Kinds of search, and the rung at which each looks at its candidates first; rungs are at a ninth, a third and all
of the epochs (:func:`esper_ray.measuring.search.host_pool.rungs`)."""


@dataclass(frozen=True)
class Found:
    """What was picked on E hosts with each of M purses.

    Attributes:
        score: ``[M, E]`` test score, mean over the orders.
        hits: ``[M, E, n]`` right predictions in each test sample, mean over the orders.
        tried: ``[M, E]`` candidates, mean over the orders.
        used_up: ``[M, E]`` share of the orders in which all candidates were tried: the purse may have paid for more.
    """

    score: FloatArray
    hits: FloatArray
    tried: FloatArray
    used_up: FloatArray


def search_hosts(pool: HostPool, purse: FloatArray, first_rung: int, seed: int = 0) -> Found:
    """Search on every host with every purse.

    Successive halving (Jamieson and Talwalkar, "Non-stochastic Best Arm Identification", 2016): all candidates are
    trained to the first rung, the best third of them goes on to the next, and of those that are done the one with the
    best validation score is picked. The search takes as many candidates as its purse pays for; the first ones are
    those that anybody would try, beginning with growing nothing, which every purse is assumed to allow.

    Args:
        pool: The candidates.
        purse: ``[M, E]`` FLOPs.
        first_rung: At which candidates are looked at first; at the last one every candidate is trained to its end.
        seed: Of the orders.
    """
    hosts, candidates = pool.test_score.shape
    rng = np.random.default_rng(seed_sequence(Purpose.HOST_SEARCH, 1, seed))
    given = min(GIVEN, candidates)
    orders = [np.concatenate([np.arange(given), given + rng.permutation(candidates - given)]) for _ in range(ORDERS)]
    score, tried, used_up = np.zeros((3, *purse.shape))
    hits = np.zeros((*purse.shape, pool.hits.shape[2]))
    for host in range(hosts):
        for drawn in orders:
            order = drawn[np.isfinite(pool.training_flops[host, drawn, -1])]
            costs, picks = _brackets(pool, host, order, first_rung)
            number = np.arange(1, len(order) + 1)
            affordable = np.where(costs <= purse[:, host, None], number, 1).max(axis=1)
            pick = picks[affordable - 1]
            score[:, host] += pool.test_score[host, pick] / ORDERS
            hits[:, host] += pool.hits[host, pick] / ORDERS
            tried[:, host] += affordable / ORDERS
            used_up[:, host] += (affordable == len(order)) / ORDERS
    return Found(score, hits, tried, used_up)


def _brackets(pool: HostPool, host: int, order: IntArray, first_rung: int) -> tuple[FloatArray, IntArray]:
    """For each number n of candidates, 1 to C, what a search over the first n of an order costs, and what it picks."""
    score, trained, look = pool.score[host, order], pool.training_flops[host, order], pool.look_flops[host, order]
    costs, picks = np.empty(len(order)), np.empty(len(order), np.int64)
    for n in range(1, len(order) + 1):
        alive, cost, before = np.arange(n), 0.0, np.zeros(n)
        for rung in range(first_rung, score.shape[1]):
            cost += float((trained[alive, rung] - before[alive] + look[alive, rung]).sum())
            before[alive] = trained[alive, rung]
            ranked = alive[np.argsort(-score[alive, rung], kind="stable")]
            alive = ranked[: -(-len(ranked) // FEWER_EPOCHS)]
        costs[n - 1], picks[n - 1] = cost, order[ranked[0]]
    return costs, picks
