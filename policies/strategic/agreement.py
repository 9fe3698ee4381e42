"""How far a policy's answers agree with recorded decisions and with what followed them.

Shapes: ``B`` is the number of steps of a batch, ``H`` of heads, ``C`` of risk classes.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from policies.distribution import take_row
from policies.strategic.heads import GraphPolicyResult
from policies.strategic.labels import UNKNOWN_RISK, Targets
from policies.strategic.schema import RISK_CLASSES


@dataclass(frozen=True)
class Agreement:
    """Sums over steps, so that batches add up. But for risks only exemplary steps count.

    Attributes:
        heads: Names, op first.
        decided: Steps at which each head had a choice, int64 ``[H]``.
        agreed: Those at which its most probable choice, given the op on record, is the one on record, ``[H]``.
        steps: All steps, those at which anything was to be decided, and those of these at which all heads agree,
            int64 ``[3]``.
        confusion: Steps by recorded and most probable risk class ``[C, C]``; none of a policy that says no risk.
        errors: float64 ``[3]``: squared errors of the value in reward units, what was gained, and its squares.
    """

    heads: tuple[str, ...]
    decided: Tensor
    agreed: Tensor
    steps: Tensor
    confusion: Tensor
    errors: Tensor

    @classmethod
    def of(cls, result: GraphPolicyResult, targets: Targets, return_scale: float) -> Self:
        """Of one pass over the steps on record.

        Args:
            result: What the policy says, leading axis ``[B]``.
            targets: What is on record.
            return_scale: Reward units per unit of the policy's values.
        """
        distribution = result.distribution
        op = targets.actions[:, 0]
        exemplary, rows = targets.exemplary, distribution.rows_of(op)
        decided = distribution.decided(op) & exemplary.unsqueeze(-1)
        likeliest = [
            take_row(table.masked_fill(~mask, -torch.inf), rows[:, head]).argmax(dim=-1)
            for head, (table, mask) in enumerate(zip(distribution.log_probs, distribution.masks, strict=True))
        ]
        agreed = decided & (torch.stack(likeliest, dim=-1) == targets.actions)
        anything = decided.any(dim=-1)
        gained = targets.gained[exemplary].double()
        error = result.scaled_value[exemplary].double() * return_scale - gained
        return cls(
            tuple(head.name for head in distribution.tables.heads),
            decided.sum(dim=0),
            agreed.sum(dim=0),
            torch.stack([exemplary.sum(), anything.sum(), (anything & (agreed == decided).all(dim=-1)).sum()]),
            risk_confusion(result.risk_logits, targets.risk),
            torch.stack([error.square().sum(), gained.sum(), gained.square().sum()]),
        )

    def __add__(self, other: Self) -> Self:
        """Over the steps of both."""
        return type(self)(
            self.heads,
            self.decided + other.decided,
            self.agreed + other.agreed,
            self.steps + other.steps,
            self.confusion + other.confusion,
            self.errors + other.errors,
        )

    @classmethod
    def sum(cls, parts: Sequence[Self]) -> Self:
        """Over the steps of all, at least one."""
        return functools.reduce(operator.add, parts)

    @property
    def joint(self) -> float | None:
        """Share of the steps with a choice at which every head agrees; None if there is none."""
        return _share(self.steps[2], self.steps[1])

    def to_json(self) -> dict[str, Any]:
        """Shares and counts by name; what nothing was counted of is None."""
        count, (squared, total, squares) = self.steps[0], self.errors
        spread = squares - total.square() / count
        return {
            "steps": int(count),
            "decided": int(self.steps[1]),
            "agreement": self.joint,
            "heads": {
                name: {"decided": int(decided), "agreement": _share(agreed, decided)}
                for name, decided, agreed in zip(self.heads, self.decided, self.agreed, strict=True)
            },
            "risk": {
                name: {"steps": int(row.sum()), "recall": _share(row[at], row.sum()), "predicted": int(column.sum())}
                for at, (name, row, column) in enumerate(
                    zip(RISK_CLASSES, self.confusion, self.confusion.T, strict=True)
                )
            },
            "value": {
                "error": float((squared / count).sqrt()) if count else None,
                "explained": float(1.0 - squared / spread) if spread > 0 else None,
            },
        }


def risk_confusion(logits: Tensor | None, risk: Tensor) -> Tensor:
    """See :attr:`Agreement.confusion`, of logits ``[B, C]`` and classes ``[B]``."""
    classes = len(RISK_CLASSES)
    if logits is None:
        return risk.new_zeros(classes, classes)
    known = risk != UNKNOWN_RISK
    pairs = risk[known] * classes + logits[known].argmax(dim=-1)
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def _share(part: Tensor, whole: Tensor) -> float | None:
    return float(part / whole) if whole else None
