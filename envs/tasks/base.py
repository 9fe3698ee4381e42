"""What a task is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from envs.batched.augmentation import CropAndFlip
from envs.hosts.base import Host
from envs.slots import SlotConfig

SplitName = Literal["train", "validation", "test"]


class TaskError(ValueError):
    """A task that its user can mend: unknown, wrong arguments, data that are absent or not the expected ones.

    The message is one line that says what is wrong, its value, and what to do; the command line prints it as it is.
    """


@dataclass(frozen=True)
class Split:
    """Samples and labels.

    Attributes:
        x: Images ``[n, H, W, C]`` float32, token sequences ``[n, L]`` int64 or vectors ``[n, F]`` float32.
        y: ``[n]`` int64; for sequences the next tokens ``[n, L]``.
    """

    x: Tensor
    y: Tensor


class LazySplits(Mapping[SplitName, Split]):
    """Splits that are read at their first use, so that a task's sizes are known without its data.

    Args:
        load: Reads all splits; called at most once.
    """

    def __init__(self, load: Callable[[], Mapping[SplitName, Split]]) -> None:
        self._load = load

    @cached_property
    def _splits(self) -> Mapping[SplitName, Split]:
        return self._load()

    def __getitem__(self, name: SplitName) -> Split:
        return self._splits[name]

    def __iter__(self) -> Iterator[SplitName]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)


@dataclass(frozen=True)
class Task:
    """Data, the hosts that are trained on it, and the terms of their training.

    Attributes:
        name: Key in the registry.
        host: The base network, made for a size that holds every variant (``widest`` of their class says which).
        variants: Sizes that an episode's host is drawn from, uniformly.
        slots: Where seeds can grow.
        num_classes: Labels.
        splits: ``train`` is trained on; rewards, gates and observations see only ``validation``; ``test`` is read
            for reports alone. Data that are large, or may be absent, come as :class:`LazySplits`.
        parameter_rent: λ, score lost per doubling of the parameters.
        path_rent: κ, score lost per living seed.
        batch_size: Samples in a mini-batch.
        batches_per_epoch: Mini-batches in an epoch, that is in one env step.
        lr: Learning rate of the first epoch.
        lr_spread: Factor by which an episode's host may learn faster or slower: its rate is ``lr`` times
            ``lr_spread`` to a power drawn uniformly between −1 and 1. 1: all alike.
        final_lr_share: Share of ``lr`` that the cosine schedule ends at. A constant rate would make the last
            epochs' accuracy jump by ±10 points.
        augment: Random change of each training image; None for none.
    """

    name: str
    host: Host[Any]
    variants: tuple[Any, ...]
    slots: SlotConfig
    num_classes: int
    splits: Mapping[SplitName, Split]
    parameter_rent: float = 0.03
    path_rent: float = 0.0
    batch_size: int = 32
    batches_per_epoch: int = 8
    lr: float = 0.02
    lr_spread: float = 1.0
    final_lr_share: float = 0.05
    augment: CropAndFlip | None = None

    def __post_init__(self) -> None:
        if not self.variants:
            raise ValueError(f"task {self.name!r} has no host variants: give at least one")
        if not 1.0 <= self.lr_spread < math.inf:
            raise ValueError(f"lr_spread of task {self.name!r} must be a number of at least 1, got {self.lr_spread}")
        widest = type(self.host.widest).widest((self.host.widest, *self.variants))
        if widest != self.host.widest:
            raise ValueError(
                f"the host of task {self.name!r} is made for {self.host.widest}, but its variants need {widest}: "
                "make it for these"
            )
        if self.slots.num_slots != self.host.num_slots:
            raise ValueError(
                f"task {self.name!r} names {self.slots.num_slots} slots but its host has {self.host.num_slots}"
            )

    def check_data(self) -> None:
        """Read the data, and look whether hosts can be trained on them.

        Raises:
            TaskError: a split is missing or empty, or its labels do not fit.
        """
        for name in get_args(SplitName):
            if name not in self.splits:
                raise TaskError(f"task {self.name!r} has no split {name!r}: give {', '.join(get_args(SplitName))}")
            x, y = self.splits[name].x, self.splits[name].y
            if not len(y) or len(x) != len(y):
                raise TaskError(
                    f"the split {name!r} of task {self.name!r} must have one or more samples and a label for each, "
                    f"got {len(x)} samples and {len(y)} labels"
                )
            if y.dtype != torch.int64:
                raise TaskError(f"the labels of split {name!r} of task {self.name!r} must be int64, got {y.dtype}")
            least, most = int(y.min()), int(y.max())
            if least < 0 or most >= self.num_classes:
                raise TaskError(
                    f"the labels of split {name!r} of task {self.name!r} must be 0 to {self.num_classes - 1}, as "
                    f"num_classes says, got {least} to {most}"
                )
            if x.is_floating_point() and not x.isfinite().all():
                raise TaskError(f"the samples of split {name!r} of task {self.name!r} hold numbers that are not finite")

    @cached_property
    def chance_accuracy(self) -> float:
        """Accuracy of always guessing the commonest training label, in percent.

        Where labels are balanced that is one in ``num_classes``; in a text it is the share of blanks.
        """
        labels = self.splits["train"].y.flatten()
        return 100.0 * int(torch.bincount(labels).max()) / len(labels)

    def learning_rate(self, progress: float) -> float:
        """Rate after this share (0 to 1) of an episode: half a cosine from ``lr`` to ``final_lr_share·lr``.

        A host of its own rate has this times its factor (see ``lr_spread``).
        """
        share = self.final_lr_share + (1.0 - self.final_lr_share) * 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.lr * share
