"""The world as Gymnasium environments: N growing hosts per step, or one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.action_masks import build_mask, marginal_mask, mask_size, refusals
from envs.governor import Governor, Panic
from envs.grown import GrownSeeds
from envs.lifecycle import Fate, Lifecycle
from envs.limits import LifecycleRules
from envs.measurements import SlotMeasurements
from envs.observation import HIGH, LOW, ObservationLayout
from envs.population.counterfactuals import Counterfactuals, measure_counterfactuals
from envs.population.population import Population, draw_variant
from envs.population.snapshots import Snapshots
from envs.progress import HostProgress
from envs.reward import COMPONENTS, RewardAccount, RewardConfig, RewardMode, score_components
from envs.tasks import Task, make_task
from envs.vocabulary import NO_BLUEPRINT, LifecycleOp, SeedStage

Observation = dict[str, npt.NDArray[Any]]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class MorphogenesisVectorEnv(VectorEnv[Observation, npt.NDArray[np.int64], npt.NDArray[Any]]):
    """N hosts, trained together; one step is one training epoch of each.

    A step applies the actions, lets alphas and ages tick, trains, evaluates and measures. An episode ends as
    *terminated* after ``max_epochs`` (the horizon is part of the problem) or when the governor stops a host. A host
    whose episode ended starts a new one in the following step, whose action is ignored and whose reward is 0
    (Gymnasium's ``NEXT_STEP`` autoreset).

    An action that the mask refuses becomes WAIT: ``last_action_success`` in the observation is 0 and
    ``info["refused"]`` names the heads at fault.

    Args:
        num_envs: N.
        task: A task's name, or a :class:`envs.tasks.Task`.
        task_args: Arguments of a task given by name, as text (see :func:`envs.tasks.make_task`).
        max_epochs: Length of an episode.
        reward_mode: See :class:`envs.reward.RewardConfig`.
        gamma: The learner's discount, which the mode ``shaped`` needs.
        parameter_rent: λ; the task's by default.
        path_rent: κ; the task's by default.
        germination_cost: Reward lost per GERMINATE, beside the score.
        max_living_seeds: See :class:`envs.limits.LifecycleRules`, as for the next three.
        parameter_budget: Parameters that living seeds may have together.
        min_training_epochs: Epochs in TRAINING before ADVANCE opens.
        embargo_epochs: Epochs that a pruned slot stays closed.
        counterfactual_interval: Epochs between measurements of contributions.
        report_test: Evaluate each committed network on the test split too (in ``info``, never in the observation).
        seed_stream: Mixed into an int seed, so that a resumed run or a restarted worker does not repeat itself.
        device: Where hosts live.

    Attributes:
        last_actions: ``[N, 8]`` what was executed last, WAIT (all 0) after a refusal and at a reset.

    Raises:
        envs.tasks.TaskError: an unknown task, arguments that it does not take, or data that are not there.
        ValueError: a number out of range.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: str | Task = "digits_impaired",
        task_args: Mapping[str, str] | None = None,
        max_epochs: int = 150,
        reward_mode: RewardMode = "score",
        gamma: float = 1.0,
        parameter_rent: float | None = None,
        path_rent: float | None = None,
        germination_cost: float = 0.0,
        max_living_seeds: int | None = None,
        parameter_budget: int | None = None,
        min_training_epochs: int = 3,
        embargo_epochs: int = 5,
        counterfactual_interval: int = 5,
        report_test: bool = False,
        seed_stream: int = 0,
        device: str = "cpu",
    ) -> None:
        for name, value in (
            ("num_envs", num_envs),
            ("max_epochs", max_epochs),
            ("counterfactual_interval", counterfactual_interval),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if task_args and not isinstance(task, str):
            raise ValueError(f"task_args are for a task given by name: task {task.name!r} is made already")
        self.task = make_task(task, task_args) if isinstance(task, str) else task
        self.num_envs, self.max_epochs = num_envs, max_epochs
        self.counterfactual_interval, self.report_test, self.seed_stream = (
            counterfactual_interval,
            report_test,
            seed_stream,
        )
        slots = self.task.slots
        rules = LifecycleRules(min_training_epochs, embargo_epochs, max_living_seeds, parameter_budget)
        self.lifecycle = Lifecycle(num_envs, slots, rules)
        self.population = Population(self.task, num_envs, max_epochs, torch.device(device))
        self.lifecycle.costs = self.population.costs
        self.snapshots = Snapshots(self.population, slots.num_slots)
        self.layout = ObservationLayout(slots)
        self.progress = HostProgress(num_envs)
        self.measurements = SlotMeasurements((num_envs, slots.num_slots))
        self.governor = Governor(num_envs, self.task.chance_accuracy)
        self.account = RewardAccount(
            num_envs,
            RewardConfig(
                mode=reward_mode,
                gamma=gamma,
                parameter_rent=self.task.parameter_rent if parameter_rent is None else parameter_rent,
                path_rent=self.task.path_rent if path_rent is None else path_rent,
                germination_cost=germination_cost,
            ),
        )
        self.metadata = dict(type(self).metadata)
        self.single_observation_space = observation_space(self.layout)
        self.single_action_space = spaces.MultiDiscrete([head.size for head in slots.heads])
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.epoch = np.zeros(num_envs, np.int64)
        self._episode = np.zeros(num_envs, np.int64)
        self._seeds: IntArray | None = None
        self._done = np.zeros(num_envs, bool)
        self.last_actions = np.zeros((num_envs, len(slots.heads)), np.int64)
        self._last_success = np.ones(num_envs, bool)
        self._mask = np.zeros((num_envs, mask_size(slots.heads)), np.int8)

    # ------------------------------------------------------------------ Gymnasium
    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a new episode in every host.

        Args:
            seed: An int is spread over the hosts; a sequence seeds them singly; None goes on with the next episode
                of the seeds at hand (or with fresh ones at the first call).
            options: ``grown``, a :class:`envs.grown.GrownSeeds` of N hosts, lets these episodes start with the seeds
                in place: committed, and trained with the host from the first epoch on. Hosts that start anew in
                :meth:`step` start without.

        Raises:
            ValueError: seeds that do not fit the hosts.
        """
        if seed is not None or self._seeds is None:
            self._seeds = spread_seeds(seed, self.num_envs, self.seed_stream)
            self._episode[:] = 0
        everybody = np.arange(self.num_envs)
        self._begin(everybody)
        grown: GrownSeeds | None = (options or {}).get("grown")
        if grown is not None:
            grown.plant(self.lifecycle)
        self.population.sync(self.lifecycle)
        loss, accuracy = self._evaluate(everybody)
        self._open_books(everybody, loss, accuracy)
        self.progress.observe(loss, accuracy)
        self._done[:] = False
        return self._observe(), self._progress_info(accuracy)

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[Observation, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """Train every host for one epoch.

        Args:
            actions: ``[N, 8]`` head indices.

        Returns:
            Observation, rewards ``[N]`` float64, terminated ``[N]``, truncated ``[N]`` (always False), info.

        Raises:
            ValueError: actions outside the action space.
        """
        if self._seeds is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        resetting = self._done.copy()
        actions = np.asarray(actions, np.int64)
        refused = refusals(actions, self._mask, self.task.slots.heads)
        wrong = np.any(list(refused.values()), axis=0) & ~resetting
        executed = np.where((wrong | resetting)[:, None], LifecycleOp.WAIT, actions)
        self._grow_and_train(executed, resetting)
        ending = (self.epoch >= self.max_epochs) & ~resetting
        self.lifecycle.strip(np.flatnonzero(ending))
        newcomers = np.flatnonzero(resetting)
        self._begin(newcomers)
        self.population.sync(self.lifecycle)
        loss, accuracy = self._evaluate(np.arange(self.num_envs))
        self._open_books(newcomers, loss[newcomers], accuracy[newcomers])
        panic = np.where(resetting, Panic.NONE, self.governor.judge(loss, accuracy, ending | resetting))
        self.governor.start(newcomers)  # an untrained host's result is no epoch of its episode
        stopped = panic != Panic.NONE
        measured = self._measure(~(ending | resetting | stopped), accuracy)
        self._guard(stopped, resetting | ending, loss, accuracy)
        self.progress.observe(loss, accuracy)
        self.last_actions = executed
        self._last_success = ~wrong
        terminated = ending | stopped
        scores = score_components(accuracy, self.lifecycle, self.account.config)
        germinated = executed[:, 0] == LifecycleOp.GERMINATE
        components = self.account.pay(scores, self.lifecycle, germinated, measured.contribution, terminated, stopped)
        self._done = terminated
        info = self._progress_info(accuracy)
        for name, column in zip(COMPONENTS, components.T, strict=True):
            _add_info(info, f"reward_{name}", column)
        self._explain(info, refused, wrong)
        self._add_results(info, accuracy, panic, terminated)
        return self._observe(), components.sum(axis=1), terminated, np.zeros(self.num_envs, bool), info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Marginal mask of each head, concatenated, ``[N, sum of head sizes]``, as MaskablePPO's clients expect."""
        return marginal_mask(self._mask, self.task.slots.heads).astype(bool)

    # ------------------------------------------------------------------ one step's parts
    def _begin(self, hosts: IntArray) -> None:
        """Draw fresh hosts and forget everything about the old ones."""
        if not len(hosts):
            return
        assert self._seeds is not None
        generators = [_generator(self._seeds[host], self._episode[host]) for host in hosts]
        self._episode[hosts] += 1
        self.population.reset(hosts, generators)
        self.lifecycle.clear(hosts)
        self.lifecycle.costs = self.population.costs
        self.progress.start(hosts)
        self.governor.start(hosts)
        self.epoch[hosts] = 0
        self.last_actions[hosts] = LifecycleOp.WAIT
        self._last_success[hosts] = True

    def _open_books(self, hosts: IntArray, loss: FloatArray, accuracy: FloatArray) -> None:
        """Book the untrained hosts' results as the start of their episode."""
        if not len(hosts):
            return
        everybody = np.zeros(self.num_envs)
        everybody[hosts] = accuracy
        self.account.open(hosts, score_components(everybody, self.lifecycle, self.account.config)[hosts])
        self.snapshots.take(hosts, self.lifecycle)

    def _grow_and_train(self, executed: IntArray, resetting: BoolArray) -> None:
        self.lifecycle.apply(executed)
        self.lifecycle.tick()
        self.population.sync(self.lifecycle)
        if not resetting.all():
            gradients = self.population.train_epoch(self.epoch, self.lifecycle)
            self.measurements.take_gradients(gradients)
            # Finite is enough to advance: straight-through gradients grow with the time in TRAINING, every update is
            # clipped anyway, and a gate on their size would lock a seed in for good.
            self.lifecycle.gradients_ok = np.isfinite(gradients.norm)
        self.epoch += 1

    def _evaluate(self, hosts: IntArray) -> tuple[FloatArray, FloatArray]:
        return self.population.evaluate(hosts, self.lifecycle.alpha[hosts], self.lifecycle, "validation")

    def _measure(self, candidates: BoolArray, accuracy: FloatArray) -> Counterfactuals:
        """Measure contributions of the hosts whose turn it is, at once where HOLDING has just begun."""
        self.measurements.forget(~self.lifecycle.living)
        holding = self.lifecycle.stage == SeedStage.HOLDING
        turn = self.epoch % self.counterfactual_interval == 0
        due = candidates & (turn | (holding & ~self.lifecycle.measured_in_holding).any(axis=1))
        measured = measure_counterfactuals(self.population, self.lifecycle, due, accuracy)
        self.measurements.take_counterfactuals(measured)
        self.lifecycle.measured_in_holding |= holding & ~np.isnan(measured.contribution)
        return measured

    def _guard(self, stopped: BoolArray, exempt: BoolArray, loss: FloatArray, accuracy: FloatArray) -> None:
        """Roll back the hosts that the governor stopped (their results are replaced in place), save the healthy."""
        if stopped.any():
            hosts = np.flatnonzero(stopped)
            self.snapshots.restore(hosts, self.lifecycle)
            loss[hosts], accuracy[hosts] = self._evaluate(hosts)
            self.measurements.forget(~self.lifecycle.living)
        just_fossilized = (self.lifecycle.stage == SeedStage.FOSSILIZED) & (self.lifecycle.epochs_in_stage == 1)
        due = self.governor.snapshot_due() | just_fossilized.any(axis=1)
        hosts = np.flatnonzero(due & ~stopped & ~exempt)
        if len(hosts):
            self.snapshots.take(hosts, self.lifecycle)

    # ------------------------------------------------------------------ what goes out
    def _observe(self) -> Observation:
        self._mask = build_mask(self.lifecycle)
        obs = self.layout.encode(
            self.progress,
            self.lifecycle,
            self.measurements,
            self.epoch,
            self.max_epochs,
            self.last_actions[:, 0],
            self._last_success,
        )
        blueprints = np.where(self.lifecycle.living, self.lifecycle.blueprint, NO_BLUEPRINT)
        return {"obs": obs, "blueprint_indices": blueprints, "action_mask": self._mask.copy()}

    def _progress_info(self, accuracy: FloatArray) -> dict[str, Any]:
        info: dict[str, Any] = {}
        _add_info(info, "score", self.account.score.sum(axis=1))
        _add_info(info, "val_accuracy", accuracy)
        _add_info(info, "extra_parameters", self.lifecycle.extra_parameters)
        return info

    def _explain(self, info: dict[str, Any], refused: dict[str, BoolArray], wrong: BoolArray) -> None:
        """Say which heads of a refused action the mask does not admit."""
        if not wrong.any():
            return
        reasons = np.full(self.num_envs, None, object)
        for host in np.flatnonzero(wrong):
            heads = [name for name, at_fault in refused.items() if at_fault[host]]
            reasons[host] = f"the mask admits no such {', '.join(heads)} now; WAIT was executed"
        _add_info(info, "refused", reasons, wrong)

    def _add_results(self, info: dict[str, Any], accuracy: FloatArray, panic: IntArray, done: BoolArray) -> None:
        """Report the committed networks of the episodes that ended."""
        if not done.any():
            return
        life, hosts = self.lifecycle, np.flatnonzero(done)
        _add_info(info, "committed_score", self.account.score.sum(axis=1), done)
        _add_info(info, "committed_accuracy", accuracy, done)
        _add_info(info, "committed_parameters", life.costs.host + life.extra_parameters, done)
        _add_info(info, "host_parameters", life.costs.host, done)
        _add_info(info, "training_flops", self.population.training_flops.copy(), done)
        _add_info(info, "panic", panic, done)
        for fate in Fate:
            _add_info(info, f"seeds_{fate.name.lower()}", life.fates[:, fate], done)
        if self.report_test:
            test = np.zeros(self.num_envs)
            test[hosts] = self.population.evaluate(hosts, life.alpha[hosts], life, "test")[1]
            score = score_components(test, life, self.account.config).sum(axis=1)
            _add_info(info, "test_accuracy", test, done)
            _add_info(info, "test_score", score, done)


def observation_space(layout: ObservationLayout) -> spaces.Dict:
    """The space of one host's observation."""
    slots = layout.slots
    return spaces.Dict(
        {
            "obs": spaces.Box(LOW, HIGH, (layout.size,), np.float32),
            "blueprint_indices": spaces.Box(NO_BLUEPRINT, len(slots.blueprints) - 1, (slots.num_slots,), np.int64),
            "action_mask": spaces.Box(0, 1, (mask_size(slots.heads),), np.int8),
        }
    )


def spread_seeds(seed: int | Sequence[int] | None, num_hosts: int, stream: int = 0) -> IntArray:
    """One seed per host.

    Args:
        seed: An int is spread, so that two workers with neighbouring seeds share no host; a sequence is taken as it
            is; None draws from the operating system.
        num_hosts: N.
        stream: Other streams of the same int seed share no host either.

    Raises:
        ValueError: a sequence that does not have one seed per host.
    """
    if seed is None or isinstance(seed, int | np.integer):
        sequence = np.random.SeedSequence(None if seed is None else int(seed), spawn_key=(stream,) if stream else ())
        return sequence.generate_state(num_hosts).astype(np.int64)
    if len(seed) != num_hosts:
        raise ValueError(f"a sequence of seeds needs one per host: got {len(seed)} for {num_hosts} hosts")
    return np.array([int(value) for value in seed], np.int64)


def host_variant(task: Task, seed: int) -> int:
    """Index of the variant that a host seed's first episode draws."""
    return draw_variant(task, _generator(seed, 0))


def _generator(seed: int, episode: int) -> np.random.Generator:
    """All chance of one host's episode."""
    return np.random.default_rng(np.random.SeedSequence([int(seed), int(episode)]))


def _add_info(
    info: dict[str, Any], name: str, values: npt.NDArray[Any], present: npt.NDArray[np.bool_] | None = None
) -> None:
    """Add one key in Gymnasium's convention: values, and under ``_name`` where they are present."""
    info[name] = values
    info[f"_{name}"] = np.ones(len(values), bool) if present is None else present.copy()


class MorphogenesisEnv(gym.Env[Observation, npt.NDArray[np.int64]]):
    """One growing host: :class:`MorphogenesisVectorEnv` with N = 1, without autoreset.

    Takes the same keywords. ``reset(seed=s)`` starts the same host as one seeded with ``s`` in a population.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        self.population_of_one = MorphogenesisVectorEnv(num_envs=1, **kwargs)
        self.observation_space = self.population_of_one.single_observation_space
        self.action_space = self.population_of_one.single_action_space
        self._ended = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        self._ended = False
        obs, info = self.population_of_one.reset(seed=None if seed is None else [seed], options=options)
        return _first(obs), _first_info(info)

    def step(self, action: npt.NDArray[np.int64]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Train the host for one epoch.

        Raises:
            gymnasium.error.ResetNeeded: the episode is over, or none has begun.
        """
        if self._ended:
            raise gym.error.ResetNeeded("the episode is over: call reset() before the next step()")
        obs, reward, terminated, truncated, info = self.population_of_one.step(np.asarray(action)[None])
        self._ended = bool(terminated[0])
        return _first(obs), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first_info(info)

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Marginal mask of each head, concatenated, ``[sum of head sizes]``."""
        return self.population_of_one.action_masks()[0]


def _first(obs: Observation) -> Observation:
    return {name: values[0] for name, values in obs.items()}


def _first_info(info: dict[str, Any]) -> dict[str, Any]:
    return {name: values[0] for name, values in info.items() if not name.startswith("_") and info[f"_{name}"][0]}
