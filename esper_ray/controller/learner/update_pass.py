"""Gradient steps of an update: decisions in the field, and as many of the greenhouse in each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esper_ray.config import LearnerConfig
from esper_ray.controller.learner.field_loss import batches, field_loss
from esper_ray.controller.learner.greenhouse import Greenhouse
from esper_ray.controller.learner.settings import ReportLearning
from esper_ray.controller.learner.steps import Stretch
from esper_ray.errors import UserError
from policies.strategic.checkpoint import Checkpoint
from policies.strategic.imitation import balancing_weights, imitation_losses
from policies.strategic.imitation_config import ImitationConfig
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.taught import Taught


@dataclass(frozen=True)
class PassSummary:
    """What was seen in the field while it was learnt.

    Attributes:
        loss: Of field and greenhouse together, mean over gradient steps.
        entropy: Of the op in the field, over its maximum, likewise.
        risk_recall: Share of the field's steps whose class of risk was told, mean over the classes that occurred; None
            if none did.
        taught: What the policy was taught beside its action and values.
    """

    loss: float
    entropy: float
    risk_recall: float | None
    taught: Taught


def learn(
    network: GraphPolicyNetwork,
    checkpoint: Checkpoint,
    stretches: Sequence[Stretch],
    greenhouse: Greenhouse,
    settings: ReportLearning,
    order: torch.Generator,
) -> PassSummary:
    """Train a network.

    Args:
        network: Is trained.
        checkpoint: It, before.
        stretches: Of runs in the field.
        greenhouse: Recorded episodes, which it reads.
        settings: How.
        order: Draws the order.

    Raises:
        UserError: a gradient is not finite, and the network is spoilt.
    """
    field, teaching = _field_settings(settings), _greenhouse_settings(settings)
    told = torch.tensor([step.risk for of in stretches for step in of.steps])
    class_weights = balancing_weights(torch.cat([told, greenhouse.risks]))
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
    recorded = greenhouse.batches(settings.batch_size, order)
    losses, entropies, confusions = list[float](), list[float](), list[Tensor]()
    for _ in range(settings.passes):
        for batch in batches(stretches, settings.batch_size, order):
            found = field_loss(
                network,
                batch,
                field,
                checkpoint.return_scale,
                checkpoint.play_temperature,
                class_weights,
                settings.risk_weight,
            )
            read = greenhouse.read(*next(recorded))
            taught = imitation_losses(*read, checkpoint.return_scale, class_weights, teaching)["total"]
            total = found.total + settings.greenhouse_weight * taught
            optimizer.zero_grad()
            total.backward()
            if not nn.utils.clip_grad_norm_(network.parameters(), settings.grad_clip).isfinite():
                raise UserError(
                    f"a gradient is not finite: begin again with a smaller lr than {settings.lr:g}, or see which run "
                    "sends numbers that are none"
                )
            optimizer.step()
            losses.append(float(total.detach()))
            entropies.append(float(found.terms.entropy[0]))
            confusions.append(found.confusion)
    risk = settings.risk_weight > 0 and bool(class_weights.any())
    return PassSummary(
        loss=sum(losses) / len(losses),
        entropy=sum(entropies) / len(entropies),
        risk_recall=_recall(torch.stack(confusions).sum(dim=0)),
        taught=Taught(risk=risk, methods=greenhouse.has_ramps, windows=greenhouse.has_ramps),
    )


def _field_settings(settings: ReportLearning) -> LearnerConfig:
    return LearnerConfig(
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        value_loss_coeff=settings.value_weight,
        entropy_coeff=settings.entropy_coeff,
    )


def _greenhouse_settings(settings: ReportLearning) -> ImitationConfig:
    return ImitationConfig(value_weight=settings.value_weight, risk_weight=settings.risk_weight)


def _recall(confusion: Tensor) -> float | None:
    """Mean over the classes that occurred, of steps by class and by most probable class ``[C, C]``."""
    steps = confusion.sum(dim=1)
    occurred = steps > 0
    if not occurred.any():
        return None
    return float((confusion.diagonal()[occurred] / steps[occurred]).mean())
