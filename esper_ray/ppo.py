"""The algorithm as RLlib knows it: a PPO whose config names this project's module, learner and settings."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.ppo.ppo import PPO, PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from envs.vocabulary import HeadSpec
from esper_ray.config import LearnerConfig
from esper_ray.learner import EsperPPOLearner
from esper_ray.process import settle
from policies.encoders import EncoderFactory
from policies.network import NetworkConfig
from policies.rl_module import FactoredRLModule


def begin_stream(env_runner: Any, stream: int) -> None:
    """Give a runner's hosts and actions randomness that no earlier life of the run has used.

    RLlib seeds a runner's env only, and a restarted runner like the one before; the module draws from torch's
    generator.
    """
    env_runner.env.unwrapped.seed_stream = stream
    # A runner outside of a group has no index.
    runner_seed = (env_runner.config.seed or 0) + (env_runner.worker_index or 0)
    torch.manual_seed(int(np.random.SeedSequence(runner_seed, spawn_key=(stream,)).generate_state(1)[0]))


def _seed_runner(*, env_runner: Any, **kwargs: Any) -> None:
    settle()
    begin_stream(env_runner, env_runner.config.env_config.get("seed_stream", 0))


def _reseed_restarted(*, algorithm: Any, env_runner_group: Any, env_runner_indices: list[int], **kwargs: Any) -> None:
    begin = functools.partial(begin_stream, stream=algorithm.iteration + 1)
    env_runner_group.foreach_env_runner(begin, remote_worker_ids=env_runner_indices, local_env_runner=False)


class EsperPPO(PPO):
    """PPO over a factored action. The class exists because Tune rebuilds a config from its algorithm's default."""

    @classmethod
    def get_default_config(cls) -> EsperPPOConfig:
        """A config that still lacks an env (see :meth:`EsperPPOConfig.of`)."""
        return EsperPPOConfig()


class EsperPPOConfig(PPOConfig):
    """Config of :class:`EsperPPO`.

    Attributes:
        settings: The learner's settings, the one place that the loss and the advantages read.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class or EsperPPO)
        self.settings = LearnerConfig()
        self.use_kl_loss = False

    @classmethod
    def of(
        cls,
        *,
        env_id: str,
        env_config: Mapping[str, Any],
        heads: Sequence[HeadSpec],
        encoder: EncoderFactory,
        rollout_length: int,
        envs_per_runner: int,
        sequence_length: int | None = None,
        num_env_runners: int = 0,
        num_learners: int = 0,
        network: NetworkConfig | None = None,
        learner: LearnerConfig | None = None,
        seed: int = 0,
    ) -> EsperPPOConfig:
        """A config ready to build.

        Where every episode is as long as a rollout, each rollout is one episode of every env and each sequence of a
        minibatch is a whole episode. Otherwise episodes are cut at a rollout's end and go on in the next, with the
        recurrent state that they had.

        Args:
            env_id: Name under which Ray's registry knows a creator of vector envs; it gets ``env_config`` plus
                ``num_envs`` and resets in the step after a done one. Its actions are ``MultiDiscrete``, one entry
                per head; its observations are a ``Dict`` of what the encoder reads and, unless everything is always
                admitted, the flat ``action_mask``.
            env_config: Keyword arguments of the env.
            heads: Parts of the action, op first.
            encoder: Makes the part of the network that reads an observation.
            rollout_length: Steps that each env plays per iteration.
            envs_per_runner: Envs per runner.
            sequence_length: Most steps that a gradient flows back through; an episode that is longer fills several
                rows of a minibatch, and a shorter one is padded to it. By default a whole rollout; give some steps
                more where episodes end at any time, because RLlib lets the other envs play on while one resets.
            num_env_runners: Processes that play; 0 plays in this one.
            num_learners: Processes that learn; 0 learns in this one.
            network: Widths; the defaults if None.
            learner: Settings; the defaults if None.
            seed: Of weights, actions and envs.

        Raises:
            ValueError: the envs cannot be dealt evenly to the learners' minibatches, or several learners are
                asked for a single minibatch.
        """
        config = cls()
        config.settings = learner or LearnerConfig()
        config._play_in(env_id, env_config, rollout_length, envs_per_runner, num_env_runners)
        model = {
            "heads": tuple(heads),
            "encoder": encoder,
            "network": network or NetworkConfig(),
            # One step more than the rollout: RLlib adds the last observation for the bootstrap.
            "max_seq_len": sequence_length or rollout_length + 1,
        }
        config.rl_module(rl_module_spec=RLModuleSpec(module_class=FactoredRLModule, model_config=model))
        config.learners(num_learners=num_learners)
        config._train_on(envs_per_runner * max(num_env_runners, 1), rollout_length, max(num_learners, 1))
        config.debugging(seed=seed, log_level="ERROR")
        return config

    def get_default_learner_class(self) -> type[EsperPPOLearner]:
        """The learner of this algorithm."""
        return EsperPPOLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The module of this algorithm; its ``model_config`` must be given."""
        return RLModuleSpec(module_class=FactoredRLModule)

    def _play_in(
        self, env_id: str, env_config: Mapping[str, Any], rollout_length: int, envs_per_runner: int, num_runners: int
    ) -> None:
        """How the env is made and played, and what happens when a runner fails."""
        self.environment(
            env_id,
            env_config=dict(env_config),
            disable_env_checking=True,
            # Actions are indices already; True would copy all of them at every step.
            normalize_actions=False,
            clip_actions=False,
        )
        self.env_runners(
            num_env_runners=num_runners,
            num_envs_per_env_runner=envs_per_runner,
            gym_env_vectorize_mode="vector_entry_point",
            batch_mode="truncate_episodes",
            rollout_fragment_length=rollout_length,
            # RLlib's default of 60 s drops slower rollouts without an error.
            sample_timeout_s=None,
        )
        self.callbacks(on_environment_created=_seed_runner, on_env_runners_recreated=_reseed_restarted)
        self.fault_tolerance(
            restart_failed_env_runners=True,
            # True would rebuild and retry a runner's envs without end.
            restart_failed_sub_environments=False,
            max_num_env_runner_restarts=20,
            delay_between_env_runner_restarts_s=2.0,
        )

    def _train_on(self, envs: int, rollout_length: int, learners: int) -> None:
        """Hand RLlib its own copies of the settings that its code reads.

        Args:
            envs: Over all runners.
            rollout_length: Steps of each.
            learners: At least 1.
        """
        settings = self.settings
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
            lr=settings.lr,
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
