"""The arithmetic that plans past the machines at hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.plan import (
    HOSTS_TRAIN,
    POLICY_LEARNS,
    ROLLOUTS_MOVE,
    WEIGHTS_MOVE,
    Machines,
    Pieces,
    iteration,
    table,
)

PIECES = Pieces(
    steps_per_second=100.0,
    bytes_per_step=2_000.0,
    unpack_seconds_per_step=1e-5,
    learner_seconds_per_step=1e-3,
    weight_bytes=1e7,
)


def test_by_hand():
    # 16 GPUs on two nodes: 16 · 10 hosts · 50 epochs = 8,000 steps; a GPU's hosts make 1,000 a second.
    machines = Machines(16, gpu_factor=10.0, learner_factor=4.0, network_bytes_per_second=1e8)
    seconds = iteration(PIECES, machines, hosts_per_runner=10, epochs=50)
    assert seconds == pytest.approx(
        {HOSTS_TRAIN: 0.5, ROLLOUTS_MOVE: 0.16 + 0.08, POLICY_LEARNS: 2.0, WEIGHTS_MOVE: 0.2}
    )


@given(st.integers(1, 64), st.integers(1, 64), st.floats(1.0, 100.0))
def test_more_gpus_take_no_hosts_time_and_more_of_everything_else(gpus, more, factor):
    few, many = (iteration(PIECES, Machines(number, gpu_factor=factor), 32, 60) for number in (gpus, gpus + more))
    assert few[HOSTS_TRAIN] == many[HOSTS_TRAIN]
    assert all(few[part] < many[part] for part in (ROLLOUTS_MOVE, POLICY_LEARNS))
    assert few[WEIGHTS_MOVE] <= many[WEIGHTS_MOVE]


@pytest.mark.parametrize(
    ("slow", "bound"),
    [
        ({"steps_per_second": 1e-3}, HOSTS_TRAIN),
        ({"bytes_per_step": 1e9}, ROLLOUTS_MOVE),
        ({"learner_seconds_per_step": 1e3}, POLICY_LEARNS),
        ({"weight_bytes": 1e15}, WEIGHTS_MOVE),
    ],
)
def test_the_slowest_piece_is_named_and_bounds_the_rate_of_an_overlapped_iteration(slow, bound):
    pieces = replace(PIECES, **slow)
    (row,) = table(pieces, [8], {"as measured": (1.0, 1.0)}, 32, 60).rows
    assert row[-1] == bound
    in_turns, overlapped = (float(cell.replace(",", "")) for cell in row[-3:-1])
    assert overlapped == pytest.approx(8 * 32 * 60 / iteration(pieces, Machines(8), 32, 60)[bound], abs=0.5)
    assert in_turns <= overlapped
