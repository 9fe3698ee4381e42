"""Rows of numbers: the pixels of scikit-learn's digits as 64 columns, for an MLP host."""

from __future__ import annotations

from envs.hosts.mlp import MlpHost, MlpVariant
from envs.slots import SlotConfig
from envs.tasks.base import Split, Task
from envs.tasks.digits import NUM_CLASSES, digits_splits

COLUMNS = 64
IMPAIRED = MlpVariant(width=4, hidden=(1, 1, 1))


def tabular() -> Task:
    """A host that squeezes every row into four features and has next to no hidden units to bend them with.

    Of the bundled data the digits were chosen for size: wine and breast cancer leave about 36 and 114 validation rows,
    too few to measure a seed by. Ten classes in four features need a nonlinear map: an MLP seed gains a few points,
    LORA, being linear, next to nothing (docs/blueprints.md).
    """
    return Task(
        name="tabular",
        host=MlpHost(IMPAIRED, COLUMNS, NUM_CLASSES),
        variants=(IMPAIRED,),
        slots=SlotConfig.for_row(len(IMPAIRED.hidden)),
        num_classes=NUM_CLASSES,
        splits={name: Split(split.x.flatten(1), split.y) for name, split in digits_splits().items()},
    )
