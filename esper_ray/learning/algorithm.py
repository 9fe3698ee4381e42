"""What RLlib must be told of this project whatever the algorithm: env, runners, module, and where randomness begins."""

from __future__ import annotations

import gc
import random
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from envs.seeding import Purpose, seed_sequence
from envs.vocabulary import HeadSpec
from esper_ray.config import LearnerConfig
from esper_ray.errors import UserError
from esper_ray.learning.runner import HostRunner, failed_start, failures
from esper_ray.process import release_memory, settle
from esper_ray.ray_internals import actor_id, ask_for_reset, runner_actors
from policies.encoders import EncoderFactory
from policies.network_config import NetworkConfig
from policies.rl_module import FactoredRLModule
from policies.strategic.actor_critic import GraphWorlds

RUNNERS_PER_SEED = 4096
"""RLlib seeds runner k with seed + k, so that runs with neighbouring seeds would train the same hosts."""
RESTART_SECONDS = 120.0
"""How long a run whose runners are all dead waits for Ray to restart one."""
SETUPS = 3
"""How often the set-up is tried while runners die in it."""
AGAIN = 2**32
"""Added to the stream of what is played once more within an iteration: more than any run has iterations."""
FAILURES_IN_A_ROW = 3
"""As many errors of one runner without a complete rollout are no accident."""


def seed_generators(purpose: Purpose, seed: int, *key: int) -> None:
    """Seed Python's, numpy's and torch's generators of this process from a seed and what sets it apart."""
    state = int(seed_sequence(purpose, seed, *key).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)  # noqa: NPY002 (RLlib shuffles with this one)
    torch.manual_seed(state)


def begin_stream(env_runner: Any, stream: int, fresh_episodes: bool) -> None:
    """Give a runner's hosts and actions randomness that depends on seed, runner and ``stream`` alone.

    Args:
        env_runner: RLlib's runner.
        stream: Iterations done, plus :data:`AGAIN` for every further time in the same iteration: no two share one.
        fresh_episodes: Leave the episodes under way and start new ones.
    """
    if env_runner.env is not None:  # the driver's has none while others play
        env_runner.env.unwrapped.seed_stream = stream
    # Only at an initial reset RLlib hands its seed to the env; the module draws from torch's generator.
    if fresh_episodes:
        ask_for_reset(env_runner)
    # A runner outside of a group has no index.
    seed_generators(Purpose.RUNNER, env_runner.config.seed or 0, env_runner.worker_index or 0, stream)


def _settle(*, env_runner: Any, **kwargs: Any) -> None:
    # A runner in the driver shares its threads.
    settle(max(1, int(env_runner.config.num_cpus_per_env_runner)) if env_runner.worker_index else 1)


def _release_memory(**kwargs: Any) -> None:
    release_memory()


