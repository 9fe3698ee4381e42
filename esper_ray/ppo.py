"""The algorithm as RLlib knows it: a PPO whose config names this project's module, learner and settings."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.ppo.ppo import PPO, PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from envs.slots import SlotConfig
from esper_ray.config import LearnerConfig
from esper_ray.learner import EsperPPOLearner
from esper_ray.process import settle
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
        slots: SlotConfig,
        episode_length: int,
        hosts_per_runner: int,
        num_env_runners: int = 0,
        num_learners: int = 0,
        network: NetworkConfig | None = None,
        learner: LearnerConfig | None = None,
        seed: int = 0,
    ) -> EsperPPOConfig:
        """A config ready to build.

        Every rollout is one episode of every host, and every sequence of a minibatch is a whole episode.

        Args:
            env_id: Name under which Ray's registry knows a creator of vector envs; it gets ``env_config`` plus
                ``num_envs`` and resets in the step after a done one.
            env_config: Keyword arguments of the env.
            slots: Those of the task's hosts.
            episode_length: Steps of an episode that is not stopped early.
            hosts_per_runner: Envs per runner.
            num_env_runners: Processes that play; 0 plays in this one.
            num_learners: Processes that learn; 0 learns in this one.
            network: Widths; the defaults if None.
            learner: Settings; the defaults if None.
            seed: Of weights, actions and envs.

        Raises:
            ValueError: the hosts cannot be dealt evenly to the learners' minibatches, or several learners are
                asked for a single minibatch.
        """
        settings = learner or LearnerConfig()
        hosts = hosts_per_runner * max(num_env_runners, 1)
        config = cls()
        config.settings = settings
        config.environment(
            env_id,
            env_config=dict(env_config),
            disable_env_checking=True,
            # Actions are indices already; True would copy all of them at every step.
            normalize_actions=False,
            clip_actions=False,
        )
        config.env_runners(
            num_env_runners=num_env_runners,
            num_envs_per_env_runner=hosts_per_runner,
            gym_env_vectorize_mode="vector_entry_point",
            batch_mode="truncate_episodes",
            rollout_fragment_length=episode_length,
            # RLlib's default of 60 s drops slower rollouts without an error.
            sample_timeout_s=None,
        )
        config.learners(num_learners=num_learners)
        config.rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=FactoredRLModule,
                model_config={
                    "slot_ids": list(slots.slot_ids),
                    "internal_levels": slots.internal_levels,
                    "network": asdict(network or NetworkConfig()),
                    # One step more than the fragment: RLlib adds the last observation for the bootstrap.
                    "max_seq_len": episode_length + 1,
                },
            )
        )
        config._training_from(settings, hosts, episode_length, max(num_learners, 1))
        config.callbacks(on_environment_created=_seed_runner, on_env_runners_recreated=_reseed_restarted)
        config.debugging(seed=seed, log_level="ERROR")
        config.fault_tolerance(
            restart_failed_env_runners=True,
            # True would rebuild and retry a runner's envs without end.
            restart_failed_sub_environments=False,
            max_num_env_runner_restarts=20,
            delay_between_env_runner_restarts_s=2.0,
        )
        return config

    def get_default_learner_class(self) -> type[EsperPPOLearner]:
        """The learner of this algorithm."""
        return EsperPPOLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The module of this algorithm; its ``model_config`` must be given."""
        return RLModuleSpec(module_class=FactoredRLModule)

    def _training_from(self, settings: LearnerConfig, hosts: int, episode_length: int, learners: int) -> None:
        """Hand RLlib its own copies of the settings that its code reads."""
        shares = learners * settings.minibatches
        if hosts % shares:
            raise ValueError(
                f"{hosts} hosts cannot be dealt evenly to {learners} learner(s) × {settings.minibatches} "
                f"minibatches: make hosts_per_runner × num_env_runners a multiple of {shares}, or change minibatches"
            )
        if learners > 1 and settings.minibatches == 1:
            raise ValueError(
                f"{learners} learners need at least 2 minibatches, got 1: RLlib deals whole batches to one learner only"
            )
        # RLlib counts a minibatch in steps, the artificial last one of every row included, and divides by the
        # mean row to get rows; None is the whole batch.
        per_minibatch = hosts // shares * (episode_length + 1)
        self.training(
            lr=settings.lr,
            gamma=settings.gamma,
            lambda_=settings.gae_lambda,
            clip_param=settings.clip,
            entropy_coeff=settings.entropy_coeff,
            vf_loss_coeff=settings.value_loss_coeff,
            grad_clip=settings.grad_clip,
            num_epochs=settings.num_epochs,
            minibatch_size=per_minibatch if settings.minibatches > 1 else None,
            shuffle_batch_per_epoch=True,
            train_batch_size_per_learner=hosts // learners * episode_length,
        )
