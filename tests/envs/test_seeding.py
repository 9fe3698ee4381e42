"""Streams of random numbers do not meet."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.seeding import HostChance, Purpose, episode_generator, host_seeds, seed_sequence

SEEDS = st.integers(0, 2**20)
KEYS = st.lists(st.integers(0, 2**40), max_size=2)


@given(SEEDS, SEEDS, KEYS, KEYS)
def test_no_two_purposes_share_a_stream_whatever_seeds_and_keys_they_have(seed, other_seed, key, other_key):
    states = {
        purpose: tuple(seed_sequence(purpose, own, *part).generate_state(4))
        for purpose, (own, part) in zip(Purpose, itertools.cycle([(seed, key), (other_seed, other_key)]), strict=False)
    }
    assert len(set(states.values())) == len(Purpose)


def test_the_hosts_of_one_purpose_are_not_those_of_another():
    drawn = {
        purpose: {int(host) for seed in range(20) for part in range(20) for host in host_seeds(purpose, seed, 32, part)}
        for purpose in (Purpose.ROLLOUT_HOSTS, Purpose.SEARCH_HOSTS)
    }
    drawn[Purpose.HELD_OUT_HOSTS] = {
        int(host) for seed in range(400) for host in host_seeds(Purpose.HELD_OUT_HOSTS, seed, 32)
    }
    assert all(len(hosts) == 20 * 20 * 32 for hosts in drawn.values())
    for left, right in itertools.combinations(drawn.values(), 2):
        assert not left & right


def test_a_key_that_was_a_secret_of_another_purpose_does_not_lead_there():
    """The number by which held-out hosts were once set apart is a possible number of an iteration, too."""
    held_out = host_seeds(Purpose.HELD_OUT_HOSTS, 0, 8)
    for part in (int(Purpose.HELD_OUT_HOSTS), 0x6E1D, *range(64)):
        assert not set(held_out) & set(host_seeds(Purpose.ROLLOUT_HOSTS, 0, 8, part))


def test_episodes_of_one_host_differ_and_repeat():
    first, second = (episode_generator(7, episode).random(4).tolist() for episode in (0, 1))
    assert first != second
    assert first == episode_generator(7, 0).random(4).tolist()


def test_a_sequence_seeds_the_hosts_that_it_names_and_the_others_go_on():
    chance, twin = HostChance(2), HostChance(2)
    everybody = np.arange(2)
    for each in (chance, twin):
        each.seed(everybody, [3, 4])
        each.start(everybody)
    chance.seed(everybody, [None, 9])
    chance.start(everybody)
    twin.start(everybody)
    assert chance.of(0).random() == twin.of(0).random()
    assert chance.of(1).random() == episode_generator(9, 0).random()


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        ([1, 2, 3], "got 3 for 2 hosts"),
        (-1, "0 or more, got -1"),
        ([1, -5], "0 or more, got -5"),
        (1.5, "a whole number of 0 or more, got 1.5"),
        ([1, True], "a whole number of 0 or more, got True"),
        ([1, 2**63], "must be below"),
    ],
)
def test_seeds_that_do_not_fit_are_refused(seed, message):
    with pytest.raises(ValueError, match=message):
        HostChance(2).seed(np.arange(2), seed)
