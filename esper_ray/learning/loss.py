"""Losses of PPO and of IMPALA over a factored action. Plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.vocabulary import HeadSpec
from esper_ray.config import LearnerConfig
from esper_ray.learning.advantages import MeanOverLearners, decided_log_ratios
from policies.results import ActorCriticResult


@dataclass(frozen=True)
class Minibatch:
    """What the rollout and the advantages contribute to a loss; leading axes ``[B, T]``.

    Attributes:
        actions: int64 ``[B, T, H]``.
        old_log_probs: Per head, as stored in the rollout, ``[B, T, H]``.
        advantages: ``[B, T, 2]``: of the op, of its arguments.
        scaled_returns: Targets of the critic in units of the return scale, ``[B, T]``.
        real: bool ``[B, T]``: False in padding and at artificial steps.
        scaled_q_returns: Targets of Q(s, op taken) ``[B, T]``, likewise; ``scaled_returns`` if None.
    """

    actions: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    scaled_returns: Tensor
    real: Tensor
    scaled_q_returns: Tensor | None = None

    @property
    def ops(self) -> Tensor:
        """The ops taken, ``[B, T]``."""
        return self.actions[..., 0]


@dataclass(frozen=True)
class LossTerms:
    """The loss, its parts, and what the diagnostics need of the way to it.

    Attributes:
        total: What is minimised.
        policy: Policy loss per head (PPO: the clipped surrogate), ``[H]``.
        entropy: Entropy over its maximum, averaged over steps and ops where the head is available, ``[H]``; 0
            where it never is.
        available_share: Available (step, op) pairs per real step, ``[H]``.
        value: Mean squared error of V, in units of the return scale.
        q_value: Mean squared error of Q(s, op taken), likewise; 0 if the critic does not look at the op.
        kl: Divergence of the policy from that of the rollout, see :func:`divergence`.
        log_ratios: New minus old log-probabilities, ``[B, T, H]``, 0 where a head had no choice.
        decided: bool ``[B, T, H]``: heads that the op taken needs and leaves a choice, at real steps.
    """

    total: Tensor
    policy: Tensor
    entropy: Tensor
    available_share: Tensor
    value: Tensor
    q_value: Tensor
    kl: Tensor
    log_ratios: Tensor
    decided: Tensor


def entropy_weights(settings: LearnerConfig, heads: Sequence[HeadSpec]) -> list[float]:
    """Weight of each head's entropy bonus, in the order of the heads.

    Raises:
        ValueError: the settings name a head that does not exist.
    """
    names = [head.name for head in heads]
    unknown = sorted(set(settings.entropy_multipliers) - set(names))
    if unknown:
        raise ValueError(f"entropy_multipliers name {unknown}, but the heads are {', '.join(names)}")
    return [
        settings.entropy_coeff * settings.entropy_multipliers.get(head.name, head.entropy_coefficient) for head in heads
    ]


def divisor(count: Tensor) -> Tensor:
    """A count to divide by: 1 where nothing was counted. An average over learners may lie between 0 and 1."""
    return torch.where(count > 0, count, 1.0)


PolicyGain = Callable[[Tensor, Tensor], Tensor]
"""From log-ratios ``[B, T, H]`` and every head's advantages ``[B, T, H]`` to what is to be raised, ``[B, T, H]``."""


def per_head_loss(
    gain: PolicyGain, log_ratios: Tensor, advantages: Tensor, decided: Tensor, average: MeanOverLearners
) -> Tensor:
    """Policy loss of each head, averaged over the steps at which anything was decided.

    All heads share that denominator, so that their losses add up to the joint action's. An average over the steps
    that need a head would push a head that one step in twenty needs twenty times as hard as the op that calls it.

    Args:
        gain: The algorithm's.
        log_ratios: ``[B, T, H]``.
        advantages: ``[B, T, 2]``; the first column is for the first head, the second for all others.
        decided: bool ``[B, T, H]``: heads that had a choice, False at steps that are not real.
        average: Averages over learner processes.

    Returns:
        ``[H]``.
    """
    per_head = torch.cat([advantages[..., :1], advantages[..., 1:].expand_as(log_ratios[..., 1:])], dim=-1)
    # where, not a product: a ratio that overflowed at a step that does not count must not become NaN.
    total = torch.where(decided, gain(log_ratios, per_head), 0.0).sum(dim=(0, 1))
    return -total / divisor(average(decided.any(dim=-1).sum().to(total.dtype)))


def clipped_surrogate(
    log_ratios: Tensor, advantages: Tensor, decided: Tensor, clip: float, average: MeanOverLearners
) -> Tensor:
    """PPO's surrogate loss of each head; arguments and result as for :func:`per_head_loss`.

    Args:
        log_ratios: ``[B, T, H]``.
        advantages: ``[B, T, 2]``.
        decided: bool ``[B, T, H]``.
        clip: Half width of the trusted interval of the ratio.
        average: Averages over learner processes.

    Returns:
        ``[H]``.
    """

    def gain(log_ratios: Tensor, per_head: Tensor) -> Tensor:
        ratios = log_ratios.exp()
        return torch.minimum(ratios * per_head, ratios.clamp(1 - clip, 1 + clip) * per_head)

    return per_head_loss(gain, log_ratios, advantages, decided, average)


