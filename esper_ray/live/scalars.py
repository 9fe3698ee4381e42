"""A grower's run as scalars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from envs.watch import HostWatch
from esper_ray.live.records import Decision


class ScalarWriter(Protocol):
    """What takes scalars: TensorBoard's ``SummaryWriter``, or anything with this method."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Take one number."""
        ...


def write_scalars(writer: ScalarWriter, decision: Decision, slots: Sequence[str], watch: HostWatch) -> None:
    """Write what an epoch gave, and how the seeds are as the next one begins.

    Args:
        writer: Takes them.
        decision: At the epoch's end.
        slots: Names of the model's.
        watch: Of the model.
    """
    life, measured = watch.lifecycle, watch.measurements
    scalars = {
        "grow/val_loss": decision.loss,
        "grow/val_accuracy": decision.accuracy,
        "grow/extra_parameters": float(decision.extra_parameters),
        "grow/op": float(decision.op),
    }
    for at, name in enumerate(slots):
        scalars[f"grow/alpha/{name}"] = float(life.alpha[0, at])
        scalars[f"grow/stage/{name}"] = float(life.stage[0, at])
        if not np.isnan(measured.contribution[0, at]):
            scalars[f"grow/contribution/{name}"] = float(measured.contribution[0, at])
    for tag, value in scalars.items():
        writer.add_scalar(tag, value, decision.epoch)
