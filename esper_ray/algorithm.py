"""What RLlib must be told of this project whatever the algorithm: env, runners, module, and where randomness begins."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from envs.vocabulary import HeadSpec
from esper_ray.config import LearnerConfig
from esper_ray.process import release_memory, settle
from esper_ray.runner import HostRunner
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


def _release_memory(**kwargs: Any) -> None:
    release_memory()


def _reseed_restarted(*, algorithm: Any, env_runner_group: Any, env_runner_indices: list[int], **kwargs: Any) -> None:
    begin = functools.partial(begin_stream, stream=algorithm.iteration + 1)
    env_runner_group.foreach_env_runner(begin, remote_worker_ids=env_runner_indices, local_env_runner=False)


class FactoredConfig(AlgorithmConfig):
    """The half of a config that all algorithms share; comes before RLlib's own config of the algorithm.

    Attributes:
        settings: The learner's settings, the one place that the loss and the advantages read.
    """

    settings: LearnerConfig

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
    ) -> Self:
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
            rollout_length: Steps that each env plays before they are handed to the learner.
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
            ValueError: the rollouts cannot be dealt evenly to the learners' minibatches, or the algorithm does not
                support these lengths or this number of learners.
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
        config._train_on()
        config.debugging(seed=seed, log_level="ERROR")
        return config

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
            env_runner_cls=HostRunner,
            num_env_runners=num_runners,
            num_envs_per_env_runner=envs_per_runner,
            gym_env_vectorize_mode="vector_entry_point",
            batch_mode="truncate_episodes",
            rollout_fragment_length=rollout_length,
            # RLlib's default of 60 s drops slower rollouts without an error.
            sample_timeout_s=None,
        )
        self.callbacks(
            on_environment_created=_seed_runner,
            on_sample_end=_release_memory,
            on_env_runners_recreated=_reseed_restarted,
        )
        self.fault_tolerance(
            restart_failed_env_runners=True,
            # True would rebuild and retry a runner's envs without end.
            restart_failed_sub_environments=False,
            max_num_env_runner_restarts=20,
            delay_between_env_runner_restarts_s=2.0,
        )

    @abstractmethod
    def _train_on(self) -> None:
        """Hand RLlib its own copies of the settings that its code reads; env runners and learners are set.

        Raises:
            ValueError: as for :meth:`of`.
        """
