"""A small pre-norm transformer decoder with a slot after each segment."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from envs.batched.activations import SEQUENCES
from envs.batched.dense_layers import attention_flops, dense, embed, layer_norm, self_attention
from envs.batched.parameters import Init, ParameterSpec, ParameterSpecs, matrix_flops
from envs.hosts.base import Observe
from envs.hosts.residual import block_layers, block_parameters, feed_forward, norm_layer, norm_parameters
from envs.hosts.structure import EMBEDDING, HostLayer


@dataclass(frozen=True)
class TransformerVariant:
    """Size of one transformer host.

    Attributes:
        width: Features of a token.
        heads: Attention heads, a divisor of ``width``.
        layers: Layers of each segment.
        hidden: Hidden units of each segment's MLPs.
        attends: Whether each segment's layers have attention; one without is *impaired* (it cannot mix tokens).

    Raises:
        ValueError: a size below its minimum, heads that do not divide the width, or lengths that differ.
    """

    width: int
    heads: int
    layers: tuple[int, ...]
    hidden: tuple[int, ...]
    attends: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not self.layers or not len(self.layers) == len(self.hidden) == len(self.attends):
            raise ValueError(
                f"layers {self.layers}, hidden {self.hidden} and attends {self.attends} must name the same one or "
                "more segments"
            )
        if min(self.layers) < 1 or min(self.hidden) < 1:
            raise ValueError(f"layers and hidden must be at least 1, got {self.layers} and {self.hidden}")
        if self.width < 2 or self.heads < 1 or self.width % self.heads:
            raise ValueError(f"heads must divide a width of at least 2, got {self.heads} heads and width {self.width}")

    @classmethod
    def widest(cls, variants: tuple[TransformerVariant, ...]) -> TransformerVariant:
        """The smallest size that holds every variant.

        Only ``hidden`` may differ: an absent hidden unit is 0 and stays 0 by itself, an absent feature would not
        (layer norm would count it).

        Raises:
            ValueError: the variants differ in anything else.
        """
        hidden = tuple(max(sizes) for sizes in zip(*(variant.hidden for variant in variants), strict=True))
        if len({replace(variant, hidden=hidden) for variant in variants}) != 1:
            raise ValueError(f"the transformer variants of one task may differ in hidden alone, got {variants}")
        return replace(variants[0], hidden=hidden)


class TransformerHost:
    """Pre-norm decoder: learned positions, causal attention, and an output head tied to the token embedding.

    Design: Radford et al. 2019 (GPT-2), without dropout and without biases of the attention.

    Args:
        widest: Size that holds every member.
        vocabulary: Number of tokens.
        context: Longest sequence.
    """

    topology = "transformer"
    activations = SEQUENCES

    def __init__(self, widest: TransformerVariant, vocabulary: int, context: int) -> None:
        self.widest = widest
        self.vocabulary, self.context = vocabulary, context

    @property
    def num_slots(self) -> int:
        """One slot after each segment."""
        return len(self.widest.layers)

    def parameters(self, variant: TransformerVariant) -> ParameterSpecs:
        """See :class:`envs.hosts.base.Host`."""
        width = variant.width
        specs: ParameterSpecs = {
            "tokens": ParameterSpec((self.vocabulary, width), Init.UNIFORM),
            "positions": ParameterSpec((self.context, width), Init.UNIFORM),
        }
        for segment, layers in enumerate(variant.layers):
            for layer in range(layers):
                name = f"segment{segment}_layer{layer}"
                if variant.attends[segment]:
                    specs |= _attention(f"{name}_attention", width)
                specs |= block_parameters(f"{name}_mlp", width, variant.hidden[segment])
        return specs | norm_parameters("final_norm", width)

    def buffers(self, variant: TransformerVariant) -> ParameterSpecs:
        """None: layer norm keeps no statistics."""
        return {}

    def slot_width(self, variant: TransformerVariant, slot: int) -> int:
        """See :class:`envs.hosts.base.Host`."""
        return variant.width

    def places(self, sample_shape: tuple[int, ...], slot: int) -> int:
        """See :class:`envs.hosts.base.Host`; sequences are ``[L]``."""
        return sample_shape[0]

    def segment_flops(self, variant: TransformerVariant, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        """See :class:`envs.hosts.base.Host`; embeddings are looked up, so that the tied table counts once, as head."""
        (length,), width = sample_shape, variant.width
        attention = matrix_flops(_attention("", width), length) + attention_flops(length, width)
        segments = (
            layers * (matrix_flops(block_parameters("", width, hidden), length) + attends * attention)
            for layers, hidden, attends in zip(variant.layers, variant.hidden, variant.attends, strict=True)
        )
        return (*segments, matrix_flops({"": self.parameters(variant)["tokens"]}, length))

    def layers(self, variant: TransformerVariant) -> tuple[HostLayer, ...]:
        """See :class:`envs.hosts.base.Host`; what reads the residual stream reads all that was added to it."""
        layers = [HostLayer(name, EMBEDDING, (name,), 0, ()) for name in ("tokens", "positions")]
        stream: tuple[str, ...] = ("tokens", "positions")
        for segment, count in enumerate(variant.layers):
            for layer in range(count):
                name = f"segment{segment}_layer{layer}"
                if variant.attends[segment]:
                    layers += _attention_layers(f"{name}_attention", segment, stream)
                    stream += (layers[-1].name,)
                layers += block_layers(f"{name}_mlp", segment, stream)
                stream += (layers[-1].name,)
        head = HostLayer("head", "linear", ("tokens",), self.num_slots, ("final_norm",))
        return (*layers, norm_layer("final_norm", self.num_slots, stream), head)

    def layer_places(self, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        """See :class:`envs.hosts.base.Host`; sequences are ``[L]``."""
        return sample_shape * len(self.layers(self.widest))

    def segment(
        self,
        slot: int,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        x: Tensor,
        training: bool,
        observe: Observe | None = None,
    ) -> Tensor:
        """See :class:`envs.hosts.base.Host`; tokens are int64 ``[M, B, L]``, shared ones ``[B, L]``."""
        p, variant, h = parameters, self.widest, x
        if slot == 0:
            h = embed(p["tokens"], x.expand(len(p["tokens"]), *x.shape[-2:])) + p["positions"][:, None, : x.shape[-1]]
        for layer in range(variant.layers[slot]):
            name = f"segment{slot}_layer{layer}"
            if variant.attends[slot]:
                h = h + self._attend(p, f"{name}_attention", h)
            h = h + feed_forward(p, f"{name}_mlp", h, observe)
        return h

    def head(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """Logits of each next token ``[M, B, L, vocabulary]``."""
        p = parameters
        return dense(layer_norm(x, p["final_norm_weight"], p["final_norm_bias"]), p["tokens"])

    def _attend(self, p: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
        z = layer_norm(h, p[f"{name}_norm_weight"], p[f"{name}_norm_bias"])
        z = self_attention(z, p[f"{name}_qkv"], self.widest.heads)
        return dense(z, p[f"{name}_out_weight"], p[f"{name}_out_bias"])


def _attention(name: str, width: int) -> ParameterSpecs:
    return norm_parameters(f"{name}_norm", width) | {
        f"{name}_qkv": ParameterSpec((3 * width, width), Init.UNIFORM),
        f"{name}_out_weight": ParameterSpec((width, width), Init.UNIFORM),
        f"{name}_out_bias": ParameterSpec((width,), Init.ZEROS),
    }


def _attention_layers(name: str, segment: int, stream: tuple[str, ...]) -> tuple[HostLayer, ...]:
    norm, qkv, out = f"{name}_norm", f"{name}_qkv", f"{name}_out"
    return (
        norm_layer(norm, segment, stream),
        HostLayer(qkv, "linear", (qkv,), segment, (norm,)),
        HostLayer(out, "linear", (f"{out}_weight", f"{out}_bias"), segment, (qkv,)),
    )
