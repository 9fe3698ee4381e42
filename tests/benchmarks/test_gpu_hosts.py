"""The figures that a GPU is judged by; a CPU stands in, on which every operator counts as a kernel."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu_hosts import covered, gpu_figures, kernel_times

INTERVALS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted), max_size=8)


@given(INTERVALS)
def test_what_overlaps_is_covered_once(intervals):
    assert covered(intervals) == len({second for begin, end in intervals for second in range(begin, end)})


def test_every_figure_is_measured():
    tables, headline = gpu_figures({"1×1": "digits_impaired"}, torch.device("cpu"), (2,), (1, 2))
    assert headline.keys() == {"gpu_busy_share_n2", "graph_speedup_n2", "gpu_cores_worth_n2"}
    assert all(figure > 0.0 for figure in headline.values())
    assert [len(table.rows) for table in tables] == [1, 1]


def test_only_work_on_the_device_is_timed():
    device = torch.device("cpu")
    assert kernel_times(lambda: None, device) == []
    assert len(kernel_times(lambda: torch.ones(3).mul_(2.0), device)) > 0
