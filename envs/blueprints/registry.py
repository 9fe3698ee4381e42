"""Which blueprints a topology has."""

from __future__ import annotations

from collections.abc import Iterable

from envs.blueprints.base import SeedModule
from envs.blueprints.channelwise import NormBlend, SqueezeExcite
from envs.blueprints.convolutional import Bottleneck, Depthwise, NormalisedConv
from envs.blueprints.featurewise import LayerNormBlend, LowRank, Mlp
from envs.blueprints.ladder import ConvLadder
from envs.blueprints.token_mixing import WINDOW, CausalAttention
from envs.vocabulary import INTERNAL_MAX_LEVEL, Blueprint, SeedInternalKind

_FEATUREWISE: dict[Blueprint, SeedModule] = {
    Blueprint.NORM: LayerNormBlend(),
    Blueprint.LORA: LowRank(rank=8),
    Blueprint.LORA_LARGE: LowRank(rank=32),
    Blueprint.MLP_SMALL: Mlp(expansion=2),
    Blueprint.MLP: Mlp(expansion=4),
}

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
    "transformer": {
        **_FEATUREWISE,
        Blueprint.ATTENTION: CausalAttention(),
        Blueprint.FLEX_ATTENTION: CausalAttention(window=WINDOW),
    },
    "mlp": _FEATUREWISE,
}


def blueprints_for(topology: str, among: Iterable[Blueprint] = tuple(Blueprint)) -> dict[Blueprint, SeedModule]:
    """The blueprints that fit a topology.

    Args:
        topology: Of the host.
        among: Kinds that exist in the task (``SlotConfig.blueprints``).

    Raises:
        ValueError: no such topology.
    """
    if topology not in _BY_TOPOLOGY:
        raise ValueError(f"unknown topology {topology!r}: choose one of {sorted(_BY_TOPOLOGY)}")
    modules = _BY_TOPOLOGY[topology]
    return {blueprint: modules[blueprint] for blueprint in among if blueprint in modules}