class FactoredAlgorithm(Algorithm):
    """What all algorithms do beyond RLlib; comes before RLlib's own class of the algorithm."""

    _alone_since: float | None = None

    def setup(self, config: AlgorithmConfig) -> None:
        """Make runners and learners.

        Raises:
            UserError: a runner could not be made. RLlib would go on with the others, or lose the reason.
        """
        for attempt in range(1, SETUPS + 1):
            try:
                super().setup(config)
                break
            except Exception as error:
                if reason := failed_start():
                    raise UserError(f"an env runner cannot start: {reason}") from error
                # RLlib asks its first runner alone for the spaces, and has no answer if that one has just died.
                if not isinstance(error, IndexError) or attempt == SETUPS:
                    raise
            gc.collect()  # the runners that were made, whose places the next ones need
        if reason := failed_start():
            self.cleanup()  # Tune's own stop needs what it makes after the set-up
            raise UserError(f"an env runner cannot start: {reason}")

    def training_step(self) -> None:
        """One step of RLlib's loop, which has just tried to bring back the runners that were lost.

        Without any runner it does nothing; RLlib then repeats it, as an iteration has a least number of steps.

        Raises:
            UserError: as for :meth:`has_runners`.
        """
        if self.has_runners():
            super().training_step()

    def has_runners(self) -> bool:
        """Whether anyone can play; if not, a moment has passed.

        Raises:
            UserError: a runner failed :data:`FAILURES_IN_A_ROW` times without a complete rollout in between, or no
                runner has come back for :data:`RESTART_SECONDS`.
        """
        self._stop_if_failing()
        group = self.env_runner_group
        if not group.num_remote_env_runners() or group.num_healthy_remote_env_runners():
            self._alone_since = None
            return True
        now = time.monotonic()
        self._alone_since = self._alone_since or now
        if now - self._alone_since > RESTART_SECONDS:
            raise UserError(
                f"all {group.num_remote_env_runners()} env runners are dead and none has come back for "
                f"{RESTART_SECONDS:.0f} s: mend what their errors above say, then go on from the latest checkpoint "
                "(esper-ray train --resume)"
            )
        time.sleep(0.5)
        return False

    def _stop_if_failing(self) -> None:
        """An error that comes back after every restart would else be repeated until no restart is left."""
        for index, actor in runner_actors(self.env_runner_group).items():
            found = failures(actor_id(actor))
            if found and found.in_a_row >= FAILURES_IN_A_ROW:
                raise UserError(
                    f"env runner {index} failed {found.in_a_row} times in a row, the last time with {found.error}"
                )

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Take over a checkpoint's state, in a new algorithm or in one that runs.

        Going back to an older checkpoint of a running algorithm is a full rollback: before this returns, every runner
        has the restored weights, has left its episodes, and draws anew. RLlib alone would leave runners with newer
        weights until the learner has made up for the updates taken back.
        """
        super().restore_from_path(path, *args, **kwargs)
        self.hand_out_weights()

    def begin_with(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over some entries of a policy's state before anything was learnt."""
        weights = self.learner_group.get_weights()["default_policy"]
        weights |= {f"network.{name}": tensor.numpy() for name, tensor in state.items()}
        self.learner_group.set_weights({"default_policy": weights})
        self.hand_out_weights()

    def hand_out_weights(self) -> None:
        """Every runner has the learner's newest weights, leaves its episodes, and draws anew."""
        weights, stream = self.newest_weights(), self.iteration

        def take_over(env_runner: Any) -> None:
            env_runner.set_state(weights)
            begin_stream(env_runner, stream, fresh_episodes=True)

        self.env_runner_group.foreach_env_runner(take_over)

    def newest_weights(self) -> dict[str, Any]:
        """The learner's, with their number, as a runner's ``set_state`` takes them."""
        component = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        learner = self.learner_group.get_state(components=component, inference_only=True)[COMPONENT_LEARNER]
        return {name: learner[name] for name in (COMPONENT_RL_MODULE, WEIGHTS_SEQ_NO)}

    def newest_policy(self) -> dict[str, torch.Tensor]:
        """The learner's newest weights as a policy's state, with of several scales of returns the first."""
        weights = self.learner_group.get_weights()["default_policy"]
        state = {name.removeprefix("network."): torch.as_tensor(value) for name, value in weights.items()}
        return state | {"return_scale.moments": state["return_scale.moments"].reshape(3, -1)[:, 0]}


class Played(NamedTuple):
    """What is played in an iteration.

    Attributes:
        env_configs: Keyword arguments of the env; the runners share several out by their index.
        rollout_length: Steps that each env plays.
    """

    env_configs: Sequence[dict[str, Any]]
    rollout_length: int


