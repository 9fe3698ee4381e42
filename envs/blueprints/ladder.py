"""A seed that can be grown and shrunk inside while it lives."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from envs.batched.layers import conv, group_norm
from envs.batched.parameters import Init, ParameterSpec, ParameterSpecs, matrix_flops
from envs.blueprints.base import LadderModule


class ConvLadder(LadderModule):
    """``Σ Pᵢ zᵢ`` over the levels that are on, with z₀ = x and zᵢ = relu(GN(conv3×3 zᵢ₋₁)), each Pᵢ a 1×1 from 0.

    At level 1 it computes what CONV_LIGHT computes. A level that is off has Pᵢ = 0, so its convolution has neither
    effect nor gradient.

    Args:
        levels: Highest level.
    """

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def parameters(self, width: int) -> ParameterSpecs:
        """See :class:`envs.blueprints.base.SeedModule`."""
        level = {
            "conv": ParameterSpec((width, width, 3, 3), Init.HE),
            "norm_weight": ParameterSpec((width,), Init.ONES),
            "norm_bias": ParameterSpec((width,), Init.ZEROS),
            "out_weight": ParameterSpec((width, width, 1, 1), Init.ZEROS),
            "out_bias": ParameterSpec((width,), Init.ZEROS),
        }
        return {f"{name}{i}": replace(spec, level=i) for i in self._steps for name, spec in level.items()}

    def flops(self, width: int, places: int, level: int | None = None) -> int:
        """See :class:`envs.blueprints.base.SeedModule`."""
        return matrix_flops(self.parameters(width), places, level)

    def delta(self, parameters: dict[str, Tensor], u: Tensor, present: Tensor | None) -> Tensor:
        """See :class:`envs.blueprints.base.SeedModule`."""
        p, z, proposals = parameters, u, []
        for i in self._steps:
            z = group_norm(conv(z, p[f"conv{i}"]), p[f"norm_weight{i}"], p[f"norm_bias{i}"], present, relu=True)
            proposals.append(conv(z, p[f"out_weight{i}"], p[f"out_bias{i}"]))
        total = proposals[0]
        for proposal in proposals[1:]:
            total = total + proposal
        return total

    def shortened(self, levels: int) -> ConvLadder:
        """See :class:`envs.blueprints.base.LadderModule`."""
        return ConvLadder(min(levels, self.levels))

    @property
    def _steps(self) -> range:
        return range(1, self.levels + 1)