def entropy_by_availability(
    output: ActorCriticResult, real: Tensor, average: MeanOverLearners
) -> tuple[Tensor, Tensor]:
    """Normalised entropy of each head, whether or not an op that needs it was drawn.

    A head's rows are averaged over the (step, op) pairs in which the op is admitted, needs the head and leaves it
    at least two entries. So a head stays regularised, under each op's own mask and embedding, even if its ops do
    not occur in the batch at all.

    Args:
        output: Policy of the minibatch.
        real: bool ``[B, T]``.
        average: Averages over learner processes.

    Returns:
        Entropies ``[H]``, 0 where no pair counts, and the number of pairs per real step ``[H]``.
    """
    distribution = output.distribution
    totals, pairs = [], []
    for entropy, available in zip(distribution.normalised_entropies(), distribution.available(), strict=True):
        counted = available & real.unsqueeze(-1)
        totals.append(torch.where(counted, entropy, 0.0).sum())
        pairs.append(counted.sum())
    counts = average(torch.stack([*pairs, real.sum()]).to(totals[0].dtype))
    return torch.stack(totals) / divisor(counts[:-1]), counts[:-1] / divisor(counts[-1])


def divergence(log_ratios: Tensor, real: Tensor, average: MeanOverLearners) -> Tensor:
    """Estimate of KL(old ‖ new) per step: ``r − 1 − log r`` (Schulman's k3), summed over the heads.

    By the chain rule the divergence of the joint action is the sum over the heads; estimating each alone has less
    variance than estimating it from the joint ratio.

    Args:
        log_ratios: ``[B, T, H]``, 0 where a head had no choice.
        real: bool ``[B, T]``.
        average: Averages over learner processes.

    Returns:
        A scalar without gradient.
    """
    log_ratios = log_ratios.detach()
    estimate = (log_ratios.expm1() - log_ratios).sum(dim=-1)
    sums = torch.stack([torch.where(real, estimate, 0.0).sum(), real.sum().to(estimate.dtype)])
    total, count = average(sums).unbind()
    return total / divisor(count)


def ppo_loss(
    output: ActorCriticResult,
    minibatch: Minibatch,
    settings: LearnerConfig,
    weights: Tensor,
    average: MeanOverLearners,
) -> LossTerms:
    """The whole loss of one minibatch of PPO: the policy's clipped surrogates, the critic, the entropy.

    Over several learners every denominator is the learners' average, so that the average of their gradients is
    the gradient of the undivided minibatch.

    Args:
        output: The network's pass over the stored observations.
        minibatch: Stored actions and their learning signals.
        settings: Coefficients.
        weights: Of the heads' entropies, ``[H]``, see :func:`entropy_weights`.
        average: Averages over learner processes.

    Returns:
        The loss and its parts.
    """
    real = minibatch.real
    log_ratios, decided = decided_log_ratios(output, minibatch.actions, minibatch.old_log_probs, real)
    policy = clipped_surrogate(log_ratios, minibatch.advantages, decided, settings.clip, average)
    return _whole_loss(output, minibatch, settings, weights, average, policy, log_ratios, decided)


def impala_loss(
    output: ActorCriticResult,
    minibatch: Minibatch,
    settings: LearnerConfig,
    weights: Tensor,
    average: MeanOverLearners,
) -> LossTerms:
    """The whole loss of one batch of IMPALA: as :func:`ppo_loss`, with the plain policy gradient.

    The advantages bring the truncated joint ratio along (V-trace), so a head's gradient is ``A ∇ log π``. The
    policy loss is that of the log-ratio, whose gradient is the same and which is 0 for an unchanged policy.
    """
    real = minibatch.real
    log_ratios, decided = decided_log_ratios(output, minibatch.actions, minibatch.old_log_probs, real)
    policy = per_head_loss(torch.mul, log_ratios, minibatch.advantages, decided, average)
    return _whole_loss(output, minibatch, settings, weights, average, policy, log_ratios, decided)


def _whole_loss(
    output: ActorCriticResult,
    minibatch: Minibatch,
    settings: LearnerConfig,
    weights: Tensor,
    average: MeanOverLearners,
    policy: Tensor,
    log_ratios: Tensor,
    decided: Tensor,
) -> LossTerms:
    """The policy's loss ``[H]`` joined by the critic's and the entropies'."""
    real = minibatch.real
    entropy, available_share = entropy_by_availability(output, real, average)
    steps = divisor(average(real.sum().to(policy.dtype)))

    def mean_squared_error(predicted: Tensor, returns: Tensor) -> Tensor:
        return torch.where(real, (predicted - returns).square(), 0.0).sum() / steps

    value = mean_squared_error(output.scaled_value, minibatch.scaled_returns)
    if output.scaled_q_values is None:  # Q is V, whose error counts once
        q_value = torch.zeros_like(value)
    else:
        q_returns = minibatch.scaled_returns if minibatch.scaled_q_returns is None else minibatch.scaled_q_returns
        q_value = mean_squared_error(output.scaled_q_value(minibatch.ops), q_returns)
    # Q(s, op) has v(s) in it: where the critic is to be regressed at the op taken alone, v learns through Q.
    at_the_op_alone = settings.critic_baseline == "op" and output.scaled_q_values is not None
    critic = q_value if at_the_op_alone else value + q_value
    total = policy.sum() + settings.value_loss_coeff * critic - (weights * entropy).sum()
    return LossTerms(
        total=total,
        policy=policy.detach(),
        entropy=entropy.detach(),
        available_share=available_share,
        value=value.detach(),
        q_value=q_value.detach(),
        kl=divergence(log_ratios, real, average),
        log_ratios=log_ratios.detach(),
        decided=decided,
    )
