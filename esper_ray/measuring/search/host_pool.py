"""What a search on a single host can try: networks that are grown from the start, and schedules, each trained whole.

How such candidates fare is found out once, to the end. What a search with a given purse would have seen of them, and
which it would have taken, is then arithmetic (:mod:`esper_ray.measuring.search.purse`), at every purse and as often as
one likes: a table of trained networks in place of trainings, as in Ying et al., "NAS-Bench-101" (2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.grown import GrownSeeds
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.population.flops import FORWARDS_PER_TRAINING_STEP
from envs.seeding import Purpose, seed_sequence
from envs.slots import SlotConfig
from envs.vocabulary import NO_BLUEPRINT, Blueprint
from esper_ray.config import EnvConfig
from esper_ray.keeping.packed import pack, unpack
from esper_ray.measuring.controls import BIG_BLUEPRINT
from esper_ray.measuring.episodes import run_episodes
from esper_ray.measuring.search.space import ScheduleSpace
from esper_ray.process import settle
from policies.schedule import BY_HAND, GrowthSchedule
from policies.scripted import FixedSchedule

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FEWER_EPOCHS = 3
"""By this factor the rungs of successive halving are apart."""

CANDIDATES = 160
"""On each host: about as many as a purse of 16 times a policy's run pays for, if that costs four times what growing
nothing does."""

GIVEN = 3
"""Candidates that every search begins with."""

ATTEMPTS = 100
"""At a candidate that has not been drawn, before the space counts as used up."""


NOTHING = GrowthSchedule()


@dataclass(frozen=True)
class Candidate:
    """A network or a schedule.

    Attributes:
        network: Blueprints by slot that are there from the first epoch on, added in full.
        schedule: What is grown.
    """

    network: tuple[tuple[int, Blueprint], ...] = ()
    schedule: GrowthSchedule = NOTHING


def rungs(max_epochs: int) -> tuple[int, int, int]:
    """Epochs after which a search looks at its candidates; at the last they are done."""
    return max(1, max_epochs // FEWER_EPOCHS**2), max(1, max_epochs // FEWER_EPOCHS), max_epochs


def draw_candidates(env: EnvConfig, count: int, host_seed: int) -> list[Candidate]:
    """Those that a search on a host can try: three that anybody would, then networks and schedules drawn at random.

    The three are growing nothing, the schedule made by hand, and the network that is large from the start. Of the
    others half are networks and half are schedules, as far as there are so many that differ. A network has one seed or
    more, any number of them equally likely, in slots and of kinds drawn at random; schedules are drawn as the search
    over schedules does.

    Args:
        env: The world.
        count: C, at least 3; of a small space fewer come.
        host_seed: Of the host; each host has its own candidates.
    """
    rng = np.random.default_rng(seed_sequence(Purpose.HOST_SEARCH, 0, host_seed))
    space = ScheduleSpace.of(env.make_task(), env.longest)
    big = BIG_BLUEPRINT[env.make_task().host.topology]
    large = Candidate(network=tuple((slot, big) for slot in space.slots))
    chosen = dict.fromkeys([Candidate(), Candidate(schedule=BY_HAND), large])
    while len(chosen) < count:
        for _ in range(ATTEMPTS):
            if len(chosen) % 2:
                candidate = Candidate(network=_network(space, rng))
            else:
                candidate = Candidate(schedule=space.drawn(rng))
            if candidate not in chosen:
                break
        else:
            break
        chosen[candidate] = None
    return list(chosen)


def _network(space: ScheduleSpace, rng: np.random.Generator) -> tuple[tuple[int, Blueprint], ...]:
    count = int(rng.integers(1, len(space.slots) + 1))
    slots = sorted(int(slot) for slot in rng.choice(space.slots, count, replace=False))
    return tuple((slot, space.blueprints[int(rng.integers(len(space.blueprints)))]) for slot in slots)


@dataclass(frozen=True)
class HostPool:
    """C candidates on each of E hosts, and what a search sees at each of R rungs.

    Attributes:
        score: ``[E, C, R]`` validation score.
        training_flops: ``[E, C, R]`` of all training up to the rung.
        look_flops: ``[E, C, R]`` of one look at the validation split there.
        test_score: ``[E, C]`` of the networks at the end.
        hits: ``[E, C, n]`` right predictions in each test sample.
    """

    score: FloatArray
    training_flops: FloatArray
    look_flops: FloatArray
    test_score: FloatArray
    hits: FloatArray

    def texts(self) -> dict[str, str]:
        """The arrays by name, packed, in types that take little room."""
        arrays = {name: array.astype(np.float32) for name, array in vars(self).items()}
        arrays["hits"] = self.hits.astype(np.uint8 if self.hits.max() < 256 else np.uint16)
        return {name: pack(array) for name, array in arrays.items()}

    @classmethod
    def of_texts(cls, texts: Mapping[str, str]) -> HostPool:
        """The inverse of :meth:`texts`, to 7 digits."""
        return cls(**{name: unpack(text).astype(np.float64) for name, text in texts.items()})

    @classmethod
    def joined(cls, pools: Sequence[HostPool]) -> HostPool:
        """All hosts of several; what one has less of than another costs more than any purse."""
        most = max(pool.score.shape[1] for pool in pools)

        def joined(name: str, missing: float) -> npt.NDArray[Any]:
            padded = []
            for pool in pools:
                array = getattr(pool, name)
                width = [(0, 0), (0, most - array.shape[1]), *[(0, 0)] * (array.ndim - 2)]
                padded.append(np.pad(array, width, constant_values=missing))
            return np.concatenate(padded)

        gone = {"score": -np.inf, "training_flops": np.inf, "look_flops": np.inf, "test_score": 0.0, "hits": 0.0}
        return cls(**{name: joined(name, missing) for name, missing in gone.items()})


def train_pool(env: EnvConfig, host_seed: int, count: int) -> HostPool:
    """Train all candidates of one host, as one population, in this process.

    Nothing is charged that a search could do without: no counterfactuals, and a look at the validation split only
    where it chooses.

    Args:
        env: The world.
        host_seed: Of the host.
        count: See :func:`draw_candidates`.
    """
    settle()
    candidates = draw_candidates(env, count, host_seed)
    task = env.make_task()
    samples = task.batches_per_epoch * task.batch_size * FORWARDS_PER_TRAINING_STEP
    looked_at = len(task.splits["validation"].y)
    forward: list[IntArray] = []

    def look(world: MorphogenesisVectorEnv) -> None:
        ended = world.epoch != len(forward)  # a host that the governor stopped starts anew, which counts for nothing
        forward.append(np.where(ended, 0, world.population.forward_flops(world.lifecycle)))

    results = run_episodes(
        FixedSchedule(task.slots, env.longest, [candidate.schedule for candidate in candidates]),
        replace(env, counterfactual_interval=env.longest + 1),
        [host_seed] * len(candidates),
        look,
        grown=grown_from_start([candidate.network for candidate in candidates], task.slots),
    )
    assert results.hits is not None, "episodes on the test split say where they were right"
    ends = np.array(rungs(env.longest))
    trained = samples * np.cumsum(forward[1:], axis=0)
    return HostPool(
        score=results.course.score[None, :, ends - 1],
        training_flops=trained[ends - 1].T[None].astype(np.float64),
        look_flops=looked_at * np.array(forward)[ends].T[None].astype(np.float64),
        test_score=results.score[None],
        hits=results.hits[None].astype(np.float64),
    )


def grown_from_start(networks: Sequence[Sequence[tuple[int, Blueprint]]], slots: SlotConfig) -> GrownSeeds:
    """Seeds that hosts start with, host by host; all added in full."""
    grown = GrownSeeds.everywhere(Blueprint.NOOP, len(networks), slots)
    grown = replace(grown, blueprint=np.full_like(grown.blueprint, NO_BLUEPRINT))
    for blueprint in {blueprint for network in networks for _, blueprint in network}:
        there = np.array([[(slot, blueprint) in network for slot in range(slots.num_slots)] for network in networks])
        of_kind = GrownSeeds.everywhere(blueprint, len(networks), slots)
        pairs = zip(vars(of_kind).values(), vars(grown).values(), strict=True)
        grown = GrownSeeds(*(np.where(there, theirs, ours) for theirs, ours in pairs))
    return grown
