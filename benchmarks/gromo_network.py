"""A perceptron that gromo grows (Verbockhaven et al., 2024, "Growing Tiny Networks"), as its tutorial does it.

That is ``examples/plot_growing_container_tutorial.py`` of github.com/growingnet/gromo: two hidden layers of two
neurons; a few epochs of plain SGD, then the statistics of the whole training set, the neurons and the change of the
weights that lower the loss fastest, a line search for their amplitude; the hidden layers take turns. The loss is
cross-entropy here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from gromo.containers.growing_mlp import GrowingMLP

from benchmarks.flop_budget import Budget, Training
from envs.tasks.base import Task

HIDDEN, HIDDEN_LAYERS = 2, 2
AMPLITUDES = (0.0, 0.1, 0.5, 1.0)
CHUNK = 256
"""Samples at a time while statistics are taken."""


@dataclass(frozen=True)
class Setting:
    """What is chosen on the validation split.

    Attributes:
        lr: Rate at the beginning.
        growths: How often the network grows.
        epochs: Of a host, between two growths.
    """

    lr: float
    growths: int
    epochs: int

    def __str__(self) -> str:
        return f"rate {self.lr:g}, {self.growths} growths, {self.epochs} epochs before each"


GRID = tuple(Setting(lr, growths, epochs) for lr in (0.1, 0.3) for growths, epochs in ((4, 3), (8, 3), (8, 10)))
"""The tutorial has 4 growths with 3 epochs before each."""


def grown_network(task: Task, setting: Setting, flops: float, seed: int) -> tuple[GrowingMLP, int]:
    """Grow and train a perceptron until the FLOPs are spent.

    A growth is left out where it would begin in the last quarter of the budget: what it adds would hardly be trained.

    Returns:
        The network, and what was spent.
    """
    torch.manual_seed(seed)
    model = GrowingMLP(task.splits["train"].x[0].numel(), task.num_classes, HIDDEN, HIDDEN_LAYERS)
    budget = Budget(flops)
    training = Training(task, budget, setting.lr, seed)
    for growth in range(setting.growths):
        for _ in range(setting.epochs):
            training.epoch(model)
        if budget.share > 0.75:
            break
        budget.pay(partial(grow, model, task, growth % HIDDEN_LAYERS))
    training.rest(model)
    return model, budget.spent


def grow(model: GrowingMLP, task: Task, layer: int) -> None:
    """Give one hidden layer its best neurons, and change the weights behind it."""
    x, y = task.splits["train"].x, task.splits["train"].y
    model.eval()
    model.set_growing_layers(index=layer)
    model.init_computation()
    for xs, ys in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        model.zero_grad()
        F.cross_entropy(model(xs), ys, reduction="sum").backward()
        model.update_computation()
    model.compute_optimal_updates()
    model.reset_computation()
    model.dummy_select_update()
    losses = {}
    with torch.no_grad():
        for amplitude in AMPLITUDES:
            model.set_scaling_factor(amplitude)
            losses[amplitude] = float(F.cross_entropy(model.extended_forward(x), y))
    model.set_scaling_factor(min(losses, key=losses.__getitem__))
    model.apply_change()


def hidden_widths(model: GrowingMLP) -> tuple[int, ...]:
    """Neurons of each hidden layer."""
    return tuple(layer.weight.shape[0] for layer in model.layers[:-1])
