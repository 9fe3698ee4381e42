"""The training loop: rollouts and updates, a line of progress each, checkpoints, and a clean stop."""

from __future__ import annotations

import functools
import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ray.tune.registry import register_env
from rich.console import Console
from rich.text import Text
from torch import Tensor

from envs import ENV_ID
from envs.vocabulary import LifecycleOp
from esper_ray.cluster import connected
from esper_ray.config import EnvConfig, TrainConfig, check_resumable
from esper_ray.errors import UserError
from esper_ray.keeping.policy_settings import graph_layouts
from esper_ray.keeping.run_directory import POLICY_FILE, RLLIB_STATE, Checkpoint, RunDirectory
from esper_ray.keeping.storage import Mirror
from esper_ray.learning.algorithm import FactoredAlgorithm, FactoredConfig, Played
from esper_ray.learning.diagnostics import spoken_alarms
from esper_ray.learning.imitating import weights_to_begin_with
from esper_ray.learning.impala import EsperImpalaConfig
from esper_ray.learning.metrics import EpisodeMetrics, flatten, named
from esper_ray.learning.ppo import EsperPPOConfig
from esper_ray.learning.tensorboard import TensorBoard
from esper_ray.learning.worlds import OneOfSeveral, make_env
from esper_ray.process import settle
from esper_ray.terminal import command, under_way
from policies.encoders import BlueprintEncoder, EncoderFactory
from policies.return_scale import WORLD
from policies.strategic.actor_critic import GraphWorlds
from policies.weights import save_weights

CONFIGS: dict[str, type[FactoredConfig]] = {"ppo": EsperPPOConfig, "impala": EsperImpalaConfig}


def train(run: RunDirectory, config: TrainConfig, console: Console, address: str | None = None) -> None:
    """Train until the config's iterations are done, from the latest checkpoint if the run has one.

    The first Ctrl-C ends training after the iteration under way, which is saved; a second one at once.

    Args:
        run: Where checkpoints and TensorBoard files go; the caller holds it (:func:`esper_ray.keeping.lock.held`).
        config: All settings.
        console: Where progress is printed.
        address: Ray cluster to train on (see :func:`esper_ray.cluster.connected`).

    Raises:
        UserError: a checkpoint that cannot be read, or settings that a run cannot go on with; a disk that is full; a
            cluster that is not there or too small.
    """
    settle()
    check_resumable(run.config(), config)
    done = run.iterations_done()
    if done >= config.run.iterations:
        console.print(f"{run.path} has its {done} iterations already; give more with --iterations N --resume")
        return
    mirror = None if config.run.storage is None else Mirror(config.run.storage)
    if mirror is not None:
        mirror.check_apart(run)
    with connected(config.run, address, console):
        with under_way(console, "the processes start"):
            algorithm = build(run, config, console)
        with _stop_requests(console) as stop:
            for saved in trained_iterations(algorithm, run, config, console):
                if mirror is not None:
                    _send(mirror, run, console, last=stop[0] or saved.iteration == config.run.iterations)
                if stop[0]:
                    console.print(f"stopped and saved; go on with: {going_on(run)}")
                    break
        algorithm.stop()


def going_on(run: RunDirectory) -> str:
    """The command that goes on with a run."""
    return command("train", "--run-dir", run.path, "--resume")


def build(run: RunDirectory, config: TrainConfig, console: Console) -> FactoredAlgorithm:
    """Make a run's algorithm on the Ray that this process is connected to, as it was at the run's latest checkpoint.

    Args:
        run: May have no checkpoint yet.
        config: All settings.
        console: Told where the run goes on.

    Raises:
        UserError: a checkpoint that cannot be read, or one of other sizes; runners that cannot start.
    """
    checkpoint = run.checkpoint("latest")[1] if run.index() else None  # damage is found before anything starts
    beginning = _beginning(config) if checkpoint is None else {}
    algorithm = _algorithm_config(run, config).build_algo()
    if beginning:
        algorithm.begin_with(beginning)
    if checkpoint is not None:
        _restore(algorithm, checkpoint)
        console.print(f"resumed after iteration {algorithm.iteration}")
    run.write_config(config)  # only now, so that a config that does not fit leaves the run as it was
    return algorithm


