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

from envs.action_masks import marginal_mask, mask_size, whole_numbers
from envs.computing import host_computation
from envs.episode_state import EpisodeState
from envs.graph.layout import UNKNOWN, GraphLayout
from envs.graph.measurements import GraphMeasurements
from envs.grown import GrownSeeds
from envs.lifecycle import Lifecycle
from envs.limits import LifecycleRules
from envs.measurements import SeedGradients, SlotMeasurements
from envs.observation import HIGH, LOW, ObservationLayout
from envs.population.population import Population, draw_variant
from envs.population.saved import SavedPopulation
from envs.progress import HostProgress
from envs.reward import COMPONENTS, RewardAccount, RewardConfig, RewardMode, compute_rent, score_components
from envs.seeding import HostChance, episode_generator
from envs.slot_states import Fate
from envs.tasks import Task, make_task
from envs.vocabulary import NO_BLUEPRINT, LifecycleOp
from envs.watch import HostWatch, Observation

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
        compute_rent: μ, reward lost per doubling of the training's FLOPs beside those of never growing.
        max_living_seeds: See :class:`envs.limits.LifecycleRules`, as for the next three.
        parameter_budget: Parameters that living seeds may have together.
        min_training_epochs: Epochs in TRAINING before ADVANCE opens.
        embargo_epochs: Epochs that a pruned slot stays closed.
        counterfactual_interval: Epochs between measurements of contributions.
        graph: Observe hosts as graphs: ``graph`` float32 ``[G]``, see :class:`envs.graph.layout.GraphLayout`, and
            ``action_mask``, in place of ``obs`` and ``blueprint_indices``, which it holds. The hosts do not differ.
        report_test: Evaluate each committed network on the test split too (in ``info``, never in the observation).
        seed_stream: Mixed into an int seed, so that a resumed run or a restarted worker does not repeat itself.
        device: Where hosts live.
        num_threads: Of torch on the CPU while hosts train and are evaluated; the process's own number is put back
            after every call. A second thread beside another busy process makes both wait for each other.

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
        compute_rent: float = 0.0,
        max_living_seeds: int | None = None,
        parameter_budget: int | None = None,
        min_training_epochs: int = 3,
        embargo_epochs: int = 5,
        counterfactual_interval: int = 5,
        graph: bool = False,
        report_test: bool = False,
        seed_stream: int = 0,
        device: str = "cpu",
        num_threads: int = 1,
    ) -> None:
        for name, value in (
            ("num_envs", num_envs),
            ("max_epochs", max_epochs),
            ("counterfactual_interval", counterfactual_interval),
            ("num_threads", num_threads),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if task_args and not isinstance(task, str):
            raise ValueError(f"task_args are for a task given by name: task {task.name!r} is made already")
        self.task = make_task(task, task_args) if isinstance(task, str) else task
        self.num_envs, self.max_epochs = num_envs, max_epochs
        self.report_test, self.seed_stream, self.num_threads = report_test, seed_stream, num_threads
        slots = self.task.slots
        # Every EpisodeState is walked by every reset, in the order in which it is made here.
        self.chance = HostChance(num_envs)
        self.population = Population(self.task, num_envs, max_epochs, torch.device(device), self.chance)
        self.watch = HostWatch(
            num_envs,
            self.population,
            SavedPopulation(self.population),
            slots,
            LifecycleRules(min_training_epochs, embargo_epochs, max_living_seeds, parameter_budget),
            self.task.chance_accuracy,
            counterfactual_interval,
        )
        self.account = RewardAccount(
            num_envs,
            RewardConfig(
                mode=reward_mode,
                gamma=gamma,
                parameter_rent=self.task.parameter_rent if parameter_rent is None else parameter_rent,
                path_rent=self.task.path_rent if path_rent is None else path_rent,
                germination_cost=germination_cost,
                compute_rent=compute_rent,
            ),
        )
        self.graph = GraphMeasurements(self.population, max_epochs) if graph else None
        self.metadata = dict(type(self).metadata)
        self.single_observation_space = (
            observation_space(self.watch.layout) if self.graph is None else graph_space(self.graph.layout)
        )
        self.single_action_space = spaces.MultiDiscrete([head.size for head in slots.heads])
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._needs_reset = True

    @property
    def episode_state(self) -> list[EpisodeState]:
        """Whatever of this env lives for one episode."""
        own = [value for value in vars(self).values() if isinstance(value, EpisodeState)]
        return [*own, *self.watch.episode_state]

    @property
    def lifecycle(self) -> Lifecycle:
        """The slots of all hosts."""
        return self.watch.lifecycle

    @property
    def layout(self) -> ObservationLayout:
        """Where everything is in an observation."""
        return self.watch.layout

    @property
    def progress(self) -> HostProgress:
        """How each host's training goes."""
        return self.watch.progress

    @property
    def measurements(self) -> SlotMeasurements:
        """What was measured of each slot's seed."""
        return self.watch.measurements

    @property
    def epoch(self) -> IntArray:
        """``[N]`` epochs done in each host's episode."""
        return self.watch.steps.epoch

    @property
    def last_actions(self) -> IntArray:
        """``[N, 8]`` what was executed last, WAIT (all 0) after a refusal and at a reset."""
        return self.watch.steps.last_actions

    # ------------------------------------------------------------------ Gymnasium
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a new episode, in every host or in some.

        Args:
            seed: An int is spread over the hosts; a sequence seeds them singly; None goes on with the next episode
                of the seeds at hand (or with fresh ones at the first call).
            options: ``reset_mask``, bool ``[N]``, resets only the hosts that it marks, as Gymnasium has it.
                ``grown``, a :class:`envs.grown.GrownSeeds` of N hosts, lets these episodes start with the seeds
                in place: committed, and trained with the host from the first epoch on. Hosts that start anew in
                :meth:`step` start without.

        Raises:
            ValueError: seeds, a mask or grown seeds that do not fit the hosts, or an unknown option. Nothing was
                changed then.
            gymnasium.error.ResetNeeded: a mask at the first reset, which must be of all hosts.
        """
        options = options or {}
        if unknown := options.keys() - {"reset_mask", "grown"}:
            raise ValueError(f"reset knows the options reset_mask and grown, got {', '.join(sorted(unknown))}")
        hosts, grown = self._to_reset(options.get("reset_mask")), options.get("grown")
        if grown is not None:
            self.lifecycle.plantable(grown, hosts)
        self.chance.seed(hosts, seed, self.seed_stream)
        with host_computation(self.num_threads):
            self._begin(hosts, grown)
            observation = self._observe()
        self._needs_reset = False
        return observation, self._progress_info()

    def _to_reset(self, mask: BoolArray | None) -> IntArray:
        if mask is None:
            return np.arange(self.num_envs)
        given = np.asarray(mask)
        if given.dtype != np.bool_ or given.shape != (self.num_envs,) or not given.any():
            raise ValueError(
                f"reset_mask must be {self.num_envs} bools, at least one of them True, got {given.tolist()}"
            )
        if self._needs_reset:
            raise gym.error.ResetNeeded("the first reset is of all hosts: leave reset_mask out")
        return np.flatnonzero(given)

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[Observation, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """Train every host for one epoch.

        Args:
            actions: ``[N, 8]`` head indices.

        Returns:
            Observation, rewards ``[N]`` float64, terminated ``[N]``, truncated ``[N]`` (always False), info.

        Raises:
            ValueError: actions that are no whole numbers, or outside the action space.
        """
        if self._needs_reset:
            raise gym.error.ResetNeeded("call reset() before step()")
        resetting = self.watch.steps.over.copy()
        executed, wrong, refused = self.watch.admit(whole_numbers(actions), resetting)
        with host_computation(self.num_threads):
            return self._step(executed, wrong, refused, resetting)

    def _step(
        self, executed: IntArray, wrong: BoolArray, refused: dict[str, BoolArray], resetting: BoolArray
    ) -> tuple[Observation, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        self.watch.begin_epoch(executed)
        if not resetting.all():
            self.watch.book_gradients(self._train())
        self.watch.steps.tick()
        ending = (self.epoch >= self.max_epochs) & ~resetting
        self.lifecycle.strip(np.flatnonzero(ending))
        self.population.sync(self.lifecycle)
        epoch = self.watch.end_epoch(~resetting, ending)
        terminated = ending | epoch.stopped
        scores = score_components(epoch.accuracy, self.lifecycle, self.account.config)
        germinated = executed[:, 0] == LifecycleOp.GERMINATE
        components = self.account.pay(
            scores,
            self._compute_rent(),
            self.lifecycle,
            germinated,
            epoch.measured.contribution,
            terminated,
            epoch.stopped,
        )
        components[resetting] = 0.0
        self.watch.steps.book(executed, ~wrong, terminated.copy())
        # Last, so that nothing of this step is booked to an episode that only begins.
        self._begin(np.flatnonzero(resetting))
        info = self._progress_info()
        for name, column in zip(COMPONENTS, components.T, strict=True):
            _add_info(info, f"reward_{name}", column)
        self._explain(info, refused, wrong)
        self._add_results(info, epoch.accuracy, epoch.panic, terminated)
        obs = self._observe()
        return obs, components.sum(axis=1), terminated, np.zeros(self.num_envs, bool), info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Marginal mask of each head, concatenated, ``[N, sum of head sizes]``, as MaskablePPO's clients expect."""
        return marginal_mask(self.watch.mask, self.task.slots.heads).astype(bool)

    # ------------------------------------------------------------------ one step's parts
    def _train(self) -> SeedGradients:
        if self.graph is None:
            return self.population.train_epoch(self.epoch, self.lifecycle)
        gradients, motion = self.population.train_recorded(self.epoch, self.lifecycle)
        self.graph.book_training(motion)
        return gradients

    def _observe(self) -> Observation:
        watched = self.watch.observe(self.max_epochs)
        if self.graph is None:
            return watched
        vectors = self.graph.measure(watched["obs"], watched["blueprint_indices"], self.lifecycle, self.epoch)
        return {"graph": vectors, "action_mask": watched["action_mask"]}

    def _begin(self, hosts: IntArray, grown: GrownSeeds | None = None) -> None:
        """Start an episode of these hosts, and book their untrained results as its beginning."""
        if not len(hosts):
            return
        for state in self.episode_state:
            state.start(hosts)
        self.watch.open(hosts, grown)
        scores = score_components(self.progress.accuracy[:, -1], self.lifecycle, self.account.config)
        self.account.open(hosts, scores[hosts], self._compute_rent()[hosts])

    def _compute_rent(self) -> FloatArray:
        spent = self.population.training_flops
        return compute_rent(spent, self.population.never_grown_flops(self.epoch), self.account.config)

    # ------------------------------------------------------------------ what goes out
    def _progress_info(self) -> dict[str, Any]:
        info: dict[str, Any] = {}
        _add_info(info, "score", self.account.score.sum(axis=1))
        _add_info(info, "val_accuracy", self.progress.accuracy[:, -1].copy())
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
            _add_info(info, f"seeds_{fate.name.lower()}", life.fates[:, fate].copy(), done)
        if self.report_test:
            y = self.task.splits["test"].y
            hits = np.zeros((self.num_envs, len(y)), np.int64)
            hits[hosts] = self.population.hits(hosts, life.alpha[hosts], life, "test")
            test = 100.0 * hits.sum(axis=1) / y.numel()
            score = score_components(test, life, self.account.config).sum(axis=1)
            _add_info(info, "test_hits", hits, done)
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


def graph_space(layout: GraphLayout) -> spaces.Dict:
    """The space of one host's observation as a graph."""
    return spaces.Dict(
        {
            "graph": spaces.Box(UNKNOWN, -UNKNOWN, (layout.size,), np.float32),
            "action_mask": spaces.Box(0, 1, (mask_size(layout.structure.slots.heads),), np.int8),
        }
    )


def host_variant(task: Task, seed: int) -> int:
    """Index of the variant that a host seed's first episode draws."""
    return draw_variant(task, episode_generator(seed, 0))


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
        obs, info = self.population_of_one.reset(seed=None if seed is None else [seed], options=options)
        self._ended = False
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
