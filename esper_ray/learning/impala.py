"""The asynchronous algorithm: RLlib's IMPALA with this project's module, learner and settings."""

from __future__ import annotations

import functools
from typing import Any

from ray.rllib.algorithms.impala.impala import IMPALA, IMPALAConfig

from esper_ray.config import OP_WITHOUT_VTRACE
from esper_ray.learning.algorithm import AGAIN, FactoredAlgorithm, FactoredConfig, begin_stream
from esper_ray.learning.impala_learner import EsperImpalaLearner

POLL_SECONDS = 0.05
"""How long the driver waits for rollouts before it looks after everything else; 0 would keep a core busy."""


def _reseed_restarted(*, algorithm: Any, env_runner_group: Any, env_runner_indices: list[int], **kwargs: Any) -> None:
    """RLlib seeds a restarted runner like the one before."""
    stream = algorithm.iteration + AGAIN * env_runner_group.num_remote_worker_restarts()
    begin = functools.partial(begin_stream, stream=stream, fresh_episodes=True)
    env_runner_group.foreach_env_runner(begin, remote_worker_ids=env_runner_indices, local_env_runner=False)


class EsperImpala(FactoredAlgorithm, IMPALA):
    """IMPALA over a factored action: no runner waits for another, nor for the learner to have used its rollout."""

    @classmethod
    def get_default_config(cls) -> EsperImpalaConfig:
        """A config that still lacks an env (see :meth:`FactoredConfig.of`)."""
        return EsperImpalaConfig()


class EsperImpalaConfig(FactoredConfig, IMPALAConfig):
    """Config of :class:`EsperImpala`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class or EsperImpala)

    def get_default_learner_class(self) -> type[EsperImpalaLearner]:
        """The learner of this algorithm."""
        return EsperImpalaLearner

    def _train_on(self) -> None:
        """One update per rollout of one runner; an iteration ends after as many steps as PPO's."""
        settings, rollout_length = self.settings, int(self.rollout_fragment_length)
        envs = self.num_envs_per_env_runner
        sequence_length = self.rl_module_spec.model_config["max_seq_len"]
        if sequence_length <= rollout_length:
            raise ValueError(
                f"IMPALA corrects whole rollouts, so sequence_length must be above rollout_length ({rollout_length}), "
                f"got {sequence_length}: shorten rollout_length instead"
            )
        if self.num_learners > 1:
            raise ValueError(
                f"IMPALA learns in one process here, got num_learners = {self.num_learners}: give 0 (this process) or "
                "1, or use PPO"
            )
        if settings.critic_baseline == "op":
            raise ValueError(f"critic_baseline op has no meaning with IMPALA ({OP_WITHOUT_VTRACE}): give factored")
        if envs % settings.minibatches:
            raise ValueError(
                f"the {envs} envs of a runner cannot be dealt evenly to {settings.minibatches} minibatches: make "
                "envs_per_runner a multiple, or change minibatches"
            )
        rows = envs // settings.minibatches
        # RLlib counts a minibatch in steps, the artificial last one of every rollout included, and takes the rows
        # that they fill on average, rounded down; it wants a multiple of the rollout's length. None is the whole.
        lengths = -(-rows * (rollout_length + 1) // rollout_length)
        self.training(
            lr=self.falling(settings.lr, settings.lr_final),
            gamma=settings.gamma,
            entropy_coeff=settings.entropy_coeff,
            vf_loss_coeff=settings.value_loss_coeff,
            grad_clip=settings.grad_clip,
            num_epochs=1,
            minibatch_size=lengths * rollout_length if settings.minibatches > 1 else None,
            shuffle_batch_per_epoch=True,
            train_batch_size_per_learner=envs * rollout_length,
            timeout_s_sampler_manager=POLL_SECONDS,
        )
        self.callbacks(on_env_runners_recreated=_reseed_restarted)
        self.reporting(
            min_time_s_per_iteration=None,
            min_sample_timesteps_per_iteration=envs * max(self.num_env_runners, 1) * rollout_length,
        )
