"""``strategic``: recorded episodes, and a graph policy that learns from them (docs/strategic.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from envs.ranges import Count, Large, Positive, Share, check_numbers
from esper_ray.commands.checks import writable
from esper_ray.config import DEFAULT_TASK, EnvConfig, Epochs
from esper_ray.errors import UserError
from esper_ray.fields import TaskArgs
from esper_ray.keeping.lock import held
from esper_ray.keeping.run_directory import Which
from esper_ray.keeping.writing import make_directories, replace_text, writing
from esper_ray.terminal import command, under_way
from policies.strategic.imitation_config import ImitationConfig
from policies.strategic.network_config import GraphNetworkConfig

if TYPE_CHECKING:
    from esper_ray.learning.imitating import ImitationRun
    from policies.bundle import PolicyBundle
    from policies.strategic.replay_store import ReplayStore

NO_EXAMPLES = ("random_valid", "never_grow")
"""Controls whose decisions nobody should follow."""


@dataclass(frozen=True)
class Collect:
    """Play policies, and record what they read, did and what came of it."""

    store: tyro.conf.Positional[Path]
    """Directory of the record, made if need be; episodes are added to those that are there."""
    policies: tuple[str, ...] = ("heuristic",)
    """Who plays, one after the other on the same hosts: heuristic, random_valid, fixed_schedule, periodic,
    gradient, never_grow, best_schedule, or run directories and exports of trained policies."""
    episodes: Count = 64
    """Hosts of each policy."""
    seed: Large = 0
    """Of the hosts: another one for other hosts."""
    task: str = DEFAULT_TASK
    """Data and host, by name."""
    task_args: TaskArgs = field(default_factory=dict)
    """Arguments of the task."""
    data_dir: Path | None = None
    """As for train."""
    max_epochs: Epochs | None = None
    """Training epochs of a host; by default as train's."""
    schedule: Path | None = None
    """A schedule that `esper-ray search` found, for best_schedule."""
    checkpoint: Which = "latest"
    """Of run directories, as for evaluate."""
    learning_rate_factor: Positive = 1.0
    """On the task's learning rate. Good policies take no risks; at 10 times the rate hosts diverge, and risks can be
    learnt from them."""
    randomise_ramps: bool = False
    """Draw by what method and in which window each seed is blended in, in place of its style's curve, so that imitate
    can tell which go well."""
    examples: bool | None = None
    """Whether the decisions are to be imitated, and not only their risks learnt; by default those of all but
    random_valid and never_grow, at the task's own learning rate."""
    capacity: Count | None = None
    """Decisions that the record holds at most, the oldest go; a million unless told otherwise at its beginning."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)
        if not self.policies:
            raise UserError("nobody plays: give one or more --policies")

    def run(self, console: Console) -> None:
        """Play and record."""
        from esper_ray.measuring.recording import recorded_seeds
        from esper_ray.process import settle
        from policies.strategic.replay_store import ReplayStore

        env = EnvConfig(task=self.task, data_dir=self.data_dir, task_args=self.task_args).lasting(self.max_epochs)
        env.load_data()
        players = {name: self._player(name, env) for name in dict.fromkeys(self.policies)}
        make_directories(self.store)
        seeds = recorded_seeds(self.seed, self.episodes)
        settle()
        with self._recording():
            store = ReplayStore(self.store, self.capacity)
        try:
            for name, policy in players.items():
                self._record(name, policy, env, seeds, store, console)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"what was played to the end is in {self.store}") from None
        console.print(f"written: {self.store}    learn from it: {command('strategic', 'imitate', self.store, 'OUT')}")

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Say in one line why something cannot be recorded."""
        try:
            with writing(self.store):
                yield
        except ValueError as error:
            raise UserError(str(error)) from error

    def _player(self, name: str, env: EnvConfig) -> PolicyBundle:
        from esper_ray.measuring.controls import BEST_SCHEDULE, CONTROLS, make_policy
        from esper_ray.measuring.search.schedule_files import read_schedule
        from esper_ray.measuring.trained import Trained, World
        from policies.learned import LEARNED

        if name == BEST_SCHEDULE and self.schedule is None:
            raise UserError(f"{BEST_SCHEDULE} plays what a search found: give --schedule")
        if name in (*CONTROLS, BEST_SCHEDULE):
            return make_policy(name, env, schedule=None if self.schedule is None else read_schedule(self.schedule))
        if not Path(name).is_dir():
            known = ", ".join((*CONTROLS, BEST_SCHEDULE))
            raise UserError(f"unknown policy {name!r}: give {known}, or the directory of a run or an export")
        world = World(env.task, env.task_args, env.data_dir, env.longest)
        return make_policy(LEARNED, env, Trained.open(Path(name), self.checkpoint, world))

    def _record(
        self,
        name: str,
        policy: PolicyBundle,
        env: EnvConfig,
        seeds: list[int],
        store: ReplayStore,
        console: Console,
    ) -> None:
        from esper_ray.measuring.recording import HOSTS_AT_ONCE, RecordedWorld, record_episodes

        usual = self.learning_rate_factor == 1.0
        source = name if usual else f"{name}, learning rate × {self.learning_rate_factor:g}"
        exemplary = (name not in NO_EXAMPLES and usual) if self.examples is None else self.examples
        decisions = stopped = 0
        with under_way(console, f"{source}: playing") as now:
            for first in range(0, len(seeds), HOSTS_AT_ONCE):

                def on_epoch(epoch: int, first: int = first) -> None:
                    now(f"{source}: {first} of {len(seeds)} episodes recorded; epoch {epoch} of {env.longest}")

                hosts = seeds[first : first + HOSTS_AT_ONCE]
                episodes = record_episodes(
                    policy, env, hosts, self.learning_rate_factor, self.randomise_ramps, on_epoch
                )
                with self._recording():
                    store.append(RecordedWorld.of(env, self.randomise_ramps).text, source, episodes, exemplary)
                decisions += sum(len(episode) for episode in episodes)
                stopped += sum(bool(episode.steps["stopped"].any()) for episode in episodes)
        console.print(
            f"{source}: {len(seeds)} episodes, {decisions:,} decisions, {'' if exemplary else 'not '}to be imitated; "
            f"the governor stopped {stopped}"
        )


