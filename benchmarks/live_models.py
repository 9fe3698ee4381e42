"""Networks that were not made for the policies, in plain training loops on bundled data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.graph.measurements import ACTIVITY_SAMPLES
from envs.tasks import make_task
from envs.tasks.base import SplitName

LEARNING_RATE = 1e-3


class LeNet(nn.Module):
    """LeCun et al. 1998, with 3×3 instead of 5×5 in the second layer: the digits have 8×8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 3, padding=1)
        self.f1, self.f2, self.out = nn.Linear(64, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, 10]`` of images ``[B, 1, 8, 8]``."""
        x = F.max_pool2d(self.c1(x).relu(), 2)
        x = F.max_pool2d(self.c2(x).relu(), 2).flatten(1)
        return self.out(self.f2(self.f1(x).relu()).relu())


class Decoder(nn.Module):
    """Two pre-norm decoder layers of width 24 over characters."""

    def __init__(self, vocabulary: int, context: int, width: int = 24) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(vocabulary, width), nn.Parameter(torch.zeros(context, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[B, L, vocabulary]`` of tokens ``[B, L]``."""
        x = self.embed(tokens) + self.position
        for layer in self.layers:
            x = layer(x, src_mask=self.mask, is_causal=True)
        return self.out(self.norm(x))


def small_cnn() -> nn.Module:
    """Two convolutions of 8 channels and a linear layer over their means, as in ``examples/digits_cnn.py``."""
    body = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def mlp() -> nn.Module:
    """64-16-16-10."""
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))


def narrow_mlp() -> nn.Module:
    """64-4-4-10: what it lacks, a seed can bring."""
    return nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 10))


@dataclass(frozen=True)
class Setup:
    """A model, its data and where it can grow.

    Attributes:
        task: Whose data are taken.
        build: Makes the model.
        slots: Names of modules.
        steps: Mini-batches in an epoch; None: a pass over the training set.
    """

    task: str
    build: Callable[[], nn.Module]
    slots: tuple[str, ...]
    steps: int | None = None


def _decoder() -> nn.Module:
    task = make_task("text")
    return Decoder(task.num_classes, task.splits["train"].x.shape[1])


SETUPS = {
    "small CNN": Setup("digits", small_cnn, ("1", "4")),
    "LeNet": Setup("digits", LeNet, ("c1", "c2")),
    "MLP": Setup("tabular", mlp, ("0", "2")),
    "narrow MLP": Setup("tabular", narrow_mlp, ("0", "2")),
    "decoder": Setup("text", _decoder, ("layers.*",), steps=32),
}


class Loop:
    """Somebody's training: AdamW at a constant rate, batches of 32.

    Args:
        setup: What is trained.
        seed: Of weights and batches.
    """

    def __init__(self, setup: Setup, seed: int) -> None:
        torch.manual_seed(seed)
        self.setup, self.model = setup, setup.build()
        splits = make_task(setup.task).splits
        self.splits = {name: (_channels_first(split.x), split.y) for name, split in splits.items()}
        self._generator = torch.Generator().manual_seed(seed)
        self.renew_optimizer()

    def renew_optimizer(self) -> None:
        """Train whatever parameters the model has now, from the start."""
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)

    @property
    def example(self) -> Tensor:
        """Inputs."""
        return self.splits["train"][0][:ACTIVITY_SAMPLES]

    def epoch(self) -> None:
        """Train for one epoch."""
        for x, y in self._batches():
            loss = F.cross_entropy(self.model(x).flatten(0, -2), y.flatten())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.splits["train"]
        order = torch.randperm(len(y), generator=self._generator)
        for index in list(order.split(32))[: self.setup.steps]:
            yield x[index], y[index]

    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy in percent on the validation split."""
        return self._on("validation")

    def tested(self) -> float:
        """Accuracy in percent on the test split, of the model in mode ``eval``."""
        self.model.eval()
        with torch.no_grad():
            return self._on("test")[1]

    def _on(self, split: SplitName) -> tuple[float, float]:
        loss, hits, x, y = 0.0, 0, *self.splits[split]
        for xs, ys in zip(x.split(256), y.split(256), strict=True):
            logits = self.model(xs)
            loss += F.cross_entropy(logits.flatten(0, -2), ys.flatten(), reduction="sum").item()
            hits += int((logits.argmax(-1) == ys).sum())
        return loss / y.numel(), 100.0 * hits / y.numel()


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2).contiguous() if x.dim() == 4 else x
