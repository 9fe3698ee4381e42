"""Settings, one frozen dataclass per part; the text under a field is its help on the command line."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from envs.ranges import (
    Count,
    Large,
    Natural,
    NotNegative,
    OtherProcesses,
    Positive,
    Range,
    Share,
    check_numbers,
    whole_numbers_in,
)
from esper_ray.errors import UserError
from esper_ray.fields import FirstTaskArgs, Horizons, TaskArgs, Tasks
from esper_ray.reading import describe_problems, read_json
from policies.network_config import KIND_FLAG, NetworkConfig

if TYPE_CHECKING:
    from envs.slots import SlotConfig
    from envs.tasks import Task

DEFAULT_TASK = "digits_impaired"

Epochs = Annotated[int, Range(1, 10**6, whole=True)]
"""Of a host."""
Gpus = Annotated[float, Range(0.0, 4096.0)]

Algorithm = Literal["ppo", "impala"]
CriticBaseline = Literal["factored", "state", "op"]
OP_WITHOUT_VTRACE = "V-trace corrects values of states, not of ops taken"
"""Why IMPALA refuses the critic baseline ``op``."""


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise UserError(f"{name} must be {wanted}, got {value!r}")


def _require_one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    _require(value in choices, name, value, f"one of {', '.join(choices)}")


@dataclass(frozen=True)
class LearnerConfig:
    """PPO (Schulman et al., 2017) or IMPALA (Espeholt et al., 2018) over a factored action."""

    lr: Annotated[float, Range(0.0, 1.0, above=True)] = 3e-4
    """Step size of Adam."""
    lr_final: Share = 1.0
    """What is left of lr after the last iteration, as a share; it falls linearly."""
    adam_epsilon: Positive = 1e-5
    """Adam's term against division by small second moments."""
    gamma: Share = 1.0
    """Discount per epoch of the host; 1 makes the objective the whole change in score."""
    gae_lambda: Share = 0.95
    """λ of generalised advantage estimation or V-trace: 0 trusts the critic, 1 trusts the observed rewards."""
    num_epochs: Count = 4
    """Passes over every rollout; IMPALA makes one whatever is given."""
    minibatches: Count = 4
    """Gradient steps per pass; each takes whole sequences. Must divide the number of hosts per learner,
    with IMPALA that of each runner."""
    fragment_epochs: Count | None = None
    """Epochs of an episode after which an update is made; the next ones go on with the recurrent state that there was,
    and the critic stands in for what is not played yet. none: after whole episodes. PPO only."""
    clip: Positive = 0.2
    """Ratio of new to old probability beyond which a head gets no further push, on either side of 1; PPO only."""
    kl_stop: Positive | None = 0.05
    """Divergence from the rollout's policy at which the rest of an update is skipped; none: never. PPO only."""
    critic_baseline: CriticBaseline = "factored"
    """What is subtracted from the return: "factored" takes V(s) for the op head and Q(s, op) for its arguments,
    "state" takes V(s) for all heads, "op" takes Q(s, op) for all and builds the returns from it, too (starves the op
    head; for the ablation; PPO only)."""
    centre_advantages: bool = False
    """Subtract the mean advantage over unforced steps, as most implementations do: a baseline while the critic knows
    little. Off by default: the heads share one scale, and what an op is worth against V is to keep its sign."""
    value_loss_coeff: NotNegative = 0.5
    """Weight of the critic's squared errors, of V and Q together (of Q alone where critic_baseline is "op")."""
    return_scale_decay: Share = 0.9
    """What the running scale of returns keeps of its past at every rollout, between 0 and 1."""
    entropy_coeff: NotNegative = 0.01
    """Weight of the entropy bonus, where 1 is the entropy of a uniform choice among the admitted entries."""
    entropy_final: Share = 1.0
    """What is left of entropy_coeff after the last iteration, as a share; it falls linearly."""
    entropy_multipliers: Mapping[str, NotNegative] = field(default_factory=dict)
    """Factors on the entropy bonus of single heads, by name, in place of the heads' own."""
    grad_clip: Positive = 10.0
    """Largest global norm of a gradient, above what is usual: it guards against outliers only."""
    bf16: bool = False
    """Whether the passes with gradients multiply in bfloat16, for GPUs that are fast at it. Weights, optimiser,
    distribution, values and loss stay float32, as do rollouts, advantages and what replay_error is measured with. The
    ratios of an unchanged policy are then 1 to about a hundredth, so keep kl_stop above 0.001."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)
        _require_one_of("critic_baseline", self.critic_baseline, get_args(CriticBaseline))


@dataclass(frozen=True)
class EnvConfig:
    """The world that the policy is trained in (see :class:`envs.morphogenesis.MorphogenesisVectorEnv`)."""

    task: str = DEFAULT_TASK
    """Data and host, by name."""
    tasks: Tasks = ()
    """In place of one task several, such as digits_impaired,digits: the runners take turns in them, and arguments and
    data_dir go to each; only with ppo. Their slots must agree, unless the network reads graphs."""
    data_dir: Path | None = None
    """Directory with the data of a task that brings none along."""
    task_args: TaskArgs = field(default_factory=dict)
    """Further arguments of the task."""
    max_epochs: Horizons = 150
    """Training epochs of a host, that is steps of an episode. 15..150 draws a number for every iteration, the same for
    all of its hosts: the policy learns to finish in the time that it has; only with ppo. What is played outside of
    training lasts as long as the longest."""
    reward_mode: str = "score"
    """score pays every change of the score, sparse pays it at the end, shaped adds terms for stages."""
    parameter_rent: NotNegative | None = None
    """Score lost per doubling of the parameters; the task's own by default."""
    path_rent: NotNegative | None = None
    """Score lost per living seed; the task's own by default."""
    germination_cost: NotNegative = 0.0
    """Reward lost per germination, beside the score: keeps a policy from germinating only to prune again."""
    compute_rent: NotNegative = 0.0
    """Reward lost per doubling of the FLOPs that a host's training takes, counted from those of never growing; beside
    the score, so that evaluations report the same score with and without it."""
    max_living_seeds: Natural | None = None
    """Seeds that a host may have at a time; by default one per slot."""
    parameter_budget: Large | None = None
    """Parameters that a host's seeds may have together; by default 16 times the host's own."""
    counterfactual_interval: Count = 5
    """Epochs between measurements of what each seed contributes."""

    def __post_init__(self) -> None:
        # What the world knows is asked of it only now: it takes seconds to import, and --help does without.
        from envs.reward import RewardMode

        check_numbers(self, UserError)
        _require_one_of("reward_mode", self.reward_mode, get_args(RewardMode))
        if self.tasks:
            wanted = f"left out where tasks are {', '.join(self.tasks)}"
            _require(self.task in (DEFAULT_TASK, self.tasks[0]), "task", self.task, wanted)
            object.__setattr__(self, "task", self.tasks[0])
            object.__setattr__(self, "tasks", self.tasks if len(self.tasks) > 1 else ())
        # Torch takes the most of them, and the task that there is by default is known to be right.
        if (self.task, self.task_args, self.data_dir) != (DEFAULT_TASK, {}, None):
            self._resolve_task()
        self._check_tasks()

    def _resolve_task(self) -> None:
        """Check the task's arguments and make its paths absolute: other processes may work in other directories."""
        from envs.tasks import TaskError, resolve_arguments

        if "data_dir" in self.task_args:
            raise UserError("data_dir is a setting of its own, not one of task_args: give --data-dir")
        try:
            resolved = resolve_arguments(self.task, self._task_arguments())
        except TaskError as error:
            raise UserError(str(error)) from error
        data_dir = resolved.pop("data_dir", None)
        object.__setattr__(self, "data_dir", None if data_dir is None else Path(data_dir))
        object.__setattr__(self, "task_args", resolved)

    def _check_tasks(self) -> None:
        """Refuse a task that is named twice, or does not exist."""
        if len({*self.tasks}) < len(self.tasks):
            raise UserError(f"tasks must differ from each other, got {', '.join(self.tasks)}")
        if self.tasks:
            self.slots_by_task()

    def slots_by_task(self) -> dict[str, SlotConfig]:
        """Every task's slots, the first one's first."""
        return {world.task: world.make_task().slots for world in self.worlds}

    @property
    def slots(self) -> SlotConfig:
        """The task's slots; of several tasks that differ in them as many as any has."""
        from envs.slots import SlotConfig

        first, *others = self.slots_by_task().values()
        if all(slots == first for slots in others):
            return first
        every = (first, *others)
        internal_levels = any(slots.internal_levels for slots in every)
        return SlotConfig.for_row(max(slots.num_slots for slots in every), internal_levels)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Of all worlds."""
        return self.tasks or (self.task,)

    @property
    def worlds(self) -> list[EnvConfig]:
        """The world of each task, one by one."""
        return [dataclasses.replace(self, task=task, tasks=()) for task in self.task_names]

    def _task_arguments(self) -> dict[str, str]:
        return self.task_args | ({} if self.data_dir is None else {"data_dir": str(self.data_dir)})

    def make_task(self) -> Task:
        """The task, the first of several; large data are not read yet (see :meth:`load_data`).

        Raises:
            UserError: it cannot be made.
        """
        from envs.tasks import TaskError, make_task

        try:
            return make_task(self.task, self._task_arguments())
        except TaskError as error:
            raise UserError(str(error)) from error

    def load_data(self) -> None:
        """Read the data of all tasks, so that what is wrong with them is found before anything starts.

        Raises:
            UserError: they are absent, or not the expected ones.
        """
        from envs.tasks import TaskError

        try:
            for world in self.worlds:
                world.make_task().check_data()
        except TaskError as error:
            raise UserError(str(error)) from error

    @property
    def horizons(self) -> range:
        """How many epochs an episode can have."""
        return whole_numbers_in(self.max_epochs)

    @property
    def longest(self) -> int:
        """Epochs of the longest episode."""
        return self.horizons[-1]

    @property
    def thirds(self) -> list[range]:
        """The horizons from short to long, in three parts; fewer where there are fewer horizons.

        A host that trains for longer scores more: only scores of one part say how a policy does against another.
        """
        cuts = [len(self.horizons) * part // 3 for part in range(4)]
        return [self.horizons[start:end] for start, end in itertools.pairwise(cuts) if start < end]

    def lasting(self, epochs: int | None = None) -> EnvConfig:
        """The same world with episodes of this length, by default of the longest."""
        return dataclasses.replace(self, max_epochs=self.longest if epochs is None else epochs)

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of the environment: one task, the first of several, and the longest episodes."""
        settings = dataclasses.asdict(self)
        del settings["data_dir"], settings["tasks"]
        return settings | {"task_args": self._task_arguments(), "max_epochs": self.longest}


