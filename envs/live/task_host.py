"""A host of the greenhouse as somebody's own module in somebody's own loop: what it grows by comes from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.graph.measurements import ACTIVITY_SAMPLES
from envs.population.optimizer import CLIP_NORM, MOMENTUM
from envs.population.population import Population
from envs.seeding import HostChance
from envs.tasks.base import Split, SplitName, Task, TaskError


class TaskHost(nn.Module):
    """One host of a task. Its segments are modules, ``segments.0`` and so on, on whose outputs seeds can grow.

    Images pass between segments channels first.

    Args:
        task: Of the host.
        variant: Index among the task's.
    """

    def __init__(self, task: Task, variant: int = 0) -> None:
        super().__init__()
        self.host, self.variant = task.host, task.variants[variant]
        self.images = self.host.topology == "cnn"
        for name, spec in self.host.parameters(self.variant).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(spec.shape)))
        for name, spec in self.host.buffers(self.variant).items():
            self.register_buffer(name, torch.zeros(spec.shape))
        self.segments = nn.ModuleList(_Segment(self._computing(slot)) for slot in range(self.host.num_slots))

    def _computing(self, slot: int) -> Callable[[Tensor], Tensor]:
        def compute(x: Tensor) -> Tensor:
            x = x.permute(0, 2, 3, 1) if self.images and slot else x
            buffers = {name: buffer.unsqueeze(0) for name, buffer in self.named_buffers() if "." not in name}
            out = self.host.segment(slot, self._members(), buffers, x.unsqueeze(0), self.training).squeeze(0)
            return out.permute(0, 3, 1, 2) if self.images else out

        return compute

    def _members(self) -> dict[str, Tensor]:
        return {name: p.unsqueeze(0) for name, p in self.named_parameters() if "." not in name}

    def forward(self, x: Tensor) -> Tensor:
        """Logits of samples in the task's layout."""
        for segment in self.segments:
            x = segment(x)
        x = x.permute(0, 2, 3, 1) if self.images else x
        return self.host.head(self._members(), x.unsqueeze(0)).squeeze(0)


class _Segment(nn.Module):
    """What a host computes before a slot."""

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


class TaskLoop:
    """Trains a host as the greenhouse trains the first host of an env that was reset with a list of this one seed.

    It begins with that host's weights, and has its mini-batches and its learning rate; what grows in it by
    :attr:`given` begins with the weights that it has there.

    Args:
        task: Of the host.
        max_epochs: That the rate's schedule spans.
        seed: Of the host.

    Raises:
        TaskError: a task that augments its images, which is not done here.

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
        self.optimizer = torch.optim.SGD(self._own, lr=self._rate(), momentum=MOMENTUM)
        self.samples = task.batches_per_epoch * task.batch_size

    def _copy_weights(self) -> None:
        weights, buffers = self._population.layout.views(self._population.flat), self._population.buffers
        tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        with torch.no_grad():
            for name, values in {**weights, **buffers}.items():
                own = tensors[name]
                own.copy_(values[0][tuple(slice(size) for size in own.shape)])

    @property
    def _own(self) -> list[nn.Parameter]:
        return [parameter for name, parameter in self.model.named_parameters() if "." not in name]

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
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.model.train()
        for batch in self._population.batches(0, self._epoch):
            index = torch.from_numpy(batch)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(split.x[index]).flatten(0, -2), split.y[index].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(self._own, CLIP_NORM)
            self.optimizer.step()
            losses.append(loss.item())
        self._epoch += 1
        return float(np.mean(losses))

    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy in percent on the validation split, in whatever mode the model is."""
        split = self._split("validation")
        with torch.no_grad():
            logits = self.model(split.x)
        loss = F.cross_entropy(logits.flatten(0, -2), split.y.flatten()).item()
        return loss, 100.0 * (logits.argmax(-1) == split.y).float().mean().item()
