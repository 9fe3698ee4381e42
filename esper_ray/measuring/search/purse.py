"""What a search on a host finds with a purse of FLOPs, its pick trained out of the same purse."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from envs.seeding import Purpose, seed_sequence
from esper_ray.measuring.search.host_pool import FEWER_EPOCHS, HostPool

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MULTIPLES = (1, 2, 4, 8, 16)
"""Purses, in multiples of what the policy's run on the host cost."""

ORDERS = 32
"""In which a search may meet the candidates; what it finds is averaged over them."""


@dataclass(frozen=True)
class Found:
    """What was picked on E hosts with each of M purses.

    Attributes:
        score: ``[M, E]`` test score, mean over the orders.
        hits: ``[M, E, n]`` right predictions in each test sample, mean over the orders.
        tried: ``[M, E]`` candidates, mean over the orders.
    """

    score: FloatArray
    hits: FloatArray
    tried: FloatArray


def search_hosts(pool: HostPool, purse: FloatArray, halving: bool, seed: int = 0) -> Found:
    """Search on every host with every purse.

    Successive halving (Jamieson and Talwalkar, "Non-stochastic Best Arm Identification", 2016): all candidates are
    trained to the first rung, the best third of them goes on to the next, and of those that are done the one with the
    best validation score is picked. Without halving every candidate is trained to its end. The search takes as many
    candidates as its purse allows; the first is to grow nothing, which every purse is assumed to allow.

    Args:
        pool: The candidates.
        purse: ``[M, E]`` FLOPs.
        halving: Whether candidates are stopped early.
        seed: Of the orders.
    """
    hosts, candidates = pool.test_score.shape
    rng = np.random.default_rng(seed_sequence(Purpose.HOST_SEARCH, 1, seed))
    orders = [np.concatenate([[0], 1 + rng.permutation(candidates - 1)]) for _ in range(ORDERS)]
    score, tried = np.zeros((2, *purse.shape))
    hits = np.zeros((*purse.shape, pool.hits.shape[2]))
    for host in range(hosts):
        for drawn in orders:
            order = drawn[np.isfinite(pool.training_flops[host, drawn, -1])]
            costs, picks = _brackets(pool, host, order, halving)
            affordable = np.maximum(np.searchsorted(costs, purse[:, host], side="right"), 1)
            pick = picks[affordable - 1]
            score[:, host] += pool.test_score[host, pick] / ORDERS
            hits[:, host] += pool.hits[host, pick] / ORDERS
            tried[:, host] += affordable / ORDERS
    return Found(score, hits, tried)


def _brackets(pool: HostPool, host: int, order: IntArray, halving: bool) -> tuple[FloatArray, IntArray]:
    """For each number n of candidates, 1 to C, what a search over the first n of an order costs, and what it picks.

    Costs are made to rise with n: a search that could pay for more candidates had one that was dear among fewer.
    """
    score, trained, look = pool.score[host, order], pool.training_flops[host, order], pool.look_flops[host, order]
    last = score.shape[1] - 1
    costs, picks = np.empty(len(order)), np.empty(len(order), np.int64)
    for n in range(1, len(order) + 1):
        alive, cost, before = np.arange(n), 0.0, np.zeros(n)
        for rung in range(last + 1) if halving else (last,):
            cost += float((trained[alive, rung] - before[alive] + look[alive, rung]).sum())
            before[alive] = trained[alive, rung]
            ranked = alive[np.argsort(-score[alive, rung], kind="stable")]
            alive = ranked[: -(-len(ranked) // FEWER_EPOCHS)]
        costs[n - 1], picks[n - 1] = cost, order[ranked[0]]
    return np.maximum.accumulate(costs), picks