class FactoredConfig(AlgorithmConfig):
    """The half of a config that all algorithms share; comes before RLlib's own config of the algorithm.

    Attributes:
        settings: The learner's settings, the one place that the loss and the advantages read.
        total_steps: Env steps over which what falls with time falls.
        fresh_rollouts: Whether PPO starts new episodes in every rollout.
        played_in: What PPO plays in the iteration that follows so many others; None if always the same.
        worlds: Names of the worlds that observations tell apart.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class)
        self.settings = LearnerConfig()
        self.total_steps: int | None = None
        self.fresh_rollouts = False
        self.played_in: Callable[[int], Played] | None = None
        self.worlds: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        env_id: str,
        env_config: Mapping[str, Any],
        heads: Sequence[HeadSpec],
        encoder: EncoderFactory | GraphWorlds,
        rollout_length: int,
        envs_per_runner: int,
        sequence_length: int | None = None,
        fresh_rollouts: bool = False,
        played_in: Callable[[int], Played] | None = None,
        worlds: Sequence[str] = (),
        num_env_runners: int = 0,
        num_learners: int = 0,
        network: NetworkConfig | None = None,
        learner: LearnerConfig | None = None,
        total_steps: int | None = None,
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
            encoder: Makes the part of the network that reads an observation; of a network that reads graphs, the
                worlds that these are of.
            rollout_length: Steps that each env plays before they are handed to the learner.
            envs_per_runner: Envs per runner.
            sequence_length: Most steps that a gradient flows back through; an episode that is longer fills several
                rows of a minibatch, and a shorter one is padded to it. By default a whole rollout; give some steps
                more where episodes end at any time, because RLlib lets the other envs play on while one resets.
            fresh_rollouts: Start every env anew at the beginning of each of PPO's iterations, for episodes that are as
                long as a rollout (one that began later, after another had ended early, is not finished). An iteration
                then depends on the seed, its number, the weights and the optimiser's state alone, and a run that is
                resumed repeats one that was not stopped, bit for bit.
            played_in: What PPO plays in the iteration that follows so many others, if that changes: spaces and heads
                stay, and no rollout is longer than ``rollout_length``. It needs fresh rollouts.
            worlds: Names of the worlds, if there are several and the observations' leaf ``world`` says which.
            num_env_runners: Processes that play; 0 plays in this one.
            num_learners: Processes that learn; 0 learns in this one.
            network: Its widths and how it is played; the defaults if None.
            learner: Settings; the defaults if None.
            total_steps: Env steps of the whole run; needed where ``lr_final`` or ``entropy_final`` is below 1.
            seed: Of weights, actions and envs.

        Raises:
            ValueError: the rollouts cannot be dealt evenly to the learners' minibatches, or the algorithm does not
                support these lengths or this number of learners; iterations that differ without fresh rollouts.
        """
        if played_in is not None and not fresh_rollouts:
            raise ValueError("iterations that differ in what is played need fresh_rollouts")
        config = cls()
        config.settings, config.total_steps = learner or LearnerConfig(), total_steps
        config.fresh_rollouts, config.played_in, config.worlds = fresh_rollouts, played_in, tuple(worlds)
        config._play_in(env_id, env_config, rollout_length, envs_per_runner, num_env_runners)
        model = {
            "heads": tuple(heads),
            "encoder": encoder,
            "network": network or NetworkConfig(),
            # One step more than the rollout: RLlib adds the last observation for the bootstrap.
            "max_seq_len": sequence_length or rollout_length + 1,
            "bf16": config.settings.bf16,
        }
        config.rl_module(rl_module_spec=RLModuleSpec(module_class=FactoredRLModule, model_config=model))
        config.learners(num_learners=num_learners)
        # The learner itself leaves out a step whose gradient is not finite, by the norm that it has anyway. RLlib would
        # look at every parameter's in each minibatch, and a GPU be waited for as often.
        config.framework(torch_skip_nan_gradients=True)
        config._train_on()
        config.debugging(seed=RUNNERS_PER_SEED * seed, log_level="ERROR")
        return config

    def falling(self, value: float, final: float) -> float | list[list[float]]:
        """A setting that falls linearly to the share ``final`` of itself, as RLlib writes a schedule.

        Raises:
            ValueError: it falls, but nobody said over how many steps.
        """
        if final == 1:
            return value
        if self.total_steps is None:
            raise ValueError(f"a setting that falls to {final} of itself needs total_steps: give it, or leave it at 1")
        return [[0, value], [self.total_steps, final * value]]

    def played(self, iteration: int) -> Played:
        """What is played in the iteration that follows ``iteration`` others."""
        if self.played_in is None:
            return Played([self.env_config], int(self.rollout_fragment_length))
        return self.played_in(iteration)

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
        self.callbacks(on_environment_created=_settle, on_sample_end=_release_memory)
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
