"""What a policy's network is made of, known without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

import tyro

from envs.ranges import LARGEST, Finite, Range, check_numbers

COLDEST = 0.01
"""Logits that differ by one are a factor of e^100 apart here, so that nothing is left to chance; far below, float32
would overflow."""

Temperature = Annotated[float, Range(COLDEST, LARGEST)]
Width = Annotated[int, Range(1, 2**16, whole=True)]
Kind = Literal["flat", "graph"]
KIND_FLAG = "network.kind"
"""What the kind is called among all settings, where ``kind`` would not say of what."""


@dataclass(frozen=True)
class NetworkConfig:
    """What the network is, its widths and how it is played; the number of choices and features comes from the world."""

    feature_dim: Width = 512
    """Width of the feature net, which reads the observation before the LSTM."""
    hidden_dim: Width = 512
    """Width of the LSTM's hidden and cell state."""
    head_dim: Annotated[int, Range(2, 2**16, whole=True)] = 256
    """Hidden width of each head and of both critic streams; a deep head uses twice and half of it."""
    embedding_dim: Width = 4
    """Numbers per slot that stand for the blueprint growing in it."""
    op_bias: Mapping[str, Finite] = field(default_factory=dict)
    """Logits that ops start with, by name; the others start at 0."""
    deep_heads: tuple[str, ...] = ("blueprint",)
    """Heads with three layers instead of two, by name."""
    memory: bool = True
    """Whether there is an LSTM; without it the policy knows the present observation only."""
    play_temperature: Temperature = 1.0
    """Temperature at which the policy draws its actions wherever it does not explore: in evaluations, replays, exports
    and the service. Below 1 it takes the likelier ones more often. Rollouts of training explore at 1."""

    kind: Annotated[Kind, tyro.conf.arg(name=KIND_FLAG)] = "flat"
    """flat reads the numbers of one world with as many slots as that has, by an LSTM; graph reads hosts of any layers
    and any number of slots as graphs, and remembers nothing."""
    sage_width: Annotated[int, Range(2, 2**12, whole=True)] = 256
    """Of a graph network: width of its encoders, its two SAGE layers and its heads."""
    gat_width: Annotated[int, Range(2, 2**12, whole=True)] = 128
    """Of a graph network: width of its two GAT layers, and so of what the heads read of a node."""
    attention_heads: Annotated[int, Range(1, 64, whole=True)] = 4
    """Of a graph network: heads of each GAT layer, whose mean is taken."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.kind not in get_args(Kind):
            raise ValueError(f"the kind of a network must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
