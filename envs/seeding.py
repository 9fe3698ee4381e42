"""Where randomness begins: one seed, and a purpose that keeps its streams apart.

Every stream of the project is ``SeedSequence(seed, spawn_key=(purpose, ...))``. The purpose is the first part of the
key, so that no two purposes share a number, whatever their seeds and further parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.episode_state import EpisodeState

IntArray = npt.NDArray[np.int64]


class Purpose(IntEnum):
    """What a stream of random numbers is for. Never renumber: published results depend on it."""

    ROLLOUT_HOSTS = 1
    """Seeds of the hosts that an int given to ``reset`` stands for."""
    HELD_OUT_HOSTS = 2
    """Seeds of the hosts of evaluations and pictures."""
    SEARCH_HOSTS = 3
    """Seeds of the hosts that schedules are chosen on."""
    EPISODE = 4
    """All chance of one episode of one host."""
    RUNNER = 5
    """Generators of a process that plays: a policy's actions."""
    LEARNER = 6
    """Generators of a process that learns: shuffling."""
    SEARCH = 7
    """Schedules that a search tries."""
    TUNING = 8
    """Settings that a tuning draws."""
    BOOTSTRAP = 9
    """Resampling for intervals."""
    HORIZON = 10
    """How long the episodes of an iteration are."""
    COLLECTED_HOSTS = 11
    """Seeds of the hosts whose episodes are recorded for the strategic policy."""
    IMITATION = 12
    """Order and dropout of a pass of imitation."""
    REPORTS = 13
    """Order in which is learnt from reports in the field."""
    HOST_SEARCH = 14
    """Networks and schedules that are tried on a single host, and the order in which a search meets them."""


def seed_sequence(purpose: Purpose, seed: int | None, *key: int) -> np.random.SeedSequence:
    """The stream of a purpose.

    Args:
        purpose: What it is for.
        seed: 0 or more; None draws from the operating system.
        key: Further parts; of one purpose always as many, only the last of which may exceed 32 bits.
    """
    return np.random.SeedSequence(seed, spawn_key=(int(purpose), *key))


def host_seeds(purpose: Purpose, seed: int | None, count: int, *key: int) -> IntArray:
    """Seeds of hosts, ``[count]`` in 0 … 2⁶³ − 1: so many that two purposes do not meet by chance either."""
    return (seed_sequence(purpose, seed, *key).generate_state(count, np.uint64) >> np.uint64(1)).astype(np.int64)


def episode_generator(host_seed: int, episode: int) -> np.random.Generator:
    """All chance of one host's episode, numbered from 0."""
    return np.random.default_rng(seed_sequence(Purpose.EPISODE, int(host_seed), int(episode)))


def _require_seeds(seeds: Sequence[Any]) -> None:
    for seed in seeds:
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0):
            raise ValueError(f"a seed must be a whole number of 0 or more, got {seed!r}")


class HostChance(EpisodeState):
    """The generator of each host's episode under way.

    Args:
        num_hosts: N.
    """

    def __init__(self, num_hosts: int) -> None:
        self._seeds: IntArray | None = None
        self._episodes = np.zeros(num_hosts, np.int64)
        self._generators: list[np.random.Generator | None] = [None] * num_hosts

    def seed(self, hosts: IntArray, seed: int | Sequence[int | None] | None, part: int = 0) -> None:
        """Give some hosts new seeds; their next episode is the first of these.

        Args:
            hosts: ``[m]`` which.
            seed: An int is spread over all N, so that two workers with neighbouring seeds share no host; a sequence
                has one per host, None for one that goes on with its own. None leaves all their seeds, or draws them
                from the operating system if there are none yet.
            part: Other parts of the same int seed share no host either.

        Raises:
            ValueError: a sequence that does not have one seed per host, or a seed below 0.
        """
        if seed is None or isinstance(seed, int | float | np.number):  # any number, to be refused as one
            _require_seeds([seed])
            if seed is None and self._seeds is not None:
                return
            named, values = hosts, host_seeds(Purpose.ROLLOUT_HOSTS, seed, len(self._episodes), part)[hosts]
        else:
            if len(seed) != len(self._episodes):
                raise ValueError(
                    f"a sequence of seeds needs one per host: got {len(seed)} for {len(self._episodes)} hosts"
                )
            _require_seeds(seed)
            if large := [value for value in seed if value is not None and value >= 2**63]:
                raise ValueError(f"the seed of a host must be below 2**63, got {large[0]}")
            named = np.array([host for host in hosts if seed[host] is not None], np.int64)
            values = np.array([seed[host] for host in named], np.int64)
        if self._seeds is None:
            self._seeds = host_seeds(Purpose.ROLLOUT_HOSTS, None, len(self._episodes))
        self._seeds[named], self._episodes[named] = values, 0

    def start(self, hosts: IntArray) -> None:
        """Begin the next episode of these hosts (see :class:`envs.episode_state.EpisodeState`)."""
        if self._seeds is None:
            raise RuntimeError("the hosts have no seeds yet: reset the env first")
        for host in hosts:
            self._generators[host] = episode_generator(int(self._seeds[host]), int(self._episodes[host]))
        self._episodes[hosts] += 1

    def of(self, host: int) -> np.random.Generator:
        """A host's generator.

        Raises:
            RuntimeError: it has no episode yet.
        """
        generator = self._generators[host]
        if generator is None:
            raise RuntimeError(f"host {host} has no episode yet: start one before anything is drawn for it")
        return generator
