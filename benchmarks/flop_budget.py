"""Training until a given number of FLOPs is spent, whatever they are spent on."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from envs.tasks.base import Split as Samples
from envs.tasks.base import Task


def _eigenvectors(matrix: torch.Size, *args: Any, **kwargs: Any) -> int:
    *batch, size, _ = matrix
    return math.prod(batch) * 9 * size**3


def _singular_vectors(matrix: torch.Size, *args: Any, **kwargs: Any) -> int:
    *batch, rows, columns = matrix
    long, short = max(rows, columns), min(rows, columns)
    return math.prod(batch) * (14 * long * short**2 + 8 * short**3)


def _solution(matrix: torch.Size, right: torch.Size, *args: Any, **kwargs: Any) -> int:
    size = matrix[-1]
    return math.prod(matrix[:-2]) * (2 * size**3 // 3 + 2 * size**2 * right[-1])


DECOMPOSITIONS = {
    torch.ops.aten._linalg_eigh: _eigenvectors,
    torch.ops.aten._linalg_svd: _singular_vectors,
    torch.ops.aten._linalg_solve_ex: _solution,
}
"""FLOPs of what torch's counter passes over, as Golub and Van Loan ("Matrix Computations", 4th ed.) have them: a
symmetric matrix's eigenvectors (§8.3), a thin singular value decomposition (§8.6), a solution by LU (§3.2, 3.4)."""


class Budget:
    """FLOPs that may be spent, and those that were.

    Counted are convolutions, matrix products and matrix decompositions; not elementwise work, nor the optimiser: what
    ``training_flops`` of our hosts counts, and the decompositions, which no host computes.

    Args:
        flops: That may be spent.
    """

    def __init__(self, flops: float) -> None:
        self.flops, self.spent = flops, 0
        self._known: dict[Hashable, int] = {}

    @property
    def share(self) -> float:
        """Of it that is spent."""
        return self.spent / self.flops

    def pay(self, work: Callable[[], object]) -> int:
        """Do something, count what it computes, and return that."""
        with FlopCounterMode(display=False, custom_mapping=DECOMPOSITIONS) as counter:
            work()
        cost = counter.get_total_flops()
        self.spent += cost
        return cost

    def repeat(self, kind: Hashable, work: Callable[[], object]) -> bool:
        """Do something of a kind whose cost is always the same, unless less than that is left.

        Returns:
            Whether it was done. The first of its kind is done as long as anything is left, since its cost is not known.
        """
        if kind not in self._known:
            if self.spent >= self.flops:
                return False
            self._known[kind] = self.pay(work)
            return True
        if self.spent + self._known[kind] > self.flops:
            return False
        work()
        self.spent += self._known[kind]
        return True


def batches(samples: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Mini-batches as hosts get them: one random pass over the training set after another, without a gap."""
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < size:
            left = torch.cat([left, torch.randperm(samples, generator=generator)])
        yield left[:size]
        left = left[size:]


class Training:
    """Plain SGD on a task's training split, at a rate that falls over the budget as our hosts' falls over the epochs.

    Args:
        task: Its training split, batch size, batches of an epoch and schedule.
        budget: To spend.
        lr: Rate at the beginning.
        seed: Of the batches' order.
    """

    def __init__(self, task: Task, budget: Budget, lr: float, seed: int) -> None:
        self.task, self.budget, self.lr = task, budget, lr
        self.x, self.y = task.splits["train"].x, task.splits["train"].y
        self._batches = batches(len(self.y), task.batch_size, torch.Generator().manual_seed(seed))

    def epoch(self, model: nn.Module) -> bool:
        """As many batches as an epoch of a host has; False where the budget ends before."""
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr)
        sizes = tuple(parameter.shape for parameter in model.parameters())

        def step() -> None:
            rows = next(self._batches)
            optimizer.zero_grad()
            F.cross_entropy(model(self.x[rows]), self.y[rows]).backward()
            optimizer.step()

        for _ in range(self.task.batches_per_epoch):
            rate = self.lr * self.task.learning_rate(self.budget.share) / self.task.lr
            for group in optimizer.param_groups:
                group["lr"] = rate
            if not self.budget.repeat(sizes, step):
                return False
        return True

    def rest(self, model: nn.Module) -> None:
        """Train until nothing is left."""
        while self.epoch(model):
            pass


@torch.no_grad()
def accuracy(model: nn.Module, samples: Samples) -> float:
    """In percent."""
    model.eval()
    return 100.0 * float((model(samples.x).argmax(dim=1) == samples.y).float().mean())


def static_network(task: Task, widths: tuple[int, ...], lr: float, flops: float, seed: int) -> nn.Module:
    """A perceptron with these hidden widths and gromo's activation, trained from scratch until the FLOPs are spent."""
    torch.manual_seed(seed)
    sizes = (task.splits["train"].x[0].numel(), *widths)
    hidden = [(nn.Linear(below, above), nn.SELU()) for below, above in pairwise(sizes)]
    layers = [layer for pair in hidden for layer in pair]
    model = nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], task.num_classes))
    Training(task, Budget(flops), lr, seed).rest(model)
    return model