def trained_iterations(
    algorithm: FactoredAlgorithm, run: RunDirectory, config: TrainConfig, console: Console
) -> Iterator[Checkpoint]:
    """Train until the config's iterations are done; each is saved before it is handed out.

    Args:
        algorithm: As :func:`build` makes it.
        run: Where checkpoints go.
        config: All settings.
        console: Where a line of progress is printed per iteration.

    Yields:
        What was saved.
    """
    began, beginning = time.perf_counter(), algorithm.iteration
    while algorithm.iteration < config.run.iterations:
        with under_way(console, f"iteration {algorithm.iteration + 1}: hosts train, then the policy"):
            result = algorithm.train()
        world = dict(flatten(result["env_runners"].get("world", {})))
        played = config.env_in(algorithm.iteration - 1)
        # Scores of another world say nothing about which checkpoint is the best.
        first = algorithm.iteration <= config.run.first_iterations
        score = math.nan if first else world.get("score", math.nan)
        saved = run.save(
            algorithm.iteration,
            score,
            lambda path: _write_checkpoint(algorithm, path),
            config.run.keep_checkpoints,
            _scores_by_kind(config.env, played, {} if first else world),
        )
        elapsed = time.perf_counter() - began
        left = elapsed / (algorithm.iteration - beginning) * (config.run.iterations - algorithm.iteration)
        rate = result["env_runners"]["num_env_steps_sampled"] / result["time_this_iter_s"]
        console.print(_progress_line(algorithm.iteration, config, played, world, rate, left))
        # IMPALA's learner may have nothing to tell yet.
        learnt = dict(flatten(result.get("learners", {}).get("default_policy", {})))
        for alarm in spoken_alarms(learnt, config.learner):
            console.print(alarm, style="yellow")
        yield saved


def _scores_by_kind(env: EnvConfig, played: EnvConfig, world: Mapping[str, float]) -> dict[str, float]:
    """An iteration's score in every task at every third of the horizons; NaN where none was played."""
    tasks = {f"{task} ": f"score_by_task/{task}" for task in env.tasks} or {"": "score"}
    return {
        f"{task}{named(third)}": world.get(score, math.nan) if played.longest in third else math.nan
        for task, score in tasks.items()
        for third in env.thirds
    }


def _send(mirror: Mirror, run: RunDirectory, console: Console, last: bool) -> None:
    """Send the run's copy; a storage that cannot be reached for a while stops no training."""
    try:
        mirror.send(run)
    except OSError as error:
        if last:
            raise UserError(
                f"the run is complete in {run.path}, but its copy in {mirror.uri} is not: {error}. Mend that and send "
                "it with --resume and one more of --iterations, or copy it by hand"
            ) from error
        console.print(f"not copied to {mirror.uri}, will be after the next iteration: {error}")


def _progress_line(
    iteration: int, config: TrainConfig, played: EnvConfig, world: dict[str, float], rate: float, left: float
) -> Text:
    shares = ((op, 100 * world[f"op_share/{op.name}"]) for op in LifecycleOp if f"op_share/{op.name}" in world)
    mix = ", ".join(f"{op.name.split('_')[0].lower()} {share:.0f}" for op, share in shares)
    told = {task: world.get(f"score_by_task/{task}", math.nan) for task in config.env.tasks}
    by_task = [f"{task} {score:.3f}" for task, score in told.items() if not math.isnan(score)]
    return Text.assemble(
        (f"{iteration:>3}", "bold"),
        f"/{config.run.iterations} score ",
        (f"{world.get('score', float('nan')):.3f}", "bold"),
        f" ({', '.join(by_task)})" if by_task else "",
        f" {world.get('episodes', 0):.0f} episodes ",
        f"of {played.longest} epochs " if len(config.env.horizons) > 1 else "",
        f"{rate:,.0f} epochs/s ",
        (f"% {mix}", "dim"),
        f" {int(left // 60)}:{int(left % 60):02d} left",
    )


