"""What is watched in an update: numbers of one minibatch, and alarms on them.

A number that cannot be measured in a minibatch (the ratio of a head that no drawn op needed) is NaN; the metrics
leave NaN out of their averages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from envs.vocabulary import HeadSpec
from esper_ray.config import LearnerConfig
from esper_ray.learning.loss import LossTerms, Minibatch
from policies.distribution import take_entry
from policies.results import ActorCriticResult

LOW_ENTROPY = 0.1
"""Normalised entropy below which a head counts as collapsed."""
HIGH_RATIO = 10.0
"""Ratio of new to old probability above which an update counts as off its rollout."""
LOW_Q_SPREAD = 0.01
"""Spread of Q over the admitted ops, in units of the return scale, below which the critic ignores the op."""
REPLAY_LIMIT = 2e-3
"""Replay error above which an update does not belong to its rollout: twice what a CPU and a GPU may differ by (1e-3).
Measured: below 1e-6 on one device; 0.06 where the rollout's weights are one optimiser step old, and 0.006 in a network
of 16 units."""
SATURATED_CLIPPING = 0.9
"""Share of clipped gradients in an update above which the clip decides the step size."""


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Means over the first two axes where a mask is True, NaN where it nowhere is.

    Args:
        values: ``[B, T, ...]``.
        mask: bool ``[B, T, ...]``.

    Returns:
        ``[...]``, of each number beside the two axes.
    """
    count = mask.sum(dim=(0, 1))
    return torch.where(mask, values, 0.0).sum(dim=(0, 1)) / count.to(values.dtype).masked_fill(count == 0, torch.nan)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Variances; arguments and result as for :func:`masked_mean`."""
    return masked_mean((values - masked_mean(values, mask)).square(), mask)


def head_diagnostics(
    heads: Sequence[HeadSpec], output: ActorCriticResult, minibatch: Minibatch, terms: LossTerms, clip: float
) -> dict[str, Tensor]:
    """Numbers per head, under keys ``measure/head``.

    * ``entropy``: over its maximum, at steps whose op needed the head and left it a choice.
    * ``entropy_available``: the same wherever the head is available, as in the loss.
    * ``ratio_min``, ``ratio_mean``, ``ratio_max``: new over old probability, where it had a choice.
    * ``clip_share``: share, where it had a choice, of ratios outside the clip.
    * ``decided_share``: share of real steps whose op needed the head and left it a choice.
    * ``policy_loss``: clipped surrogate.
    """
    ops, ratios, decided = minibatch.ops, terms.log_ratios.exp(), terms.decided
    rows = output.distribution.rows_of(ops)
    tables = output.distribution.normalised_entropies()
    entropies = torch.stack([take_entry(table, rows[..., column]) for column, table in enumerate(tables)], dim=-1)
    never = ~decided.any(dim=0).any(dim=0)
    measures = {
        "entropy": masked_mean(entropies, decided),
        "entropy_available": terms.entropy.masked_fill(terms.available_share == 0, torch.nan),
        "ratio_min": ratios.masked_fill(~decided, torch.inf).amin(dim=(0, 1)).masked_fill(never, torch.nan),
        "ratio_mean": masked_mean(ratios, decided),
        "ratio_max": ratios.masked_fill(~decided, -torch.inf).amax(dim=(0, 1)).masked_fill(never, torch.nan),
        "clip_share": masked_mean(((ratios - 1).abs() > clip).float(), decided),
        "decided_share": masked_mean(decided.float(), minibatch.real.unsqueeze(-1)),
        "policy_loss": terms.policy.masked_fill(never, torch.nan),
    }
    return {
        f"{measure}/{head.name}": value
        for measure, values in measures.items()
        for head, value in zip(heads, values.unbind(), strict=True)
    }


def critic_diagnostics(
    ops: HeadSpec, output: ActorCriticResult, minibatch: Minibatch, terms: LossTerms
) -> dict[str, Tensor]:
    """Numbers of the critic; errors in units of the running return scale.

    * ``value_loss``, ``q_value_loss``: mean squared errors of V and of Q(s, op taken).
    * ``value_nrmse``: root mean squared error over the return scale. Read it beside
    * ``explained_variance``: share of the returns' variance in the minibatch that V accounts for; it says nothing
      when that variance is small.
    * ``q_spread``: largest minus smallest Q over the admitted ops, at steps with a choice of op. It and
      ``q_value_loss`` are absent if the critic does not look at the op.
    * ``advantage_mean/OP``: mean scaled advantage of the op head at steps that took this op.
    """
    real, returns = minibatch.real, minibatch.scaled_returns
    variance = masked_variance(returns, real)
    explained = 1 - masked_variance(returns - output.scaled_value, real) / variance
    numbers = {
        "value_loss": terms.value,
        "value_nrmse": terms.value.sqrt(),
        "explained_variance": explained.masked_fill(variance <= 0, torch.nan),
    }
    if output.scaled_q_values is not None:
        admitted = output.distribution.op_mask
        highest = output.scaled_q_values.masked_fill(~admitted, -torch.inf).amax(dim=-1)
        lowest = output.scaled_q_values.masked_fill(~admitted, torch.inf).amin(dim=-1)
        decided = real & ~output.distribution.forced
        numbers |= {"q_value_loss": terms.q_value, "q_spread": masked_mean(highest - lowest, decided)}
    taken = minibatch.ops.unsqueeze(-1) == torch.arange(ops.size, device=real.device)
    means = masked_mean(minibatch.advantages[..., :1], real.unsqueeze(-1) & taken)
    return numbers | {f"advantage_mean/{name}": mean for name, mean in zip(ops.choices, means.unbind(), strict=True)}


def policy_diagnostics(output: ActorCriticResult, minibatch: Minibatch, terms: LossTerms) -> dict[str, Tensor]:
    """Numbers of the joint policy.

    * ``loss``, ``policy_loss``: all, and the clipped surrogates summed over the heads.
    * ``kl``: divergence from the rollout's policy.
    * ``joint_ratio_mean``, ``joint_ratio_max``: ratio of the whole action.
    * ``forced_share``: share of real steps that admitted a single op.
    """
    joint = terms.log_ratios.sum(dim=-1).exp()
    return {
        "loss": terms.total.detach(),
        "policy_loss": terms.policy.sum(),
        "kl": terms.kl,
        "joint_ratio_mean": masked_mean(joint, minibatch.real),
        "joint_ratio_max": joint.masked_fill(~minibatch.real, 0.0).max(),
        "forced_share": masked_mean(output.distribution.forced.float(), minibatch.real),
    }


def lstm_diagnostics(state_norms: Tensor, real: Tensor) -> dict[str, Tensor]:
    """``lstm_hidden_norm``, ``lstm_cell_norm``: means over the real steps.

    Args:
        state_norms: As the rollout stored them, ``[B, T, 2]``.
        real: bool ``[B, T]``.
    """
    hidden, cell = masked_mean(state_norms, real.unsqueeze(-1)).unbind()
    return {"lstm_hidden_norm": hidden, "lstm_cell_norm": cell}


@torch.no_grad()
def minibatch_diagnostics(
    heads: Sequence[HeadSpec], output: ActorCriticResult, minibatch: Minibatch, terms: LossTerms, clip: float
) -> dict[str, Tensor]:
    """All numbers of one minibatch that its loss knows, as scalars where they were computed (see :func:`read`)."""
    numbers = head_diagnostics(heads, output, minibatch, terms, clip)
    numbers |= critic_diagnostics(heads[0], output, minibatch, terms)
    return numbers | policy_diagnostics(output, minibatch, terms)


def read(numbers: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars as Python's, in one transfer: a GPU is waited for once."""
    if not numbers:
        return {}
    values = torch.stack([value.float() for value in numbers.values()]).tolist()
    return dict(zip(numbers, values, strict=True))


