"""Packets of real hosts that ship, for trials of policies: ``python -m esper_ray.controller.reference_packets FILE``.

Two small networks, of convolutions and of linear layers, train on scikit-learn's digits under a controller with the
heuristic policy; the packets are those that it has judged, evenly spread over both runs.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from esper_ray.controller.records import Record, Records
from esper_ray.controller.service import Controller
from esper_ray.controller.updates.shadow import SNAPSHOTS
from esper_ray.live import grow
from esper_ray.process import settle

EPOCHS = 48
BATCH, RATE, TRAINED_ON = 32, 0.05, 1200
_GZIP_LEVEL, _NO_TIME = 9, 0


def networks() -> dict[str, nn.Sequential]:
    """Name of a run → its network for digits; seeds can grow behind modules 1 and 3."""
    return {
        "reference-cnn": nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.GELU(),
            nn.BatchNorm2d(16),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 10),
        ),
        "reference-mlp": nn.Sequential(
            nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 10)
        ),
    }


def play(controller: Controller, run_id: str, network: nn.Sequential) -> None:
    """Train a network under a controller."""
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    if isinstance(network[0], nn.Conv2d):
        x = x.unflatten(1, (1, 8, 8))
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9)

    def evaluate() -> tuple[float, float]:
        logits = network(x[TRAINED_ON:])
        hits = (logits.argmax(1) == y[TRAINED_ON:]).float()
        return F.cross_entropy(logits, y[TRAINED_ON:]).item(), 100.0 * hits.mean().item()

    grower = grow(
        network,
        optimizer,
        ["1", "3"],
        example=x[:BATCH],
        evaluate=evaluate,
        max_epochs=EPOCHS,
        controller=controller.named(run_id),
    )
    for _ in range(EPOCHS):
        losses = [_step(network, optimizer, x[at], y[at]) for at in torch.randperm(TRAINED_ON).split(BATCH)]
        grower.end_epoch(training_loss=sum(losses) / len(losses), samples=TRAINED_ON)
    grower.commit()


def _step(network: nn.Sequential, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    loss = F.cross_entropy(network(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def packets() -> Iterator[dict[str, Any]]:
    """As many as a shadow run takes, in their order."""
    settle()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        directory, runs = Path(name), networks()
        with Controller("heuristic", directory) as controller:
            for run_id, network in runs.items():
                play(controller, run_id, network)
        with Records.open(directory) as records:
            for run_id in runs:
                judged = [one.decision for one in records.records(run_id) if isinstance(one, Record)]
                answered = [decision for decision in judged if decision.proposal is not None]
                count = SNAPSHOTS // len(runs)
                for at in range(count):
                    yield json.loads(answered[at * len(answered) // count].packet)


if __name__ == "__main__":
    content = json.dumps(list(packets()), separators=(",", ":")).encode()
    Path(sys.argv[1]).write_bytes(gzip.compress(content, _GZIP_LEVEL, mtime=_NO_TIME))
