"""Rows of numbers: the pixels of scikit-learn's digits as 64 columns, for an MLP host."""

from __future__ import annotations

from envs.hosts.mlp import MlpHost, MlpVariant
from envs.slots import SlotConfig
from envs.tasks.base import Split, Task
from envs.tasks.digits import digits_splits
from envs.tasks.handwritten import NUM_CLASSES

COLUMNS = 64
IMPAIRED = MlpVariant(width=4, hidden=(1, 1, 1))
WIDE = MlpVariant(width=16, hidden=(8, 8, 8))


def tabular() -> Task:
    """A host that squeezes every row into four features and has next to no hidden units to bend them with.

    Of the bundled data the digits were chosen for size: wine and breast cancer leave about 36 and 114 validation rows,
    too few to measure a seed by. Ten classes in four features need a nonlinear map: an MLP seed gains a few points,
    LORA, being linear, next to nothing (docs/blueprints.md).
    """
    return _tabular("tabular", IMPAIRED)


def tabular_wide() -> Task:
    """A host of four times the width and eight times the hidden units, which is best left alone.

    A task of its own, since the hosts of one MLP task have one width.
    """
    return _tabular("tabular_wide", WIDE)


def _tabular(name: str, variant: MlpVariant) -> Task:
    return Task(
        name=name,
        host=MlpHost(variant, COLUMNS, NUM_CLASSES),
        variants=(variant,),
        slots=SlotConfig.for_row(len(variant.hidden)),
        num_classes=NUM_CLASSES,
        splits={name: Split(split.x.flatten(1), split.y) for name, split in digits_splits().items()},
    )
