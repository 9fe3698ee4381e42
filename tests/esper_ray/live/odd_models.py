"""Small models that do what is allowed and seldom thought of; each reads images of 16×16."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.esper_ray.live.models import CLASSES


class Prompted(nn.Module):
    """Parts that give a frozen parameter and a buffer as they are."""

    class Prompt(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 8), requires_grad=False)

        def forward(self):
            return self.weight

    class Position(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.register_buffer("table", torch.randn(8))

        def forward(self):
            return self.table

    def __init__(self):
        super().__init__()
        self.prompt, self.position = self.Prompt(), self.Position()
        self.a, self.out = nn.Linear(256, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out(F.relu(self.a(x.flatten(1)) + self.prompt().mean(0) + self.position()))


class Counting(nn.Module):
    """Buffers that a forward writes, in each way there is, whatever the mode."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(256, CLASSES)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(256))
        self.register_buffer("largest", torch.zeros(256))
        self.register_buffer("sparse", torch.eye(4).to_sparse())

    def forward(self, x):
        x = x.flatten(1)
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.largest.data.copy_(torch.maximum(self.largest, x.detach().amax(0)))
        return self.a(x - self.mean) / self.calls.sqrt()


class Checkpointed(nn.Module):
    """A block that is computed again in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(256, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out, self.reentrant = nn.Linear(8, CLASSES), reentrant

    def block(self, x):
        return F.gelu(self.c(F.relu(self.b(x))))

    def forward(self, x):
        return self.out(checkpoint(self.block, self.a(x.flatten(1)), use_reentrant=self.reentrant))


class FrozenBackbone(nn.Module):
    """A frozen part that runs where there are no gradients, and outside of torch."""

    def __init__(self, no_gradients):
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.GELU(), nn.Linear(8, 8), nn.ReLU())
        self.out, self.no_gradients = nn.Linear(8, CLASSES), no_gradients
        self.backbone.requires_grad_(False)

    def forward(self, x):
        with self.no_gradients():
            features = torch.from_numpy(self.backbone[:4](x).numpy().copy()) + self.backbone(x)
        return self.out(features.clone())


class Dataclassed(nn.Module):
    """Features in a dataclass."""

    @dataclass
    class Features:
        seen: int
        hidden: torch.Tensor

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(256, 8) / 16)

        def forward(self, x):
            return Dataclassed.Features(len(x), x.flatten(1) @ self.weight)

    def __init__(self):
        super().__init__()
        self.encoder, self.out = self.Encoder(), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out(self.encoder(x).hidden)


ODD = {
    "frozen parameter and buffer": Prompted,
    "buffers written": Counting,
    "checkpoint": lambda: Checkpointed(reentrant=False),
    "reentrant checkpoint": lambda: Checkpointed(reentrant=True),
    "no_grad": lambda: FrozenBackbone(torch.no_grad),
    "inference_mode": lambda: FrozenBackbone(torch.inference_mode),
    "dataclass": Dataclassed,
    "float64": lambda: nn.Sequential(Double(), nn.Flatten(), nn.Linear(256, CLASSES)).double(),
}


class Double(nn.Module):
    """Reads images as a model of float64 does."""

    def forward(self, x):
        return x.double()
