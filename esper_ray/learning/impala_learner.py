"""RLlib's IMPALA learner with V-trace for both baselines of the critic and the loss per head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ray.rllib.algorithms.impala.torch.impala_torch_learner import IMPALATorchLearner
from ray.rllib.core.columns import Columns
from torch import Tensor

from esper_ray.learning.advantages import VTraceSignals, scaled_advantages
from esper_ray.learning.learner import FactoredLearner, mean_over_learners
from esper_ray.learning.loss import LossTerms, Minibatch, impala_loss
from esper_ray.ray_internals import wrap_learner_thread
from policies.policy_network import PolicyNetwork
from policies.results import ActorCriticResult
from policies.rl_module import HEAD_LOG_PROBS


class EsperImpalaLearner(FactoredLearner, IMPALATorchLearner):
    """IMPALA over a factored action: every rollout is used once, corrected for the policy's age by V-trace.

    The ratio of V-trace is that of the joint action, over the heads that its op needs. V is regressed on the V-trace
    target ``vs``, Q(s, op taken) on ``y = r + γ vs'``; the op's advantage is ``ρ (y − V)`` and its arguments'
    ``ρ (y − Q)``, or ``ρ (y − V)`` with the baseline ``state``; there is no baseline ``op`` here. ``kl`` and the
    ratios tell how far the policy has moved on since it played; no step is left out for it.
    """

    stays_with_rollout = False
    _failure: Exception | None = None

    def build(self) -> None:
        """Set up as RLlib does. A second call does nothing."""
        if self.is_built:
            return
        super().build()
        wrap_learner_thread(self, self._with_failures_remembered)

    def _with_failures_remembered(self, update: Callable[..., None]) -> Callable[..., None]:
        # An exception would end RLlib's thread, and the caller would wait for its result for ever.
        def whole_update(**kwargs: Any) -> None:
            try:
                with self.transaction():
                    update(**kwargs)
            except Exception as error:
                self._failure = error

        return whole_update

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Hand a rollout to RLlib's learner thread, one pass of ``minibatches`` steps.

        Raises:
            Exception: whatever went wrong in that thread.
        """
        result = super().update(*args, num_total_minibatches=self.settings.minibatches, **kwargs)
        if self._failure is not None:
            raise self._failure
        return result

    # The signals depend on the newest policy, but are constants to the gradient.
    @torch.no_grad()
    def minibatch(self, network: PolicyNetwork, batch: dict[str, Any], output: ActorCriticResult) -> Minibatch:
        """V-trace of whole rollouts: a row is one, with its last observation at its end as an artificial step."""
        settings = self.settings
        actions, real = batch[Columns.ACTIONS].long(), batch[Columns.LOSS_MASK]
        rewards, terminated = batch[Columns.REWARDS].float(), batch[Columns.TERMINATEDS].bool()
        signals = VTraceSignals.of(output, actions, batch[HEAD_LOG_PROBS], rewards, terminated, real, settings)
        targets, worth = signals.targets, signals.worth
        network.normalisers.collect(batch[Columns.OBS], targets, real, mean_over_learners)
        # A minibatch is that part of a rollout.
        network.normalisers.commit_returns(settings.return_scale_decay ** (1 / settings.minibatches))
        scale = network.return_scale.of(batch[Columns.OBS])
        worlds = network.return_scale.by_world(real, batch[Columns.OBS])
        return Minibatch(
            actions=actions,
            old_log_probs=batch[HEAD_LOG_PROBS],
            advantages=scaled_advantages(
                signals.streams, output, worlds, settings.centre_advantages, mean_over_learners
            ),
            scaled_returns=targets / scale,
            real=real,
            scaled_q_returns=worth / scale,
        )

    def loss(self, output: ActorCriticResult, minibatch: Minibatch, weights: Tensor) -> LossTerms:
        """The loss with the plain policy gradient."""
        return impala_loss(output, minibatch, self.settings, weights, mean_over_learners)
