"""RLlib's PPO learner with this project's advantages and loss, and a stop before the policy strays too far."""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from esper_ray.learning.advantages import FactoredAdvantages
from esper_ray.learning.diagnostics import REPLAY_LIMIT, read
from esper_ray.learning.learner import FactoredLearner, mean_over_learners
from esper_ray.learning.loss import LossTerms, Minibatch, ppo_loss
from policies.policy_network import PolicyNetwork
from policies.results import ActorCriticResult
from policies.rl_module import HEAD_LOG_PROBS


class EsperPPOLearner(FactoredLearner, PPOTorchLearner):
    """PPO over a factored action.

    Per minibatch: forward, loss, and the divergence from the rollout's policy *before* the step. Once that exceeds
    ``kl_stop``, this step and the rest of the update are left out.
    """

    stays_with_rollout = True

    def build(self) -> None:
        """Set up as RLlib does, with these advantages instead of its own. A second call does nothing."""
        if self.is_built:
            return
        super().build()
        self._advantages = FactoredAdvantages(settings=self.settings, mean_over_learners=mean_over_learners)
        self.replace_in_pipeline("GeneralAdvantageEstimation", self._advantages)

    def update(self, *args: Any, num_total_minibatches: int = 0, **kwargs: Any) -> Any:
        """All epochs over one rollout: in every learner the same number of minibatches, epochs × minibatches.

        RLlib's own count for several learners leaves out the artificial steps, which loses the last minibatch; with
        one learner it goes on until every row has had its turn, which adds some if episodes differ in length.
        """
        steps = self.settings.num_epochs * self.settings.minibatches
        with self.transaction():
            return super().update(*args, num_total_minibatches=steps, **kwargs)

    def minibatch(self, network: PolicyNetwork, batch: dict[str, Any], output: ActorCriticResult) -> Minibatch:
        """As the connector computed it from the whole rollout, whose returns the scale takes in at the first one."""
        network.normalisers.commit_returns(self.settings.return_scale_decay)
        return Minibatch(
            actions=batch[Columns.ACTIONS].long(),
            old_log_probs=batch[HEAD_LOG_PROBS],
            advantages=batch[Postprocessing.ADVANTAGES],
            scaled_returns=batch[Postprocessing.VALUE_TARGETS] / network.return_scale.of(batch[Columns.OBS]),
            real=batch[Columns.LOSS_MASK],
        )

    def loss(self, output: ActorCriticResult, minibatch: Minibatch, weights: Tensor) -> LossTerms:
        """The clipped loss."""
        return ppo_loss(output, minibatch, self.settings, weights, mean_over_learners)

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Log what concerns the update as a whole, and whether it belonged to its rollout."""
        super().after_gradient_based_update(timesteps=timesteps)
        for module_id, error in read(self._advantages.replay_errors).items():
            self._log(module_id, {"replay_error": error})
            # NaN rings, too.
            self._count(module_id, {"alarm/replay": int(not error <= REPLAY_LIMIT)})