def described_slots(slots: SlotConfig) -> str:
    """Slots in words, for messages."""
    levels = "with" if slots.internal_levels else "without"
    enabled = "" if slots.enabled is None else f" ({', '.join(slots.enabled)} in use)"
    return f"the slots {', '.join(slots.slot_ids)}{enabled} {levels} internal levels"


@dataclass(frozen=True)
class RunConfig:
    """How much is trained, and where."""

    iterations: Count = 200
    """Rollouts and updates in all; a resumed run counts those before it."""
    algorithm: Algorithm = "ppo"
    """ppo waits for every runner before an update; impala updates on each runner's rollout as it comes, for hosts
    whose epochs take unequal time."""
    num_env_runners: OtherProcesses = 2
    """Processes that train hosts; 0 does it in this one."""
    hosts_per_runner: Annotated[int, Range(1, 10**6, whole=True)] = 32
    """Hosts that each of them trains at once, on its GPU if it has one."""
    cpus_per_env_runner: Annotated[float, Range(0.0, 4096.0, above=True)] = 1
    """CPUs that Ray sets aside for each of them; it computes with as many threads."""
    gpus_per_env_runner: Gpus = 0
    """GPUs for each of them; 0.25 lets four share one."""
    num_learners: OtherProcesses = 0
    """Processes that learn, each on its share of the hosts; 0 does it in this one."""
    gpus_per_learner: Gpus = 0
    """GPUs for each of them, or for this process if it learns itself."""
    # RLlib seeds numpy's old generator, which takes 32 bits, with this number and 12 more bits for the runner.
    seed: Annotated[int, Range(0, 2**20 - 1, whole=True)] = 0
    """Of weights, actions, hosts and data order."""
    first_iterations: Natural = 0
    """Iterations at the beginning in which hosts are drawn with --first-task-args; only with ppo."""
    first_task_args: FirstTaskArgs = field(default_factory=dict)
    """Arguments of the task in them, beside its others. In a mixture of hosts few of which need seeds a policy unlearns
    to grow before it can tell them apart; it may begin with those that do."""
    replay_interval: Count = 10
    """Iterations between pictures of a held-out episode in TensorBoard."""
    begin_from: Path | None = None
    """What `esper-ray strategic imitate` wrote, or an export: a graph network begins with its weights; by default it
    has learnt nothing yet."""
    keep_checkpoints: Count = 1
    """Latest checkpoints that are kept, beside the best."""
    storage: str | None = None
    """Directory or URI (s3://, gs://, hdfs://, file://) that gets a copy of the run directory after every checkpoint;
    --resume fetches it from there where --run-dir does not exist."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)
        for name in ("cpus_per_env_runner", "gpus_per_env_runner", "gpus_per_learner"):
            amount = getattr(self, name)
            _require(amount <= 1 or amount == int(amount), name, amount, "in [0, 1] or whole")
        if self.gpus_per_env_runner and not self.num_env_runners:
            raise UserError("gpus_per_env_runner is for runners of their own: give --num-env-runners of at least 1")
        if bool(self.first_iterations) != bool(self.first_task_args):
            raise UserError("first_iterations and first_task_args need each other: give both or neither")
        if self.first_iterations and self.algorithm != "ppo":
            raise UserError(f"first_iterations are for the algorithm ppo, got {self.algorithm!r}: leave them out")
        _require_one_of("algorithm", self.algorithm, get_args(Algorithm))


RARE_PRUNING = {"PRUNE": -2.0}
"""Pruning is open in every epoch of a seed's life. As likely as the other ops at the start, it would leave hardly a
seed alive to be fossilised by chance, and then there is nothing to learn from (docs/lab-book.md has the figures)."""

PLAY_TEMPERATURE = 0.4
"""What training still explores at its end costs an evaluated policy 0.003 to 0.02 on ``digits_mixed``. Its most
probable choices alone may be to wait for ever, which is likelier than acting in every single epoch
(docs/lab-book.md has the figures)."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that defines a training run."""

    run: RunConfig = field(default_factory=RunConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    network: NetworkConfig = field(
        default_factory=lambda: NetworkConfig(op_bias=RARE_PRUNING, play_temperature=PLAY_TEMPERATURE)
    )
    learner: LearnerConfig = field(default_factory=LearnerConfig)

    def __post_init__(self) -> None:
        self._check_names()
        self._check_worlds()
        impala, minibatches = self.run.algorithm == "impala", self.learner.minibatches
        learners = max(self.run.num_learners, 1)
        hosts = self.run.hosts_per_runner * (1 if impala else max(self.run.num_env_runners, 1))
        if impala and len(self.env.horizons) > 1:
            raise UserError(f"max_epochs {self.env.max_epochs} is for the algorithm ppo: give one number")
        if impala and self.env.tasks:
            raise UserError(f"tasks are for the algorithm ppo, got {', '.join(self.env.tasks)}: give one as task")
        if impala and learners > 1:
            raise UserError(f"impala learns in one process, got num_learners = {learners}: use ppo, or one learner")
        if impala and self.learner.fragment_epochs is not None:
            raise UserError(
                f"fragment_epochs is for the algorithm ppo, got {self.learner.fragment_epochs}: leave it out"
            )
        if impala and self.learner.critic_baseline == "op":
            raise UserError(f"critic_baseline op has no meaning with impala ({OP_WITHOUT_VTRACE}): give factored")
        if learners > 1 and minibatches == 1:
            raise UserError(f"{learners} learners need at least 2 minibatches, got 1: change --minibatches")
        if hosts % (learners * minibatches):
            of = "a runner (hosts_per_runner)" if impala else "an iteration (hosts_per_runner × num_env_runners)"
            shares = f"minibatches, which is {minibatches}"
            shares = shares if learners == 1 else f"num_learners × minibatches, which is {learners} × {minibatches}"
            raise UserError(f"the {hosts} hosts of {of} must be a multiple of {shares}: change one of them")

    def _check_worlds(self) -> None:
        """Refuse worlds that the network cannot act in, or not one after the other."""
        graph = self.network.kind == "graph"
        if self.run.begin_from is not None and not graph:
            raise UserError(
                f"begin_from is for networks that read graphs, got {self.run.begin_from}: leave it out, "
                "or give --network.kind graph"
            )
        slots = self.env.slots_by_task() if self.env.tasks and not graph else {}
        for task, other in slots.items():
            if other != slots[self.env.task]:
                raise UserError(
                    f"one policy cannot act in tasks {self.env.task!r} and {task!r}: they have "
                    f"{described_slots(slots[self.env.task])}, and {described_slots(other)} (--network.kind graph can)"
                )
        if self.run.first_iterations:
            first, later = self.first_env.make_task(), self.env.make_task()
            if first.slots != later.slots:
                raise UserError(
                    f"first_task_args must leave the task's slots as they are, got {self.run.first_task_args}"
                )
            if graph and first.host.layers(first.host.widest) != later.host.layers(later.host.widest):
                raise UserError(
                    f"first_task_args must leave the host's layers as they are, got {self.run.first_task_args}"
                )

    def _check_names(self) -> None:
        """Hold the names of ops and heads to those of the world."""
        from envs.vocabulary import HEAD_NAMES, INTERNAL_OPS, ops_in_use

        internal = any(op.name in self.network.op_bias for op in INTERNAL_OPS)
        ops = tuple(op.name for op in ops_in_use(internal and self.env.slots.internal_levels))
        for setting, names, known in (
            ("op_bias", self.network.op_bias, ops),
            ("deep_heads", self.network.deep_heads, HEAD_NAMES),
            ("entropy_multipliers", self.learner.entropy_multipliers, HEAD_NAMES),
        ):
            for name in names:
                _require_one_of(f"a name in {setting}", name, known)

    def playing_at(self, temperature: float) -> TrainConfig:
        """The same training, its policy played at another temperature."""
        return dataclasses.replace(self, network=dataclasses.replace(self.network, play_temperature=temperature))

    @property
    def first_env(self) -> EnvConfig:
        """The world of the first iterations."""
        return dataclasses.replace(self.env, task_args=self.env.task_args | self.run.first_task_args)

    def env_in(self, iteration: int) -> EnvConfig:
        """The world of the iteration that follows ``iteration`` others: it depends on that and the seed alone."""
        env = self.first_env if iteration < self.run.first_iterations else self.env
        return env.lasting(self._horizon(iteration))

    def _horizon(self, iteration: int) -> int:
        import numpy as np

        from envs.seeding import Purpose, seed_sequence

        generator = np.random.default_rng(seed_sequence(Purpose.HORIZON, self.run.seed, iteration))
        return self.env.horizons[generator.integers(len(self.env.horizons))]

    def host_epochs(self, iterations: int) -> int:
        """Epochs that all runners' hosts train in the first iterations, or as many with IMPALA."""
        hosts, horizons = self.run.hosts_per_runner * max(self.run.num_env_runners, 1), self.env.horizons
        if len(horizons) == 1:
            return hosts * iterations * horizons[0]
        return hosts * sum(map(self._horizon, range(iterations)))

    def to_json(self) -> str:
        """The config as it is stored in a run directory."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=os.fspath) + "\n"


CHANGEABLE = {field.name for field in dataclasses.fields(LearnerConfig)} | {
    *("iterations", "num_env_runners", "hosts_per_runner", "cpus_per_env_runner", "gpus_per_env_runner"),
    *("num_learners", "gpus_per_learner", "replay_interval", "keep_checkpoints", "storage"),
    *("data_dir", "play_temperature"),
}
"""Settings that may be others when a run goes on: how it is learnt, how much of it, and where. The others say what the
world and the network are, and what is drawn: with another one it would be two runs in one."""


def _spelled(name: str) -> str:
    """What a field is called on the command line and in files of settings."""
    return KIND_FLAG if name == "kind" else name


def check_resumable(before: TrainConfig, now: TrainConfig) -> None:
    """Refuse to go on with a run in another world, or with another network.

    Args:
        before: Settings of the run.
        now: Those that it is to go on with.

    Raises:
        UserError: a setting that cannot change has changed.
    """
    old, new = (
        {_spelled(name): value for part in dataclasses.asdict(config).values() for name, value in part.items()}
        for config in (before, now)
    )
    if changed := [name for name in old if name not in CHANGEABLE and old[name] != new[name]]:
        changes = ", ".join(f"{name} from {old[name]!r} to {new[name]!r}" for name in changed)
        raise UserError(f"a run cannot go on with another world or network, got {changes}: train anew with that")


class _StoredConfig(BaseModel):
    """The border check of stored configs: types and unknown fields, in nested parts too."""

    model_config = ConfigDict(extra="forbid")
    config: TrainConfig


def load_config(path: Path) -> TrainConfig:
    """Read a config that :meth:`TrainConfig.to_json` wrote.

    Raises:
        UserError: unreadable, not JSON, an unknown field, or a value of the wrong kind.
    """
    content = read_json(path)
    try:
        return _checked(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except ValidationError as error:
        raise UserError(f"{path} is not a config of this version: {describe_problems(error)}") from error


def with_settings(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """A config with some fields replaced, which are named as on the command line (``max_epochs``, ``lr``).

    Another task starts without the arguments and data of the one before.

    Raises:
        UserError: an unknown field, or a value that it cannot have.
    """
    parts = dataclasses.asdict(config)
    if "tasks" in settings or settings.get("task", config.env.task) != config.env.task:
        parts["env"] |= {"task_args": {}, "data_dir": None}
    if "tasks" in settings or "task" in settings:
        parts["env"] |= {"task": DEFAULT_TASK, "tasks": ()}  # either takes the place of both
    owners = {_spelled(name): (part, name) for part, fields in parts.items() for name in fields}
    for name, value in settings.items():
        if name not in owners:
            close = difflib.get_close_matches(name, owners, n=1)
            raise UserError(f"unknown setting {name!r}" + (f": did you mean {close[0]!r}?" if close else ""))
        part, field_name = owners[name]
        parts[part][field_name] = value
    for part, name in (("env", "task_args"), ("run", "first_task_args")):
        if isinstance(parts[part][name], Mapping):  # anything else is refused below
            parts[part][name] = {key: str(value) for key, value in parts[part][name].items()}
    try:
        return _checked(parts)
    except ValidationError as error:
        raise UserError(describe_problems(error)) from error


def _checked(parts: object) -> TrainConfig:
    return _StoredConfig.model_validate({"config": parts}).config
