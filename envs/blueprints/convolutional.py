"""Convolutional seeds for image hosts, from cheap to heavy."""

from __future__ import annotations

from torch import Tensor

from envs.population.layers import conv, group_norm
from envs.population.parameters import Init, ParameterSpec, ParameterSpecs


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


class NormalisedConv:
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

    def delta(self, parameters: dict[str, Tensor], u: Tensor, present: Tensor | None) -> Tensor:
        """See :class:`SeedModule`."""
        z, p = u, parameters
        for i in range(self.depth):
            z = group_norm(conv(z, p[f"conv{i}"]), p[f"norm{i}_weight"], p[f"norm{i}_bias"], present).relu_()
        return conv(z, p["out_weight"], p["out_bias"])


class Depthwise:
    """``1×1₀(relu(GN(depthwise 3×3)))``: spatial mixing for few parameters (Howard et al. 2017)."""

    def parameters(self, width: int) -> ParameterSpecs:
        """See :class:`SeedModule`."""
        return {"depthwise": _kernel(width, 1, 3), **_norm("norm", width), **_output(width, width)}

    def delta(self, parameters: dict[str, Tensor], u: Tensor, present: Tensor | None) -> Tensor:
        """See :class:`SeedModule`."""
        p = parameters
        z = group_norm(conv(u, p["depthwise"]), p["norm_weight"], p["norm_bias"], present).relu_()
        return conv(z, p["out_weight"], p["out_bias"])


class Bottleneck:
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

    def delta(self, parameters: dict[str, Tensor], u: Tensor, present: Tensor | None) -> Tensor:
        """See :class:`SeedModule`."""
        p = parameters
        z = conv(u, p["down_weight"], p["down_bias"]).relu_()
        z = conv(z, p["conv_weight"], p["conv_bias"]).relu_()
        return conv(z, p["out_weight"], p["out_bias"])
