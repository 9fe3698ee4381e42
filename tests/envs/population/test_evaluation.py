"""What is asked for in one call and shared there equals what is asked for one by one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.living_seeds import fresh_population
from envs.hosts.cnn import CnnVariant
from envs.hosts.mlp import MlpVariant
from envs.population.evaluation import SMALLEST_CHUNK, number_of_chunks, share_prefixes
from envs.vocabulary import AlphaAlgorithm
from tests.envs import helpers, topologies

MEMBERS = 5
ALPHAS = (0.0, 0.3, 1.0)


def task_of(topology):
    if topology == "cnn":
        return helpers.task_of(CnnVariant((8, 16, 16), (3, 1, 3)), CnnVariant((2, 4, 8), (1, 3, 1)))
    variants = (MlpVariant(4, (3, 2)), MlpVariant(4, (1, 5))) if topology == "mlp" else None
    return topologies.task_of(topology, variants, samples=60)


def population_of(task, seed, share=0.8):
    """Hosts in the middle of an episode: every weight and statistic is somewhere, so that every seed does something."""
    population, lifecycle = fresh_population(task, MEMBERS, 1, torch.device("cpu"), share, seed)
    generator = torch.Generator().manual_seed(seed)
    for rows in (
        population.flat,
        *population.buffers.values(),
        *(bank.rows.flat for bank in population.banks.values()),
    ):
        rows += 0.2 * torch.rand(rows.shape, generator=generator)
    return population, lifecycle


def asked_for(num_slots):
    row = st.tuples(
        st.integers(0, MEMBERS - 1), st.lists(st.sampled_from(ALPHAS), min_size=num_slots, max_size=num_slots)
    )
    return st.lists(row, min_size=1, max_size=12)


def arrays(rows):
    return np.array([member for member, _ in rows]), np.array([alpha for _, alpha in rows])


@pytest.mark.parametrize("topology", ["cnn", "mlp", "transformer"])
@given(data=st.data(), seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_rows_of_one_call_equal_one_call_for_each(topology, data, seed):
    task = task_of(topology)
    population, lifecycle = population_of(task, seed)
    members, alpha = arrays(data.draw(asked_for(task.slots.num_slots)))
    loss, accuracy = population.evaluate(members, alpha, lifecycle, "validation")
    alone = [population.evaluate(members[[row]], alpha[[row]], lifecycle, "validation") for row in range(len(members))]
    np.testing.assert_allclose(loss, [one[0][0] for one in alone], atol=1e-5, rtol=1e-5)
    one_prediction = 100.0 / task.splits["validation"].y.numel()  # two classes may be level to the last bit
    np.testing.assert_allclose(accuracy, [one[1][0] for one in alone], atol=1.01 * one_prediction)


@pytest.mark.parametrize("topology", ["cnn", "mlp", "transformer"])
def test_every_seed_is_seen_in_the_rows_that_have_it(topology):
    population, lifecycle = population_of(task_of(topology), 0, share=1.0)
    num_slots = lifecycle.alpha.shape[1]
    subsets = np.array(list(np.ndindex((2,) * num_slots)), float)
    members, alpha = np.repeat(np.arange(MEMBERS), len(subsets)), np.tile(subsets, (MEMBERS, 1))
    loss, _ = population.evaluate(members, alpha, lifecycle, "validation")
    assert all(len(set(of_member)) == len(subsets) for of_member in loss.reshape(MEMBERS, -1).round(6).tolist())


@given(rows=asked_for(3))
def test_a_level_has_each_distinct_prefix_once(rows):
    members, alpha = arrays(rows)
    levels, place = share_prefixes(members, alpha)
    for slots_done, level in reversed(list(enumerate(levels))):
        distinct = {(member, *row[:slots_done]) for member, row in zip(members, alpha, strict=True)}
        assert len(level.members) == len(distinct)
        assert np.array_equal(level.members[place], members)
        if slots_done:
            assert np.array_equal(level.alpha[place], alpha[:, slots_done - 1])
        place = level.parents[place]


@pytest.mark.parametrize("topology", ["cnn", "mlp"])
@given(data=st.data(), seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_what_is_booked_is_what_torch_counts(topology, data, seed):
    # One size, for padding is computed but not booked; no 3×3 kernel on a 1×1 map, for only its centre is computed.
    task = helpers.task_of(CnnVariant((8, 16, 4), (3, 3, 1))) if topology == "cnn" else topologies.task_of(topology)
    population, lifecycle = population_of(task, seed)
    lifecycle.algorithm[lifecycle.algorithm == AlphaAlgorithm.GATE] = AlphaAlgorithm.ADD  # torch does not count a gate
    members, alpha = arrays(data.draw(asked_for(task.slots.num_slots)))
    if topology == "cnn":
        alpha[:, 2] = 0.0
    with FlopCounterMode(display=False) as counter:
        population.evaluate(members, alpha, lifecycle, "validation")
    assert population.training_flops.sum() == counter.get_total_flops()
    assert np.array_equal(population.evaluation_flops, population.training_flops), "nothing has been trained"


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("topology", ["cnn", "mlp", "transformer"])
def test_hosts_asked_for_as_they_stand_are_read_in_place(topology):
    population, lifecycle = population_of(task_of(topology), 0, share=0.0)
    with Calls() as plain:
        population.evaluate(np.arange(MEMBERS), lifecycle.alpha, lifecycle, "validation")
    with Calls() as some:
        population.evaluate(np.arange(MEMBERS - 1), lifecycle.alpha[1:], lifecycle, "validation")
    assert "index_select" not in plain.names
    assert "index_select" in some.names


@given(
    rows=st.lists(st.integers(1, 5000), min_size=2, max_size=5), samples=st.integers(1, 400), tokens=st.integers(1, 40)
)
def test_no_chunk_is_small_because_the_population_is_large(rows, samples, tokens):
    levels = [share_prefixes(np.arange(count), np.zeros((count, 0)))[0][0] for count in rows]
    y = torch.zeros(samples, tokens)
    chunks = y.tensor_split(number_of_chunks(levels, y))
    assert sum(len(chunk) for chunk in chunks) == samples
    assert min(chunk.numel() for chunk in chunks) > min(SMALLEST_CHUNK, y.numel()) - tokens
