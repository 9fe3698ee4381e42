"""Networks that were not made for us, written from their published definitions, and a loop that trains them."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from envs.live.places import Places
from envs.slots import SlotConfig
from envs.vocabulary import AlphaTarget, Blueprint, GerminationStyle, Tempo
from esper_ray.live import grow
from policies.schedule import GrowthPlan, GrowthSchedule
from policies.scripted import FixedSchedule

CLASSES = 4


class LeNet(nn.Module):
    """LeCun et al. 1998, for 16×16 images: 6 and 16 channels, 120 and 84 units."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.f1, self.f2, self.out = nn.Linear(64, 120), nn.Linear(120, 84), nn.Linear(84, CLASSES)

    def forward(self, x):
        x = F.avg_pool2d(torch.tanh(self.c1(x)), 2)
        x = F.avg_pool2d(torch.tanh(self.c2(x)), 2).flatten(1)
        return self.out(torch.tanh(self.f2(torch.tanh(self.f1(x)))))


class Residual(nn.Module):
    """A basic block of He et al. 2016."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs or stride > 1 else None

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + (x if self.down is None else self.down(x)))


def resnet():
    stem = nn.Sequential(nn.Conv2d(1, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10), nn.ReLU(inplace=True))
    body = nn.Sequential(Residual(10, 10, 1), Residual(10, 20, 2))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, CLASSES))
    return nn.Sequential(stem, body, head)


def separable():
    """Depthwise-separable convolutions, Howard et al. 2017."""

    def block(inputs, outputs, stride):
        return nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(inplace=True),
        )

    blocks = nn.Sequential(nn.Conv2d(1, 7, 3, 2, 1), block(7, 14, 1), block(14, 14, 1))
    return nn.Sequential(blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(14, CLASSES))


class Encoder(nn.Module):
    """``nn.TransformerEncoder`` over tokens, mean over time."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Embedding(11, 12)
        layer = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.1, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(12, CLASSES)

    def forward(self, tokens):
        x = self.embed(tokens)
        x = self.encoder(x if self.batch_first else x.transpose(0, 1))
        return self.out(x.mean(1 if self.batch_first else 0))


class LstmClassifier(nn.Module):
    """An LSTM between two linear layers."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner = nn.Embedding(11, 9), nn.Linear(9, 10)
        self.lstm, self.last, self.out = nn.LSTM(10, 10, batch_first=True), nn.Linear(10, 9), nn.Linear(9, CLASSES)

    def forward(self, tokens):
        states, _ = self.lstm(self.inner(self.embed(tokens)).relu())
        return self.out(self.last(states[:, -1]).relu())


class Tupled(nn.Module):
    """Blocks that return their features and something beside them."""

    class Block(nn.Module):
        def __init__(self, inputs):
            super().__init__()
            self.linear = nn.Linear(inputs, 8)

        def forward(self, x):
            return self.linear(x).relu(), {"seen": x.shape[0]}

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = self.Block(256), self.Block(8), nn.Linear(8, CLASSES)

    def forward(self, x):
        x, _ = self.a(x.flatten(1))
        x, beside = self.b(x)
        assert beside["seen"] == x.shape[0]
        return self.out(x)


def images(n, generator):
    """Classes are quadrants that are brighter."""
    x, y = torch.randn(n, 1, 16, 16, generator=generator), torch.arange(n) % CLASSES
    for row in range(n):
        top, left = 8 * int(y[row] // 2), 8 * int(y[row] % 2)
        x[row, 0, top : top + 8, left : left + 8] += 0.8
    return x, y


def tokens(n, generator):
    """Classes are tokens that occur more often."""
    x, y = torch.randint(0, 11, (n, 6), generator=generator), torch.arange(n) % CLASSES
    x[:, ::2] = y[:, None]
    return x, y


ARCHITECTURES = {
    "LeNet": (LeNet, images, ["c1", "c2"]),
    "residual": (resnet, images, ["0", "1.*"]),
    "depthwise-separable": (separable, images, ["0.0", "0.1", "0.2"]),
    "TransformerEncoder": (Encoder, tokens, ["encoder.layers.*"]),
    "TransformerEncoder, time first": (lambda: Encoder(batch_first=False), tokens, ["encoder.layers.*"]),
    "LSTM, its sequences": (LstmClassifier, tokens, ["inner"]),
    "LSTM, its last state": (LstmClassifier, tokens, ["last"]),
    "tuples": (Tupled, images, ["a", "b"]),
}
"""Model, data, slots."""


class Loop:
    """A model in somebody's training loop."""

    def __init__(self, model, data, optimizer=None, size=32, batch=16, seed=0, device="cpu"):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self.model = model().to(device)
        self.train_set, self.validation = (tuple(part.to(device) for part in data(size, generator)) for _ in range(2))
        build = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9))
        self.optimizer, self.batch = build(self.model.parameters()), batch

    def evaluate(self):
        x, y = self.validation
        logits = self.model(x)
        return F.cross_entropy(logits, y).item(), 100.0 * (logits.argmax(1) == y).float().mean().item()

    def epoch(self):
        x, y = self.train_set
        for index in torch.arange(len(y)).split(self.batch):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x[index]), y[index]).backward()
            self.optimizer.step()

    @property
    def example(self):
        return self.train_set[0][:3]


def schedule(slots, blueprint=Blueprint.NORM, style=GerminationStyle.LINEAR_ADD, epochs=24, every=1):
    """A policy that grows the same seed everywhere, one epoch after the other."""
    plans = (
        GrowthPlan(
            slot, blueprint, epoch=1 + every * slot, style=style, tempo=Tempo.FAST, alpha_target=AlphaTarget.FULL
        )
        for slot in range(slots)
    )
    return FixedSchedule(SlotConfig.for_row(slots), epochs, GrowthSchedule(tuple(plans)))


def places_of(loop, slots):
    """The places that names, globs and suffixes say."""
    return Places(loop.model, loop.example).chosen(slots)


def growing(loop, slots, policy=None, epochs=24, **keywords):
    policy = policy or schedule(len(slots), epochs=epochs)
    return grow(
        loop.model,
        loop.optimizer,
        slots,
        example=loop.example,
        evaluate=loop.evaluate,
        max_epochs=epochs,
        policy=policy,
        **keywords,
    )


def state_of(model, optimizer):
    """Everything that a refusal must leave as it is: values of the model, its hooks, groups and state."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    modes = [module.training for module in model.modules()]
    groups = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    hooked = len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)
    return tensors, (hooks, modes, groups, hooked, torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())  # noqa: NPY002


def same_state(before, after):
    (tensors, rest), (others, their_rest) = before, after
    return (
        rest == their_rest
        and tensors.keys() == others.keys()
        and all(torch.equal(tensors[k], others[k]) for k in tensors)
    )
