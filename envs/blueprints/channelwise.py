"""Seeds that rescale channels instead of mixing space."""

from __future__ import annotations

from torch import Tensor

from envs.batched.layers import global_average_pool, group_norm, linear
from envs.batched.parameters import Init, ParameterSpec, ParameterSpecs, matrix_flops


class NormBlend:
    """``s·(GN(x) − x)`` with a scalar s that starts at 0: moves the host towards a normalised map."""

    def parameters(self, width: int) -> ParameterSpecs:
        """See :class:`SeedModule`."""
        return {
            "norm_weight": ParameterSpec((width,), Init.ONES),
            "norm_bias": ParameterSpec((width,), Init.ZEROS),
            "scale": ParameterSpec((1,), Init.ZEROS),
        }

    def flops(self, width: int, places: int, level: int | None = None) -> int:
        """See :class:`SeedModule`."""
        return matrix_flops(self.parameters(width), places, level)

    def delta(self, parameters: dict[str, Tensor], u: Tensor, present: Tensor | None) -> Tensor:
        """See :class:`SeedModule`."""
        scale = parameters["scale"].view(-1, *[1] * (u.dim() - 1))
        return scale * (self._normalised(u, parameters["norm_weight"], parameters["norm_bias"], present) - u)

    def _normalised(self, u: Tensor, weight: Tensor, bias: Tensor, present: Tensor | None) -> Tensor:
        return group_norm(u, weight, bias, present)


class SqueezeExcite:
    """``x·tanh(W₂ relu(W₁ gap x))`` with W₂ = 0: attention over channels (Hu et al. 2018)."""

    REDUCTION, MINIMUM = 4, 4

    def parameters(self, width: int) -> ParameterSpecs:
        """See :class:`SeedModule`."""
        hidden = max(self.MINIMUM, width // self.REDUCTION)
        return {
            "squeeze_weight": ParameterSpec((hidden, width), Init.HE),
            "squeeze_bias": ParameterSpec((hidden,), Init.ZEROS),
            "excite_weight": ParameterSpec((width, hidden), Init.ZEROS),
            "excite_bias": ParameterSpec((width,), Init.ZEROS),
        }

    def flops(self, width: int, places: int, level: int | None = None) -> int:
        """See :class:`SeedModule`."""
        return matrix_flops(self.parameters(width), 1, level)  # its matrices see the pooled map

    def delta(self, parameters: dict[str, Tensor], u: Tensor, present: Tensor | None) -> Tensor:
        """See :class:`SeedModule`."""
        p = parameters
        squeezed = linear(global_average_pool(u), p["squeeze_weight"], p["squeeze_bias"]).relu()
        excited = linear(squeezed, p["excite_weight"], p["excite_bias"]).tanh()
        return u * excited[:, :, None, None]
