"""What the strategic policy's network is made of, known without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from envs.ranges import Finite, Range, check_numbers

Width = Annotated[int, Range(2, 2**12, whole=True)]


@dataclass(frozen=True)
class GraphNetworkConfig:
    """Widths and the like; nothing here depends on a world's layers, slots, ops or blueprints."""

    sage_width: Width = 256
    """Width of the encoders, of the two SAGE layers and of the heads' hidden layers; activation nodes are encoded to
    half of it."""
    gat_width: Width = 128
    """Width of the two GAT layers, and so of what the heads read of a node."""
    attention_heads: Annotated[int, Range(1, 64, whole=True)] = 4
    """Of each GAT layer; their mean is taken."""
    dropout: Annotated[float, Range(0.0, 0.9)] = 0.2
    """After each layer, in imitation only."""
    op_bias: Mapping[str, Finite] = field(default_factory=dict)
    """Logits that ops start with, by name; the others start at 0."""

    def __post_init__(self) -> None:
        check_numbers(self)


SMALL = GraphNetworkConfig(sage_width=64, gat_width=32)
"""What two cores train."""
