"""Convolutional seeds for image hosts, from cheap to heavy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from envs.batched.activations import stack
from envs.batched.layers import conv, group_norm
from envs.batched.parameters import Init, ParameterSpec, ParameterSpecs
from envs.blueprints.base import Chain, Layer


def _kernel(c_out: int, c_in: int, k: int, init: Init = Init.HE) -> ParameterSpec:
    return ParameterSpec((c_out, c_in, k, k), init)


def _norm(name: str, width: int) -> ParameterSpecs:
    return {
        f"{name}_weight": ParameterSpec((width,), Init.ONES),
        f"{name}_bias": ParameterSpec((width,), Init.ZEROS),
    }


def _output(width: int, hidden: int) -> ParameterSpecs:
    """The zero-initialised 1×1 convolution that ends a seed."""
    return {
        "out_weight": _kernel(width, hidden, 1, Init.ZEROS),
        "out_bias": ParameterSpec((width,), Init.ZEROS),
    }


def convolve(x: Sequence[Tensor], parameters: Sequence[Tensor], present: Tensor | None) -> Tensor:
    """A convolution; the parameters are its weight and, if it has one, its bias."""
    return conv(stack(x), parameters[0], parameters[1] if len(parameters) > 1 else None)


def convolve_relu(x: Sequence[Tensor], parameters: Sequence[Tensor], present: Tensor | None) -> Tensor:
    """A convolution with a bias, then ReLU."""
    weight, bias = parameters
    return conv(stack(x), weight, bias, relu=True)


def normalise_relu(x: Sequence[Tensor], parameters: Sequence[Tensor], present: Tensor | None) -> Tensor:
    """Group norm, then ReLU; the parameters are the norm's weight and bias."""
    weight, bias = parameters
    return group_norm(x, weight, bias, present, relu=True)


OUTPUT = Layer(convolve, ("out_weight", "out_bias"))


class NormalisedConv(Chain):
    """``1×1₀(relu(GN(conv …)))``, the convolution block repeated ``depth`` times.

    Serves CONV_SMALL (1×1), CONV_LIGHT (3×3) and CONV_HEAVY (3×3 twice).
    """

    def __init__(self, kernel: int, depth: int) -> None:
        self.kernel, self.depth = kernel, depth

    def parameters(self, width: int) -> ParameterSpecs:
        """See :class:`SeedModule`."""
        specs: ParameterSpecs = {}
        for i in range(self.depth):
            specs[f"conv{i}"] = _kernel(width, width, self.kernel)
            specs |= _norm(f"norm{i}", width)
        return specs | _output(width, width)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """See :class:`Chain`."""
        blocks = [
            (Layer(convolve, (f"conv{i}",)), Layer(normalise_relu, (f"norm{i}_weight", f"norm{i}_bias")))
            for i in range(self.depth)
        ]
        return (*(layer for block in blocks for layer in block), OUTPUT)


class Depthwise(Chain):
    """``1×1₀(relu(GN(depthwise 3×3)))``: spatial mixing for few parameters (Howard et al. 2017)."""

    def parameters(self, width: int) -> ParameterSpecs:
        """See :class:`SeedModule`."""
        return {"depthwise": _kernel(width, 1, 3), **_norm("norm", width), **_output(width, width)}

    @property
    def layers(self) -> tuple[Layer, ...]:
        """See :class:`Chain`."""
        return Layer(convolve, ("depthwise",)), Layer(normalise_relu, ("norm_weight", "norm_bias")), OUTPUT


class Bottleneck(Chain):
    """``up₀(relu(conv3×3(relu(down x))))`` through a quarter of the channels, but at least 4 (He et al. 2016).

    Fewer would often be stillborn: the input is not negative, and all of them may start behind a closed ReLU.
    """

    REDUCTION, MINIMUM = 4, 4

    def parameters(self, width: int) -> ParameterSpecs:
        """See :class:`SeedModule`."""
        hidden = max(self.MINIMUM, width // self.REDUCTION)
        return {
            "down_weight": _kernel(hidden, width, 1),
            "down_bias": ParameterSpec((hidden,), Init.ZEROS),
            "conv_weight": _kernel(hidden, hidden, 3),
            "conv_bias": ParameterSpec((hidden,), Init.ZEROS),
            **_output(width, hidden),
        }

    @property
    def layers(self) -> tuple[Layer, ...]:
        """See :class:`Chain`."""
        return (
            Layer(convolve_relu, ("down_weight", "down_bias")),
            Layer(convolve_relu, ("conv_weight", "conv_bias")),
            OUTPUT,
        )
