"""Which blueprints a topology has."""

from __future__ import annotations

from envs.blueprints.base import SeedModule
from envs.blueprints.channelwise import NormBlend, SqueezeExcite
from envs.blueprints.convolutional import Bottleneck, Depthwise, NormalisedConv
from envs.blueprints.ladder import ConvLadder
from envs.vocabulary import INTERNAL_MAX_LEVEL, Blueprint, SeedInternalKind

_BY_TOPOLOGY: dict[str, dict[Blueprint, SeedModule]] = {
    "cnn": {
        Blueprint.CONV_LIGHT: NormalisedConv(kernel=3, depth=1),
        Blueprint.ATTENTION: SqueezeExcite(),
        Blueprint.NORM: NormBlend(),
        Blueprint.DEPTHWISE: Depthwise(),
        Blueprint.BOTTLENECK: Bottleneck(),
        Blueprint.CONV_SMALL: NormalisedConv(kernel=1, depth=1),
        Blueprint.CONV_HEAVY: NormalisedConv(kernel=3, depth=2),
        Blueprint.CONV_LADDER: ConvLadder(INTERNAL_MAX_LEVEL[SeedInternalKind.CONV_LADDER]),
    },
}


def blueprints_for(topology: str) -> dict[Blueprint, SeedModule]:
    """The blueprints that fit a topology.

    Raises:
        ValueError: no such topology.
    """
    if topology not in _BY_TOPOLOGY:
        raise ValueError(f"unknown topology {topology!r}: choose one of {sorted(_BY_TOPOLOGY)}")
    return _BY_TOPOLOGY[topology]
