"""The algorithm as RLlib knows it: a PPO whose config names this project's module, learner and settings."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo.ppo import PPO, PPOConfig
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from envs.seeding import Purpose
from esper_ray.learning.algorithm import (
    AGAIN,
    FactoredAlgorithm,
    FactoredConfig,
    Played,
    begin_stream,
    seed_generators,
)
from esper_ray.learning.ppo_learner import EsperPPOLearner


class Rollout(NamedTuple):
    """What a runner hands over: all of it or nothing."""

    episodes: list[Any]
    metrics: dict[str, Any]


def play(env_runner: Any, weights: dict[str, Any], played: Played, stream: int, fresh_episodes: bool) -> Rollout:
    """A rollout that depends on nothing but the arguments, and on the episodes under way unless they are left.

    Ray may have restarted the runner without anybody noticing: weights, world and seeds come with every order.
    """
    env_runner.play_in(played.env_configs[(env_runner.worker_index or 0) % len(played.env_configs)])
    env_runner.set_state(weights)  # does nothing if it has these
    begin_stream(env_runner, stream, fresh_episodes)
    steps = played.rollout_length * env_runner.num_envs
    return Rollout(env_runner.sample(num_timesteps=steps), env_runner.get_metrics())


def _fragments(rollout_length: int, most: int | None) -> list[int]:
    """Lengths of the parts in which a rollout is learnt from: ``most`` each, and what is left."""
    if most is None:
        return [rollout_length]
    return [min(most, rollout_length - start) for start in range(0, rollout_length, most)]


def _begin_update(learner: Any, seed: int, stream: int, sequence_length: int) -> None:
    """Seed what shuffles, and have rows be no longer than what was played: all of them are padded to that length."""
    seed_generators(Purpose.LEARNER, seed, stream)
    for _, module in learner.module.items():
        module.unwrapped().set_sequence_length(sequence_length)


class EsperPPO(FactoredAlgorithm, PPO):
    """PPO over a factored action.

    RLlib's own step ends with the rollouts that it has when its last runner dies, and takes more than it needs where
    some fill in for others. Here a step learns from one whole rollout per runner, whoever plays it.
    """

    @classmethod
    def get_default_config(cls) -> EsperPPOConfig:
        """A config that still lacks an env (see :meth:`FactoredConfig.of`)."""
        return EsperPPOConfig()

    def setup(self, config: AlgorithmConfig) -> None:
        """Make runners and learners (see :meth:`FactoredAlgorithm.setup`)."""
        super().setup(config)
        self.share_weights()

    def hand_out_weights(self) -> None:
        """Now, and to rollouts that are ordered later (see :meth:`FactoredAlgorithm.hand_out_weights`)."""
        super().hand_out_weights()
        self.share_weights()

    def training_step(self) -> None:
        """One iteration: rollouts, then an update, fragment by fragment.

        Episodes that a fragment cuts go on in the next, with the recurrent state that they had; a runner that is lost
        and restarted in between begins new ones. All randomness depends on the seed and the iteration's number alone.

        Raises:
            UserError: as for :meth:`has_runners`.
        """
        played, streams = self.config.played(self.iteration), itertools.count(self.iteration, AGAIN)
        for number, length in enumerate(_fragments(played.rollout_length, self.config.settings.fragment_epochs)):
            fresh_episodes = self.config.fresh_rollouts and number == 0
            self._learn_from(Played(played.env_configs, length), number, streams, fresh_episodes)

    def _learn_from(self, played: Played, number: int, streams: Iterator[int], fresh_episodes: bool) -> None:
        """Play a fragment, and make an update with it.

        Args:
            played: What, and for how long.
            number: Of the fragment in its iteration.
            streams: Those of the iteration that were not used yet.
            fresh_episodes: Whether it begins with new episodes.
        """
        begin = functools.partial(
            _begin_update,
            seed=self.config.seed or 0,
            stream=self.iteration + number * AGAIN,
            sequence_length=self.config.sequence_length(played.rollout_length),
        )
        self.learner_group.foreach_learner(begin)
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            rollouts = self._rollouts(played, streams, fresh_episodes)
            self.metrics.aggregate([rollout.metrics for rollout in rollouts], key=ENV_RUNNER_RESULTS)
        steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME))
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            learnt = self.learner_group.update(
                episodes=[episode for rollout in rollouts for episode in rollout.episodes],
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps},
                num_epochs=self.config.num_epochs,
                minibatch_size=self.config.minibatch_steps(played.rollout_length),
                shuffle_batch_per_epoch=self.config.shuffle_batch_per_epoch,
            )
            self.metrics.aggregate(learnt, key=LEARNER_RESULTS)
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self.share_weights()

    def _rollouts(self, played: Played, streams: Iterator[int], fresh_episodes: bool) -> list[Rollout]:
        """As many rollouts as there are runners, dead or alive."""
        group = self.env_runner_group
        wanted = max(group.num_remote_env_runners(), 1)
        rollouts: list[Rollout] = []
        while True:
            if self.has_runners():
                rollouts += self._play(played, wanted - len(rollouts), next(streams), fresh_episodes)
            if len(rollouts) == wanted:
                return rollouts
            group.probe_unhealthy_env_runners()

    def _play(self, played: Played, most: int, stream: int, fresh_episodes: bool) -> list[Rollout]:
        """One rollout of each living runner, or of the driver where there are none; not more than ``most``."""
        group = self.env_runner_group
        order = functools.partial(play, played=played, stream=stream, fresh_episodes=fresh_episodes)
        if not group.num_remote_env_runners():
            rollout = order(group.local_env_runner, ray.get(self._weights))
            # The learner lengthens episodes in place, and the runner counts these parts when the episode is over.
            episodes = [episode if episode.is_done else copy.deepcopy(episode) for episode in rollout.episodes]
            return [Rollout(episodes, rollout.metrics)]
        return group.foreach_env_runner(
            order,
            kwargs={"weights": self._weights},
            remote_worker_ids=group.healthy_env_runner_ids()[:most],
            local_env_runner=False,
            timeout_seconds=self.config.sample_timeout_s,
        )

    def share_weights(self) -> None:
        """Put the learner's weights where the next rollouts find them."""
        weights = self.newest_weights()
        self.env_runner_group.local_env_runner.set_state(weights)  # checkpoints hold its state, too
        self._weights = ray.put(weights)


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
        self.training(
            lr=self.falling(settings.lr, settings.lr_final),
            gamma=settings.gamma,
            lambda_=settings.gae_lambda,
            clip_param=settings.clip,
            entropy_coeff=settings.entropy_coeff,
            vf_loss_coeff=settings.value_loss_coeff,
            grad_clip=settings.grad_clip,
            num_epochs=settings.num_epochs,
            minibatch_size=self.minibatch_steps(rollout_length),
            shuffle_batch_per_epoch=True,
            train_batch_size_per_learner=envs // learners * rollout_length,
        )

    def minibatch_steps(self, rollout_length: int) -> int | None:
        """Steps of a minibatch, where each env has played so many; None is the whole batch.

        RLlib counts them with the artificial last one of every episode, and takes the rows that they fill on average,
        rounded down. The step more keeps a quotient just below a whole number from losing a row, and a minibatch of one
        row from being empty.
        """
        learners, minibatches = max(self.num_learners, 1), self.settings.minibatches
        if minibatches == 1:
            return None
        envs = self.num_envs_per_env_runner * max(self.num_env_runners, 1)
        return min(envs // (learners * minibatches) * (rollout_length + 1) + 1, envs // learners * rollout_length)

    def sequence_length(self, rollout_length: int) -> int:
        """Steps of a row, where each env has played so many: as many less than at most as the rollout has."""
        most: int = self.rl_module_spec.model_config["max_seq_len"]
        return most - (int(self.rollout_fragment_length) - rollout_length)
