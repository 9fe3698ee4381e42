"""From rewards to learning signals: λ-returns and V-trace, two advantage streams, one scale in each world.

The functions are plain torch. :class:`FactoredAdvantages` puts them at the end of RLlib's learner pipeline, in the
place of its own generalised advantage estimation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from esper_ray.config import CriticBaseline, LearnerConfig
from policies.results import ActorCriticResult
from policies.rl_module import HEAD_LOG_PROBS
from policies.running_moments import power_sums

MeanOverLearners = Callable[[Tensor], Tensor]
"""Averages a tensor over all learner processes; the identity when there is one. Every statistic is formed from
averaged sums and counts, so that it equals that of the undivided batch."""

MINIMUM_SCALE = 1e-3
"""Smallest divisor of the advantages, in reward units: noise is not blown up when nothing differs."""


def decided_log_ratios(
    output: ActorCriticResult, actions: Tensor, old_log_probs: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """New minus old log-probabilities, and which heads count.

    Args:
        output: The new policy.
        actions: int64 ``[B, T, H]``.
        old_log_probs: ``[B, T, H]``.
        real: bool ``[B, T]``.

    Returns:
        ``[B, T, H]``, 0 where a head had no choice, and bool ``[B, T, H]``: heads that had one, at real steps. Summed
        over the heads the first is the joint action's.
    """
    decided = output.distribution.decided(actions[..., 0]) & real.unsqueeze(-1)
    return torch.where(decided, output.distribution.log_prob(actions) - old_log_probs, 0.0), decided


def vtrace_returns(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    real: Tensor,
    ratios: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """V-trace targets of E sequences at once (Espeholt et al., 2018, equation 1 and remark 2).

    ``vs_t = V_t + A_t`` with ``A_t = ρ_t (r_t + γ V_{t+1} − V_t) + γ λ c_t A_{t+1}``, where ``ρ_t = c_t`` is the
    ratio, at most 1. After a terminated step neither the next value nor the next advantage counts; after a cut
    (the last real step of a sequence that did not terminate) the next value does.

    Args:
        rewards: ``[E, L]``.
        values: ``[E, L + 1]``: what returns are built on, V or Q of the op taken, of every step and of the state after
            the last one, at ``length``.
        terminated: bool ``[E, L]``.
        real: bool ``[E, L]``: False in padding at the right.
        ratios: New over old probability of the action ``[E, L]``, not yet truncated.
        gamma: Discount.
        gae_lambda: λ.

    Returns:
        ``[E, L]``, 0 in padding.
    """
    continues = (~terminated).to(values.dtype)
    truncated = ratios.clamp(max=1.0)
    errors = truncated * (rewards + gamma * continues * values[:, 1:] - values[:, :-1])
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for step in reversed(range(rewards.shape[1])):
        following = errors[:, step] + gamma * gae_lambda * continues[:, step] * truncated[:, step] * following
        # Padding lies to the right, so zeroing it here is what starts each sequence's recursion.
        following = torch.where(real[:, step], following, 0.0)
        advantages[:, step] = following
    return torch.where(real, advantages + values[:, :-1], 0.0)


def lambda_returns(
    rewards: Tensor, values: Tensor, terminated: Tensor, real: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    """λ-returns of E sequences at once (Schulman et al., 2016: advantage of GAE plus value).

    ``G_t = V_t + A_t`` with ``A_t = r_t + γ V_{t+1} − V_t + γ λ A_{t+1}``: the V-trace targets of a policy that has
    not changed since the rollout. Arguments and result are those of :func:`vtrace_returns`.
    """
    return vtrace_returns(rewards, values, terminated, real, torch.ones_like(rewards), gamma, gae_lambda)


def action_returns(
    rewards: Tensor, values: Tensor, terminated: Tensor, real: Tensor, targets: Tensor, gamma: float
) -> Tensor:
    """What an action was worth, given the V-trace targets of the states: ``y_t = r_t + γ vs_{t+1}``.

    After a cut V stands for ``vs``. The arguments but the last two are those of :func:`vtrace_returns`.

    Args:
        rewards: ``[E, L]``.
        values: ``[E, L + 1]``.
        terminated: bool ``[E, L]``.
        real: bool ``[E, L]``.
        targets: V-trace targets ``[E, L]``.
        gamma: Discount.

    Returns:
        ``[E, L]``, 0 in padding.
    """
    following = torch.cat([torch.where(real, targets, values[:, :-1])[:, 1:], values[:, -1:]], dim=1)
    return torch.where(real, rewards + gamma * torch.where(terminated, 0.0, following), 0.0)


def returns_of_rows(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    real: Tensor,
    occupied: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """λ-returns for RLlib's rows, where an episode may fill several rows.

    Rows of one episode follow each other; every episode ends with one artificial step that holds its last
    observation (occupied, but not real). These steps tell the episodes apart.

    Args:
        rewards: ``[R, T]``, as are all others.
        values: In reward units, see :func:`bootstrap_values`.
        terminated: bool, True at the last real step of a terminated episode.
        real: bool, steps that were played.
        occupied: bool, real steps and the artificial ones.
        gamma: Discount.
        gae_lambda: λ.

    Returns:
        ``[R, T]``, 0 where not real.
    """
    flat_real = real[occupied]
    ends = (~flat_real).nonzero().squeeze(-1) + 1
    lengths = ends.diff(prepend=ends.new_zeros(1)).tolist()

    def sequences(rows: Tensor) -> Tensor:
        return pad_sequence(rows[occupied].split(lengths), batch_first=True)

    returns = lambda_returns(
        sequences(rewards)[:, :-1],
        sequences(values),
        sequences(terminated)[:, :-1],
        sequences(real)[:, :-1],
        gamma,
        gae_lambda,
    )
    with_end = torch.cat([returns, returns.new_zeros(len(returns), 1)], dim=1)
    rows = torch.zeros_like(rewards)
    rows[occupied] = torch.cat([row[:length] for row, length in zip(with_end, lengths, strict=True)])
    return rows


def bootstrap_values(value: Tensor, q_value: Tensor, real: Tensor, baseline: CriticBaseline) -> Tensor:
    """The values that λ-returns are built from, in the units given.

    ``op`` conditions value and bootstrap on one op alike: Q(s, op taken) stands at a step, and so the next step's is
    that of the op taken next. After a cut no op has been taken yet (RLlib copies the last one into its artificial
    step). There V(s) = E_π[Q(s, ·)] stands: the mean of what a draw of that op would give, without the draw's noise.

    Args:
        value: V(s) ``[...]``.
        q_value: Q(s, op taken) ``[...]``.
        real: bool ``[...]``, False at artificial steps.
        baseline: The critic's; all but ``op`` build on V.

    Returns:
        ``[...]``.
    """
    return torch.where(real, q_value, value) if baseline == "op" else value


def advantage_streams(returns: Tensor, value: Tensor, q_value: Tensor, baseline: CriticBaseline) -> Tensor:
    """Advantages of the op and of its arguments, in reward units, neither centred nor scaled.

    Args:
        returns: λ-returns ``[...]``.
        value: V(s) ``[...]``.
        q_value: Q(s, op taken) ``[...]``; V(s) where the critic does not look at the op.
        baseline: What to subtract; ``factored`` leaves the op head the whole difference between ops and the
            argument heads only what their own choice added.

    Returns:
        ``[..., 2]``: for the op head, for all other heads.
    """
    op_baseline = q_value if baseline == "op" else value
    argument_baseline = value if baseline == "state" else q_value
    return torch.stack([returns - op_baseline, returns - argument_baseline], dim=-1)


@dataclass(frozen=True)
class VTraceSignals:
    """What V-trace makes of whole sequences, in reward units; 0 where not real.

    Attributes:
        targets: ``vs`` ``[E, T]``: what V is regressed on.
        worth: What the actions were worth, ``y = r + γ vs'`` ``[E, T]``: what Q of the op taken is regressed on.
        streams: Advantages of the op and of its arguments (:func:`advantage_streams`), each times the truncated ratio,
            ``[E, T, 2]``.
    """

    targets: Tensor
    worth: Tensor
    streams: Tensor

    @classmethod
    def of(
        cls,
        output: ActorCriticResult,
        actions: Tensor,
        old_log_probs: Tensor,
        rewards: Tensor,
        terminated: Tensor,
        real: Tensor,
        settings: LearnerConfig,
    ) -> Self:
        """Of sequences that each end with an artificial step, which holds the state after the last action.

        Args:
            output: The new policy.
            actions: int64 ``[E, T, H]``.
            old_log_probs: Of the policy that acted, ``[E, T, H]``.
            rewards: ``[E, T]``.
            terminated: bool ``[E, T]``.
            real: bool ``[E, T]``: False at artificial steps, and in padding at the right.
            settings: Discount, λ, baseline.
        """
        log_ratios, _ = decided_log_ratios(output, actions, old_log_probs, real)
        ratios = log_ratios.sum(dim=-1).exp()
        value, q_value = output.value, output.q_value(actions[..., 0])
        # A row's last entry is an artificial step or padding, and so only the value after a played one.
        rewards, terminated, played = rewards[:, :-1], terminated[:, :-1], real[:, :-1]
        targets = vtrace_returns(
            rewards, value, terminated, played, ratios[:, :-1], settings.gamma, settings.gae_lambda
        )
        worth = action_returns(rewards, value, terminated, played, targets, settings.gamma)
        targets, worth = (torch.nn.functional.pad(rows, (0, 1)) for rows in (targets, worth))
        streams = advantage_streams(worth, value, q_value, settings.critic_baseline)
        return cls(targets, worth, ratios.clamp(max=1.0).unsqueeze(-1) * streams)


def advantage_scale(op_advantages: Tensor, counted: Tensor, mean_over_learners: MeanOverLearners) -> Tensor:
    """Standard deviation of the op's advantages, floored at :data:`MINIMUM_SCALE`.

    Args:
        op_advantages: ``[...]``.
        counted: bool ``[...]``: real steps at which there was something to decide.
        mean_over_learners: Averages over learner processes.

    Returns:
        A scalar; 1 if no step counts, since there is nothing to scale.
    """
    count, total, squares = mean_over_learners(power_sums(op_advantages, counted)).unbind()
    variance = squares / count - (total / count) ** 2
    scale = torch.where(count > 0, variance.clamp(min=MINIMUM_SCALE**2).sqrt(), 1.0)
    return scale.to(op_advantages.dtype)


def advantage_means(streams: Tensor, counted: Tensor, mean_over_learners: MeanOverLearners) -> Tensor:
    """Mean advantage of each stream.

    Args:
        streams: ``[..., 2]``, see :func:`advantage_streams`.
        counted: bool ``[...]``: real steps at which there was something to decide.
        mean_over_learners: Averages over learner processes.

    Returns:
        ``[2]``; 0 if no step counts.
    """
    totals = torch.where(counted.unsqueeze(-1), streams.double(), 0.0).flatten(end_dim=-2).sum(dim=0)
    sums = mean_over_learners(torch.cat([counted.sum().double().unsqueeze(0), totals]))
    count, totals = sums[0], sums[1:]
    return torch.where(count > 0, totals / count, 0.0).to(streams.dtype)


def scaled_advantages(
    streams: Tensor,
    output: ActorCriticResult,
    worlds: Sequence[Tensor],
    centre: bool,
    mean_over_learners: MeanOverLearners,
) -> Tensor:
    """Both advantage streams over the scale that the first has in its world.

    Args:
        streams: ``[..., 2]``, see :func:`advantage_streams`.
        output: Policy at these steps; forced steps take no part in the statistics.
        worlds: Real steps of each world, bool ``[...]``: one whose scores differ more would have all of the gradient.
        centre: Subtract each stream's mean first.
        mean_over_learners: Averages over learner processes.

    Returns:
        ``[..., 2]``, 0 where not real.
    """
    scaled = torch.zeros_like(streams)
    for real in worlds:
        counted = real & ~output.distribution.forced
        means = advantage_means(streams, counted, mean_over_learners) if centre else 0.0
        centred = streams - means
        of_world = centred / advantage_scale(centred[..., 0], counted, mean_over_learners)
        scaled = torch.where(real.unsqueeze(-1), of_world, scaled)
    return scaled


class FactoredAdvantages(ConnectorV2):
    """Last piece of the learner pipeline: values, λ-returns and advantages.

    Raises FloatingPointError on a return that is not finite.

    Adds to the batch ``advantages`` ``[R, T, 2]`` (scaled, 0 where not real) and ``value_targets`` ``[R, T]`` (the
    returns, in reward units), and has the network's normalisers collect; committing is the learner's. As this is the
    one pass over the rollout before the first step, it is also where the stored log-probabilities are held against it.

    Args:
        input_observation_space: Passed on to RLlib.
        input_action_space: Passed on to RLlib.
        settings: Discount, λ, baseline, centring.
        mean_over_learners: Averages over learner processes.

    Attributes:
        replay_errors: Of the latest batch: by module the largest difference between stored and recomputed
            log-probabilities, a scalar on the module's device.
    """

    def __init__(
        self,
        input_observation_space: Any = None,
        input_action_space: Any = None,
        *,
        settings: LearnerConfig,
        mean_over_learners: MeanOverLearners,
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self.settings = settings
        self.mean_over_learners = mean_over_learners
        self.replay_errors: dict[str, Tensor] = {}

    # RLlib calls its connectors with gradients on; nothing here is differentiated.
    @torch.no_grad()
    def __call__(self, *, rl_module: Any, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Complete the batch of every module."""
        for module_id, columns in batch.items():
            self.replay_errors[module_id] = self._complete(rl_module[module_id].unwrapped(), columns)
        return batch

    def _complete(self, module: Any, columns: dict[str, Any]) -> Tensor:
        """Complete one module's batch; returns the replay error."""
        settings = self.settings
        output = module.forward_result(columns)
        actions, real = columns[Columns.ACTIONS].long(), columns[Columns.LOSS_MASK]
        value, q_value = output.value, output.q_value(actions[..., 0])
        steps = torch.arange(real.shape[1], device=real.device)
        returns = returns_of_rows(
            columns[Columns.REWARDS].float(),
            bootstrap_values(value, q_value, real, settings.critic_baseline),
            columns[Columns.TERMINATEDS].bool(),
            real,
            steps < columns[Columns.SEQ_LENS].to(real.device).unsqueeze(-1),
            settings.gamma,
            settings.gae_lambda,
        )
        module.network.normalisers.collect(columns[Columns.OBS], returns, real, self.mean_over_learners)
        streams = advantage_streams(returns, value, q_value, settings.critic_baseline)
        worlds = module.network.return_scale.by_world(real, columns[Columns.OBS])
        columns[Postprocessing.ADVANTAGES] = scaled_advantages(
            streams, output, worlds, settings.centre_advantages, self.mean_over_learners
        )
        columns[Postprocessing.VALUE_TARGETS] = returns
        log_ratios, _ = decided_log_ratios(output, actions, columns[HEAD_LOG_PROBS], real)
        return log_ratios.abs().max()
