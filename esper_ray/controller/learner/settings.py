"""How a policy learns from field reports, known without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from envs.ranges import Count, Large, NotNegative, Positive, Range, Share, check_numbers
from esper_ray.errors import UserError

LEAST_DECISIONS = 256
"""Fewer say nothing of a policy that draws its actions."""


@dataclass(frozen=True)
class ReportLearning:
    """Off-policy learning from decisions in the field, beside recorded episodes of the greenhouse."""

    least_decisions: Annotated[int, Range(LEAST_DECISIONS, 10**6, whole=True)] = LEAST_DECISIONS
    """New decisions that an update needs, each with the next packet of its run."""
    most_decisions: Annotated[int, Range(LEAST_DECISIONS, 10**6, whole=True)] = 4096
    """Decisions that an update learns from at most: the new ones, and the latest of those before."""
    capacity: Annotated[int, Range(LEAST_DECISIONS, 10**9, whole=True)] = 20_000
    """Decisions that are kept at most; those that were learnt from go first, then the oldest."""
    passes: Count = 2
    """Over these decisions, in an update."""
    batch_size: Count = 128
    """Decisions of a gradient step, and about as many of the greenhouse."""
    lr: Annotated[float, Range(0.0, 1.0, above=True)] = 1e-4
    """Step size of Adam, which begins anew with each update."""
    gamma: Share = 1.0
    """Discount per epoch; 1 makes the objective the whole change in score."""
    gae_lambda: Share = 0.95
    """λ of V-trace: 0 trusts the critic, 1 trusts the observed rewards."""
    value_weight: NotNegative = 0.5
    """Of the critic's squared errors, in the field and in the greenhouse."""
    entropy_coeff: NotNegative = 0.01
    """Weight of the entropy bonus, where 1 is the entropy of a uniform choice among the admitted entries."""
    risk_weight: NotNegative = 0.25
    """Of the cross-entropy of the risk, whose classes weigh the same however often they occur."""
    greenhouse_weight: Positive = 1.0
    """Of what the greenhouse's episodes teach, beside the field."""
    held_out: Annotated[float, Range(0.0, 0.9, above=True)] = 0.2
    """Share of the greenhouse's hosts that are not learnt from, so that `esper-ray strategic evaluate` can examine on
    them."""
    grad_clip: Positive = 10.0
    """Largest global norm of a gradient."""
    parameter_rent: NotNegative = 0.03
    """Score lost per doubling of a run's parameters."""
    path_rent: NotNegative = 0.0
    """Score lost per living seed."""
    first_version: Count = 1
    """Number of the first update. After the loss of a learner's directory: above all that services have accepted."""
    seed: Large = 0
    """Of the order in which is learnt."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)
        if not self.least_decisions <= self.most_decisions <= self.capacity:
            raise UserError(
                "least_decisions must be at most most_decisions, and these at most capacity, got "
                f"{self.least_decisions:,}, {self.most_decisions:,} and {self.capacity:,}"
            )
