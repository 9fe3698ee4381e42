"""How many torch operators a mini-batch dispatches, and who asks for them: on small hosts their number is the cost."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness import Table
from benchmarks.living_seeds import LIVING_SHARE, fresh_population
from envs.tasks import make_task
from envs.tasks.base import Task

LENGTHS = (4, 12)
"""Mini-batches of the two epochs whose difference leaves what one mini-batch costs."""

TOTALS = ("hosts", "seeds", "N", "per mini-batch", "per epoch beside them", "spread over all")

AUTOGRAD, OTHERS = "autograd engine", "others"
"""The sources of what torch's own backward functions and their accumulation call, and of what is called from elsewhere.
"""


@dataclass(frozen=True)
class Case:
    """Hosts whose training is counted.

    Attributes:
        task: Data and host.
        seeds: Key of ``LIVING_SHARE``.
        num_hosts: N.
        headline: Name under which others quote the calls per mini-batch; None for none.
    """

    task: str
    seeds: str
    num_hosts: int
    headline: str | None = None


CASES = (
    Case("digits_impaired", "alone", 32),
    Case("digits_impaired", "mixed seeds", 16),
    Case("digits_impaired", "mixed seeds", 32, "calls_mixed_n32"),
    Case("digits_impaired", "mixed seeds", 128, "calls_mixed_n128"),
    Case("digits_mixed", "mixed seeds", 32, "calls_digits_mixed_n32"),
)


class OperatorCalls(TorchDispatchMode):
    """Counts the operators that are dispatched within it; one that only makes a view of a tensor is none.

    A custom operator counts once, whatever it calls inside.

    Attributes:
        by_source: Who called → calls: the module of ``envs`` whose function is innermost, ``AUTOGRAD`` or ``OTHERS``.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_source: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count one operator, and compute it."""
        if not func.is_view:
            self.by_source[_source()] += 1
        return func(*args, **(kwargs or {}))


def _source() -> str:
    for frame, _ in traceback.walk_stack(sys._getframe(2)):
        module = frame.f_globals.get("__name__", "")
        if module == torch.autograd.graph.__name__:
            return AUTOGRAD
        if module.startswith("envs."):
            return module
    return OTHERS


@dataclass(frozen=True)
class Calls:
    """Operators of an epoch, by source.

    Attributes:
        per_batch: Those of one mini-batch.
        beside: Those of an epoch that belong to no mini-batch.
        batches: Mini-batches in one of the task's own epochs.
    """

    per_batch: dict[str, float]
    beside: dict[str, float]
    batches: int


def count_calls(case: Case, device: torch.device) -> Calls:
    """Count what epochs of two lengths call."""
    task = make_task(case.task)
    short, long = (_epoch(replace(task, batches_per_epoch=length), case, device) for length in LENGTHS)
    per_batch = {source: (long[source] - short[source]) / (LENGTHS[1] - LENGTHS[0]) for source in long}
    beside = {source: short[source] - LENGTHS[0] * each for source, each in per_batch.items()}
    return Calls(per_batch, beside, task.batches_per_epoch)


def _epoch(task: Task, case: Case, device: torch.device) -> Counter[str]:
    """One epoch's calls by source, after another that sets up what is kept."""
    population, lifecycle = fresh_population(task, case.num_hosts, 2, device, LIVING_SHARE[case.seeds])
    epoch = np.zeros(case.num_hosts, np.int64)
    population.train_epoch(epoch, lifecycle)
    with OperatorCalls() as calls:
        population.train_epoch(epoch + 1, lifecycle)
    return calls.by_source


def calls_tables(counted: dict[Case, Calls]) -> list[Table]:
    """All calls by case, and those of a mini-batch by source."""
    totals = [(case.task, case.seeds, str(case.num_hosts), *_totals(calls)) for case, calls in counted.items()]
    names = [f"{case.task}, {case.seeds}, {case.num_hosts}" for case in counted]
    sources = sorted({source for calls in counted.values() for source in calls.per_batch})
    by_source: list[tuple[str, ...]] = [
        (source, *(f"{calls.per_batch.get(source, 0.0):,.0f}" for calls in counted.values())) for source in sources
    ]
    return [
        Table("Operators called (cpu)", TOTALS, totals),
        Table("Operators called per mini-batch, by who calls", ("called by", *names), by_source),
    ]


def _totals(calls: Calls) -> tuple[str, ...]:
    """Calls per mini-batch, per epoch beside them, and per mini-batch with its share of those."""
    per_batch, beside = sum(calls.per_batch.values()), sum(calls.beside.values())
    return tuple(f"{value:,.0f}" for value in (per_batch, beside, per_batch + beside / calls.batches))
