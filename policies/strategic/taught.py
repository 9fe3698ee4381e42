"""What a policy was taught beside its action and its values: of the rest nobody is told what no training is behind."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from policies.strategic.heads import GraphPolicyResult
from policies.strategic.packet_values import Message


class Taught(Message):
    """What imitation has taught. Rewards teach none of it, and move the encoders that it was taught on."""

    risk: bool = False
    """The risk of a decision."""
    methods: bool = False
    """Blending methods."""
    windows: bool = False
    """Blending windows."""

    def restrict(self, result: GraphPolicyResult) -> GraphPolicyResult:
        """What may be told: no risk, linear (or else the first method that the seed allows) and the whole ramp.

        Each but where it was taught.
        """
        methods, schedule = result.blending_method_logits, result.schedule
        return replace(
            result,
            risk_logits=result.risk_logits if self.risk else None,
            blending_method_logits=methods if self.methods else _first_alone(methods),
            schedule=schedule if self.windows else schedule.new_tensor([0.0, 1.0]).expand_as(schedule),
        )


NOTHING = Taught()
"""What rewards leave."""


def _first_alone(logits: Tensor) -> Tensor:
    """Logits ``[..., n]`` of which the first that is not refused is left, as 0."""
    refused = torch.finfo(logits.dtype).min
    first = F.one_hot((logits > refused).int().argmax(dim=-1), logits.shape[-1])
    return torch.zeros_like(logits).masked_fill(first == 0, refused)
