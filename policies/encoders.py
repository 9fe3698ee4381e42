"""What the network reads of an observation: one small protocol, and an encoder for each kind of world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from gymnasium import spaces
from torch import Tensor, nn

from policies.observation_scale import ObservationScale


class ObservationEncoder(Protocol):
    """Turns an observation into the vector that the network's first layer reads.

    An encoder is an ``nn.Module``: the network takes it in, trains it and stores it.

    Attributes:
        width: Length of the vector.
        scale: Of the numbers under ``obs``; the learner shows it those of every rollout.
    """

    width: int
    scale: ObservationScale

    def __call__(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Encode observation leaves ``[..., n]`` as float ``[..., width]``."""
        ...


EncoderFactory = Callable[[spaces.Dict], ObservationEncoder]
"""Makes a fresh encoder for an observation space. It travels in configs, so it must pickle: a function of a module,
a class method, or a ``functools.partial`` of one."""


class FlatEncoder(nn.Module):
    """Reads the vector under ``obs``, each number on the scale of those seen so far.

    Args:
        num_features: Its length.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.width = num_features
        self.scale = ObservationScale(num_features)

    @classmethod
    def from_space(cls, space: spaces.Dict) -> FlatEncoder:
        """The encoder of a space whose ``obs`` is a vector."""
        return cls(_vector_length(space))

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """See :class:`ObservationEncoder`."""
        scaled: Tensor = self.scale(obs["obs"].float())
        return scaled


class BlueprintEncoder(nn.Module):
    """Obs V3: the scaled vector under ``obs``, and a learned embedding of the blueprint in every slot.

    ``blueprint_indices`` are int64 ``[..., num_slots]`` in -1 … num_blueprints - 1, where -1 is an empty slot.

    Args:
        num_features: Length of the vector.
        num_slots: Slots per host.
        num_blueprints: Kinds of blueprint, without the empty slot.
        embedding_dim: Numbers per slot.
    """

    def __init__(self, num_features: int, num_slots: int, num_blueprints: int, embedding_dim: int) -> None:
        super().__init__()
        self.width = num_features + num_slots * embedding_dim
        self.scale = ObservationScale(num_features)
        self.num_blueprints = num_blueprints
        # One row more than there are blueprints: the last one stands for an empty slot.
        self.blueprint_embedding = nn.Embedding(num_blueprints + 1, embedding_dim)
        nn.init.normal_(self.blueprint_embedding.weight, std=0.02)

    @classmethod
    def from_space(cls, space: spaces.Dict, embedding_dim: int) -> BlueprintEncoder:
        """The encoder of the world's observation space."""
        indices = space["blueprint_indices"]
        if not isinstance(indices, spaces.Box):
            raise ValueError(f"blueprint_indices must be a Box of indices, one per slot, got {indices}")
        return cls(_vector_length(space), indices.shape[0], int(indices.high.max()) + 1, embedding_dim)

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """See :class:`ObservationEncoder`."""
        indices = obs["blueprint_indices"].long()
        rows = torch.where(indices < 0, self.num_blueprints, indices)
        embedded = self.blueprint_embedding(rows).flatten(start_dim=-2)
        return torch.cat([self.scale(obs["obs"].float()), embedded], dim=-1)


def _vector_length(space: spaces.Dict) -> int:
    vector = space["obs"]
    if not isinstance(vector, spaces.Box) or len(vector.shape) != 1:
        raise ValueError(f"obs must be a Box with one axis, got {vector}")
    return vector.shape[0]
