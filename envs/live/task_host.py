"""A host of the greenhouse as somebody's own module in somebody's own loop: what it grows by comes from outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from envs.batched.parameters import corner
from envs.graph.measurements import ACTIVITY_SAMPLES
from envs.live.host_modules import modules_of
from envs.population.optimizer import CLIP_NORM, MOMENTUM
from envs.population.population import Population
from envs.seeding import HostChance
from envs.tasks.base import Split, SplitName, Task, TaskError


class TaskHost(nn.Module):
    """One host of a task. Its segments are modules, ``segments.0`` and so on, on whose outputs seeds can grow.

    Images pass between segments channels first. All weights are 0 until somebody writes them.

    Args:
        task: Of the host.
        variant: Index among the task's.

    Raises:
        TaskError: the task has a host of a class of its own.
    """

    def __init__(self, task: Task, variant: int = 0) -> None:
        super().__init__()
        self.host, self.variant = task.host, task.variants[variant]
        self.images = self.host.topology == "cnn"
        with torch.random.fork_rng(devices=[]):  # modules draw their weights as they are made
            segments, readout = modules_of(self.host, self.variant)
        self.segments, self.readout = nn.ModuleList(segments), readout
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()

    @property
    def _layers(self) -> dict[str, nn.Module]:
        """Modules by the last part of their names, which of a layer is the greenhouse's name of it."""
        return {name.rpartition(".")[2]: module for name, module in self.named_modules()}

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The host's parameters, without the seeds', by the names that the greenhouse has for them, in its order."""
        modules, found = self._layers, dict[str, nn.Parameter]()
        for layer in self.host.layers(self.variant):
            own = modules[layer.name].parameters(recurse=False)
            found |= dict(zip(layer.parameters, own, strict=True))
        return {name: found[name] for name in self.host.parameters(self.variant)}

    @property
    def statistics(self) -> dict[str, Tensor]:
        """The running statistics of its batch norms, likewise."""
        found = {}
        for name, module in self._layers.items():
            if isinstance(module, nn.BatchNorm2d):
                number = name.removeprefix("norm")
                found[f"mean{number}"] = module.get_buffer("running_mean")
                found[f"var{number}"] = module.get_buffer("running_var")
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits of samples in the task's layout."""
        x = x.permute(0, 3, 1, 2) if self.images else x
        for segment in self.segments:
            x = segment(x)
        logits: Tensor = self.readout(x)
        return logits


class TaskLoop:
    """Trains a host as the greenhouse trains the first host of an env that was reset with a list of this one seed.

    It begins with that host's weights, and has its mini-batches and its learning rate; what grows in it by
    :attr:`given` begins with the weights that it has there.

    Args:
        task: Of the host.
        max_epochs: That the rate's schedule spans.
        seed: Of the host.

    Raises:
        TaskError: a task that augments its images, which is not done here, or has a host of a class of its own.

    Attributes:
        model: That is trained.
        optimizer: That trains it.
        samples: That an epoch trains on.
    """

    def __init__(self, task: Task, max_epochs: int, seed: int) -> None:
        if task.augment is not None:
            raise TaskError(f"task {task.name!r} augments its images, and a live host does not: choose another task")
        hosts, chance = np.arange(1), HostChance(1)
        chance.seed(hosts, [seed])
        chance.start(hosts)
        self._task, self._max_epochs, self._epoch, self._chance = task, max_epochs, 0, chance
        self._population = Population(task, 1, max_epochs, torch.device("cpu"), chance)
        self._population.start(hosts)
        self.model = TaskHost(task, int(self._population.variant[0]))
        self._copy_weights()
        self._own = list(self.model.weights.values())
        self.optimizer = torch.optim.SGD(self._own, lr=self._rate(), momentum=MOMENTUM)
        self.samples = task.batches_per_epoch * task.batch_size

    def _copy_weights(self) -> None:
        population = self._population
        values = {**population.layout.views(population.flat), **population.buffers}
        with torch.no_grad():
            for name, own in {**self.model.weights, **self.model.statistics}.items():
                wide = values[name][0]
                own.copy_(wide[corner(wide.shape, own.shape)])

    def _clip(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Between the backward pass and the step; seeds are clipped by themselves."""
        nn.utils.clip_grad_norm_(self._own, CLIP_NORM)

    def _rate(self) -> float:
        return float(self._population.learning_rates(np.array([self._epoch]))[0])

    def _split(self, name: SplitName) -> Split:
        return self._task.splits[name]

    @property
    def example(self) -> Tensor:
        """The inputs on which the greenhouse watches activation functions."""
        x = self._split("validation").x
        return x[torch.linspace(0, len(x) - 1, min(ACTIVITY_SAMPLES, len(x))).long()]

    @property
    def given(self) -> dict[str, Any]:
        """What :func:`esper_ray.live.grow` is given of it, by argument."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "slots": "segments.*",
            "example": self.example,
            "evaluate": self.evaluate,
            "max_epochs": self._max_epochs,
            "chance": self._task.chance_accuracy,
            "initial_weights": self._chance.of(0),
        }

    def epoch(self) -> float:
        """Train for an epoch; returns the mean loss."""
        split, losses = self._split("train"), []
        self.model.train()
        # Registered anew, so as to be the last before the step: whoever watches gradients sees what the greenhouse
        # measures, those that are not clipped yet.
        clipping = self.optimizer.register_step_pre_hook(self._clip)
        try:
            for batch in self._population.batches(0, self._epoch):
                index = torch.from_numpy(batch)
                self.optimizer.zero_grad()
                loss = F.cross_entropy(self.model(split.x[index]).flatten(0, -2), split.y[index].flatten())
                loss.backward()
                self.optimizer.step()
                losses.append(loss.item())
        finally:
            clipping.remove()
        self._epoch += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        return float(np.mean(losses))

    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy in percent on the validation split, in whatever mode the model is."""
        split = self._split("validation")
        with torch.no_grad():
            logits = self.model(split.x)
        loss = F.cross_entropy(logits.flatten(0, -2), split.y.flatten()).item()
        return loss, 100.0 * (logits.argmax(-1) == split.y).float().mean().item()
