"""A residual multi-layer perceptron with a slot after each block."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from envs.batched.activations import VECTORS
from envs.batched.dense_layers import dense, layer_norm
from envs.batched.parameters import Init, ParameterSpec, ParameterSpecs, matrix_flops
from envs.hosts.base import Observe
from envs.hosts.residual import (
    block_layers,
    block_parameters,
    dense_layer,
    feed_forward,
    norm_layer,
    norm_parameters,
)
from envs.hosts.structure import HostLayer


@dataclass(frozen=True)
class MlpVariant:
    """Size of one MLP host.

    Attributes:
        width: Features of the residual stream.
        hidden: Hidden units of each segment, which is one residual block.

    Raises:
        ValueError: no segment, or a size below its minimum.
    """

    width: int
    hidden: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.width < 2:
            raise ValueError(f"width must be at least 2, got {self.width}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must name one or more segments of at least 1 unit, got {self.hidden}")

    @classmethod
    def widest(cls, variants: tuple[MlpVariant, ...]) -> MlpVariant:
        """The smallest size that holds every variant.

        Only ``hidden`` may differ: an absent hidden unit is 0 and stays 0 by itself, an absent feature would not
        (layer norm would count it).

        Raises:
            ValueError: the variants differ in width or in the number of segments.
        """
        if len({(variant.width, len(variant.hidden)) for variant in variants}) != 1:
            raise ValueError(
                f"the MLP variants of one task must have the same width and number of segments, got {variants}"
            )
        hidden = tuple(max(sizes) for sizes in zip(*(variant.hidden for variant in variants), strict=True))
        return replace(variants[0], hidden=hidden)


class MlpHost:
    """Linear embedding of the inputs, pre-norm residual blocks, layer norm, linear output (Gorishniy et al. 2021).

    Args:
        widest: Size that holds every member.
        num_inputs: Features of a sample.
        num_classes: Outputs.
    """

    topology = "mlp"
    activations = VECTORS

    def __init__(self, widest: MlpVariant, num_inputs: int, num_classes: int) -> None:
        self.widest = widest
        self.num_inputs, self.num_classes = num_inputs, num_classes

    @property
    def num_slots(self) -> int:
        """One slot after each segment."""
        return len(self.widest.hidden)

    def parameters(self, variant: MlpVariant) -> ParameterSpecs:
        """See :class:`envs.hosts.base.Host`."""
        width = variant.width
        specs: ParameterSpecs = {
            "embed_weight": ParameterSpec((width, self.num_inputs), Init.UNIFORM),
            "embed_bias": ParameterSpec((width,), Init.ZEROS),
        }
        for segment, hidden in enumerate(variant.hidden):
            specs |= block_parameters(f"segment{segment}", width, hidden)
        specs |= norm_parameters("final_norm", width)
        specs["head_weight"] = ParameterSpec((self.num_classes, width), Init.UNIFORM)
        specs["head_bias"] = ParameterSpec((self.num_classes,), Init.ZEROS)
        return specs

    def buffers(self, variant: MlpVariant) -> ParameterSpecs:
        """None: layer norm keeps no statistics."""
        return {}

    def slot_width(self, variant: MlpVariant, slot: int) -> int:
        """See :class:`envs.hosts.base.Host`."""
        return variant.width

    def places(self, sample_shape: tuple[int, ...], slot: int) -> int:
        """One: a sample is a vector."""
        return 1

    def segment_flops(self, variant: MlpVariant, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        """See :class:`envs.hosts.base.Host`."""
        specs = self.parameters(variant)
        embed, head = (matrix_flops({name: specs[name]}, 1) for name in ("embed_weight", "head_weight"))
        first, *others = (matrix_flops(block_parameters("", variant.width, hidden), 1) for hidden in variant.hidden)
        return (embed + first, *others, head)

    def layers(self, variant: MlpVariant) -> tuple[HostLayer, ...]:
        """See :class:`envs.hosts.base.Host`; what reads the residual stream reads all that was added to it."""
        layers = [dense_layer("embed", 0, ())]
        stream: tuple[str, ...] = ("embed",)
        for segment in range(self.num_slots):
            layers += block_layers(f"segment{segment}", segment, stream)
            stream += (layers[-1].name,)
        last = self.num_slots
        return (*layers, norm_layer("final_norm", last, stream), dense_layer("head", last, ("final_norm",)))

    def layer_places(self, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        """One each: a sample is a vector."""
        return (1,) * len(self.layers(self.widest))

    def segment(
        self,
        slot: int,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        x: Tensor,
        training: bool,
        observe: Observe | None = None,
    ) -> Tensor:
        """See :class:`envs.hosts.base.Host`; samples are ``[M, B, F]``, shared ones ``[B, F]``."""
        p, h = parameters, x
        if slot == 0:
            h = dense(x.expand(len(p["embed_weight"]), *x.shape[-2:]), p["embed_weight"], p["embed_bias"])
        return h + feed_forward(p, f"segment{slot}", h, observe)

    def head(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """See :class:`envs.hosts.base.Host`."""
        p = parameters
        return dense(layer_norm(x, p["final_norm_weight"], p["final_norm_bias"]), p["head_weight"], p["head_bias"])
