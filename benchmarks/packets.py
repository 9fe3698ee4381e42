"""Packets of live runs, as a probe measures them."""

from __future__ import annotations

import torch
from torch import nn

from envs.live.task_host import TaskLoop
from envs.tasks import make_task
from esper_ray.live import grow
from esper_ray.live.policies import SHIPPED
from esper_ray.live.probe import Probe
from policies.strategic.messages import SystemState

LAYERS, WIDTH = 128, 16
"""Of the deep model."""


def digits_packets() -> list[SystemState]:
    """Of a host of digits while the shipped policy grows it."""
    task, epochs = make_task("digits_impaired"), 30
    loop = TaskLoop(task, epochs, seed=0)
    grower = grow(**loop.given, policy=SHIPPED / "images")
    probe = Probe(loop.model, loop.optimizer, loop.example, grower=grower)
    packets = []
    for _ in range(epochs - 1):
        loss = loop.epoch()
        grower.end_epoch()
        packets.append(probe.end_epoch(training_loss=loss, samples=loop.samples))
    return packets


def deep_packets() -> list[SystemState]:
    """Of a model with as many layers as a packet has at most."""
    model = nn.Sequential(*(part for _ in range(LAYERS) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.01), torch.randn(32, WIDTH)
    grower = grow(
        model,
        optimizer,
        ["0", "2", "4"],
        example=x,
        evaluate=lambda: (model(x).square().mean().item(), 50.0),
        max_epochs=12,
        policy="never_grow",
    )
    probe = Probe(model, optimizer, x, grower=grower)
    packets = []
    for _ in range(11):
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        grower.end_epoch()
        packets.append(probe.end_epoch())
    return packets