# ---------------------------------------------------------------------- RLlib
def env_keywords(config: TrainConfig, env: EnvConfig) -> dict[str, Any]:
    """What a runner makes an env of: hosts compute on as many threads as it has CPUs."""
    threads = max(1, int(config.run.cpus_per_env_runner)) if config.run.num_env_runners else 1  # else it shares them
    graph = config.network.kind == "graph"
    return {**env.keywords(), "gamma": config.learner.gamma, "num_threads": threads, "graph": graph}


def _played_in(config: TrainConfig, iteration: int) -> Played:
    """Runner k plays world k + iteration, counted round."""
    env = config.env_in(iteration)
    configs = [env_keywords(config, world) for world in env.worlds]
    if env.tasks:
        longest = max(layout.size for layout in graph_layouts(env)) if config.network.kind == "graph" else None
        places = (OneOfSeveral(number, len(configs), env.slots, longest) for number in range(len(configs)))
        configs = [{**keywords, WORLD: place} for keywords, place in zip(configs, places, strict=True)]
    first = iteration % len(configs)
    return Played(configs[first:] + configs[:first], env.longest)


def _algorithm_config(run: RunDirectory, config: TrainConfig) -> FactoredConfig:
    register_env(ENV_ID, make_env)
    slots = config.env.slots
    algorithm_config = CONFIGS[config.run.algorithm].of(
        env_id=ENV_ID,
        env_config=_played_in(config, 0).env_configs[0],
        worlds=config.env.tasks,
        played_in=functools.partial(_played_in, config),
        heads=slots.heads,
        encoder=_encoder(config),
        rollout_length=config.env.longest,
        fresh_rollouts=True,
        envs_per_runner=config.run.hosts_per_runner,
        num_env_runners=config.run.num_env_runners,
        num_learners=config.run.num_learners,
        network=config.network,
        learner=config.learner,
        total_steps=config.host_epochs(config.run.iterations),
        seed=config.run.seed,
    )
    metrics = functools.partial(EpisodeMetrics, slots, config.env.tasks)
    algorithm_config.callbacks([metrics, functools.partial(TensorBoard, run.path, config)])
    algorithm_config.env_runners(
        num_cpus_per_env_runner=config.run.cpus_per_env_runner, num_gpus_per_env_runner=config.run.gpus_per_env_runner
    )
    algorithm_config.learners(num_gpus_per_learner=config.run.gpus_per_learner)
    return algorithm_config


def _encoder(config: TrainConfig) -> EncoderFactory | GraphWorlds:
    if config.network.kind == "graph":
        return GraphWorlds.to_train_in(graph_layouts(config.env))
    return functools.partial(BlueprintEncoder.from_space, embedding_dim=config.network.embedding_dim)


def _beginning(config: TrainConfig) -> dict[str, Tensor]:
    """The part of the policy's state that a new run does not draw."""
    if config.run.begin_from is None:
        return {}
    worlds = GraphWorlds.to_train_in(graph_layouts(config.env))
    return weights_to_begin_with(config.run.begin_from, config.network, worlds)


def _write_checkpoint(algorithm: FactoredAlgorithm, path: Path) -> None:
    algorithm.save_to_path(str(path / RLLIB_STATE))
    save_weights(algorithm.newest_policy(), path / POLICY_FILE)


def _restore(algorithm: FactoredAlgorithm, path: Path) -> None:
    try:
        algorithm.restore_from_path(str(path / RLLIB_STATE))
    except Exception as error:  # whatever unpickling what another version wrote may raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be restored with this config (were sizes changed since?): {reason[:300]}"
        ) from error


@contextmanager
def _stop_requests(console: Console) -> Iterator[list[bool]]:
    """A one-element list that turns True at the first Ctrl-C; the second one interrupts as usual."""
    stop = [False]
    usual = signal.getsignal(signal.SIGINT)

    def request(number: int, frame: FrameType | None) -> None:
        stop[0] = True
        signal.signal(signal.SIGINT, usual)
        console.print("stopping after this iteration; Ctrl-C again to stop at once and lose it")

    signal.signal(signal.SIGINT, request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, usual)