def alarms(numbers: Mapping[str, float]) -> dict[str, int]:
    """Which thresholds a minibatch crossed (NaN crosses none).

    * ``alarm/low_entropy``: number of heads below :data:`LOW_ENTROPY` where available.
    * ``alarm/high_ratio``: number of heads with a ratio above :data:`HIGH_RATIO`.
    * ``alarm/low_q_spread``: the spread of Q is below :data:`LOW_Q_SPREAD`.
    """

    def below(prefix: str, limit: float) -> int:
        return sum(value < limit for name, value in numbers.items() if name.startswith(prefix))

    def above(prefix: str, limit: float) -> int:
        return sum(value > limit for name, value in numbers.items() if name.startswith(prefix))

    return {
        "alarm/low_entropy": below("entropy_available/", LOW_ENTROPY),
        "alarm/high_ratio": above("ratio_max/", HIGH_RATIO),
        "alarm/low_q_spread": below("q_spread", LOW_Q_SPREAD),
    }


def spoken_alarms(numbers: Mapping[str, float], settings: LearnerConfig) -> list[str]:
    """What the person who watches must be told about an update: what happened, why it may, what to do.

    These are the alarms that say that an update did not do what it is for. The others are on the metrics' page.

    Args:
        numbers: The learner's metrics of an iteration.
        settings: The learner's.

    Returns:
        A line each; none after a healthy update.
    """
    lines = []
    not_replayed = numbers.get("alarm/replay", 0) > 0
    if not_replayed:
        lines.append(
            f"the update found other log-probabilities than the rollout had stored (replay_error "
            f"{numbers.get('replay_error', math.nan):.2g}, the limit is {REPLAY_LIMIT:g}), so it learns from what its "
            "policy did not do. Look for an env that changes observations after handing them out, an encoder that is "
            "not the same twice, a runner with other code; if there is none, please report a bug"
        )
    if numbers.get("alarm/no_step", 0) > 0:
        remedy = "the cause is above" if not_replayed else "by rounding alone: raise kl_stop"
        lines.append(
            f"the update made no step, the policy is as it was: kl {numbers['kl']:.2g} was above kl_stop "
            f"{settings.kl_stop:g} before the first step, {remedy}"
        )
    if count := numbers.get("alarm/non_finite", 0):
        lines.append(
            f"gradients that were not finite, whose steps were left out: {count:.0f}. If it goes on, resume from an "
            "earlier checkpoint with a smaller lr or grad_clip"
        )
    return lines
