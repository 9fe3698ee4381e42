"""The algorithm as RLlib knows it: a PPO whose config names this project's module, learner and settings."""

from __future__ import annotations

import functools

from ray.rllib.algorithms.ppo.ppo import PPO, PPOConfig

from esper_ray.algorithm import FactoredAlgorithm, FactoredConfig, begin_stream, seed_generators
from esper_ray.learner import EsperPPOLearner


class EsperPPO(FactoredAlgorithm, PPO):
    """PPO over a factored action."""

    @classmethod
    def get_default_config(cls) -> EsperPPOConfig:
        """A config that still lacks an env (see :meth:`FactoredConfig.of`)."""
        return EsperPPOConfig()

    def training_step(self) -> None:
        """One iteration: rollouts, then an update. All randomness in it depends on the seed and its number alone."""
        seed, stream = self.config.seed or 0, self.iteration
        self.learner_group.foreach_learner(lambda learner: seed_generators(seed, stream))  # they shuffle
        begin = functools.partial(begin_stream, stream=stream, fresh_episodes=self.config.fresh_rollouts)
        self.env_runner_group.foreach_env_runner(begin)
        super().training_step()


class EsperPPOConfig(FactoredConfig, PPOConfig):
    """Config of :class:`EsperPPO`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class or EsperPPO)
        self.use_kl_loss = False

    def get_default_learner_class(self) -> type[EsperPPOLearner]:
        """The learner of this algorithm."""
        return EsperPPOLearner

    def _train_on(self) -> None:
        """One update per iteration, over the rollouts of all runners."""
        settings, rollout_length = self.settings, int(self.rollout_fragment_length)
        learners = max(self.num_learners, 1)
        envs = self.num_envs_per_env_runner * max(self.num_env_runners, 1)
        shares = learners * settings.minibatches
        if envs % shares:
            raise ValueError(
                f"{envs} envs cannot be dealt evenly to {learners} learner(s) × {settings.minibatches} "
                f"minibatches: make envs_per_runner × num_env_runners a multiple of {shares}, or change minibatches"
            )
        if learners > 1 and settings.minibatches == 1:
            raise ValueError(
                f"{learners} learners need at least 2 minibatches, got 1: RLlib deals whole batches to one learner only"
            )
        batch_size = envs // learners * rollout_length
        # RLlib counts a minibatch in steps, the artificial last one of every episode included, and takes the rows
        # that they fill on average, rounded down. The step more keeps a quotient just below a whole number from
        # losing a row, and a minibatch of one row from being empty. None is the whole batch.
        minibatch_size = min(envs // shares * (rollout_length + 1) + 1, batch_size)
        self.training(
            lr=self.falling(settings.lr, settings.lr_final),
            gamma=settings.gamma,
            lambda_=settings.gae_lambda,
            clip_param=settings.clip,
            entropy_coeff=settings.entropy_coeff,
            vf_loss_coeff=settings.value_loss_coeff,
            grad_clip=settings.grad_clip,
            num_epochs=settings.num_epochs,
            minibatch_size=minibatch_size if settings.minibatches > 1 else None,
            shuffle_batch_per_epoch=True,
            train_batch_size_per_learner=batch_size,
        )
        # A step whose runners all died is done again once one is back.
        self.reporting(min_sample_timesteps_per_iteration=1)