@dataclass(frozen=True)
class Imitate:
    """Teach a graph policy recorded decisions, their risks and their values. The same command goes on."""

    store: tyro.conf.Positional[Path]
    """What `esper-ray strategic collect` recorded."""
    out: tyro.conf.Positional[Path]
    """Directory for the policy and all that is needed to go on."""
    passes: Count = 20
    """Over the record, those before included if it goes on."""
    imitation: tyro.conf.OmitArgPrefixes[ImitationConfig] = field(default_factory=ImitationConfig)
    network: GraphNetworkConfig = field(default_factory=GraphNetworkConfig)

    def __post_init__(self) -> None:
        check_numbers(self, UserError)

    def run(self, console: Console) -> None:
        """Learn pass by pass, and print how far the best agrees with the record."""
        from esper_ray.keeping.strategic_policy import POLICY
        from esper_ray.learning.imitating import ImitationRun
        from esper_ray.measuring.imitation_report import agreement_table, outcome_table
        from esper_ray.process import settle

        settle()
        with held(self.out):
            with under_way(console, "looking at the record"):
                run = ImitationRun(self.out, self.store, self.imitation, self.network)
            if run.history:
                console.print(f"goes on after pass {len(run.history)}")
            try:
                self._learn(run, console)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("finished passes are saved, and the same command goes on after them") from None
            best = {"held-out hosts": run.history[run.best_pass - 1].agreement}
        title = f"{self.store}: pass {run.best_pass} of {len(run.history)}"
        console.print(agreement_table(title, best))
        console.print(outcome_table("what follows decisions", best))
        console.print(f"written: {self.out / POLICY}    examine it: {self._examine()}")

    def _learn(self, run: ImitationRun, console: Console) -> None:
        while len(run.history) < self.passes:
            number = len(run.history) + 1
            with under_way(console, f"pass {number} of {self.passes}"):
                report = run.run_pass()
            joint = report.agreement["agreement"]
            console.print(
                f"{number}/{self.passes}  loss {report.learnt['total']:.4f}, held out {report.held_out['total']:.4f}"
                + ("" if joint is None else f", agreement {100 * joint:.1f} %")
                + (", the best so far" if run.best_pass == number else "")
            )

    def _examine(self) -> str:
        return command("strategic", "evaluate", self.out, self.store)


@dataclass(frozen=True)
class EvaluateStrategic:
    """Examine a graph policy on recorded episodes of hosts that imitation does not learn from."""

    trained: tyro.conf.Positional[Path]
    """What `esper-ray strategic imitate` wrote, a checkpoint of a strategic policy, or an export of one that was
    trained with --network.kind graph."""
    store: tyro.conf.Positional[Path]
    """What `esper-ray strategic collect` recorded."""
    held_out: Share = 0.2
    """Share of the hosts that are examined, those that imitation with this share or a larger one held out; 1 takes
    all."""
    batch_size: Count = 256
    """Decisions that are read at a time."""
    output: Path | None = None
    """JSON file to write."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)

    def run(self, console: Console) -> None:
        """Print the tables, and write them if asked."""
        from esper_ray.keeping.strategic_policy import load_strategic
        from esper_ray.learning.imitating import examine
        from esper_ray.measuring.imitation_report import agreement_table, outcome_table
        from esper_ray.process import settle

        settle()
        output = None if self.output is None else writable(self.output)
        policy = load_strategic(self.trained)
        with under_way(console, "reading recorded episodes"):
            found = examine(policy, self.store, self.held_out, self.batch_size)
        console.print(agreement_table(f"{self.trained} beside what is on record", found))
        console.print(outcome_table("what follows decisions", found))
        if output is not None:
            replace_text(output, json.dumps({"policy": str(self.trained), "found": found}, indent=2) + "\n")
            console.print(f"written: {output}")


Strategic = (
    Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Imitate, tyro.conf.subcommand("imitate")]
    | Annotated[EvaluateStrategic, tyro.conf.subcommand("evaluate")]
)
"""What ``esper-ray strategic`` can be asked to do."""
