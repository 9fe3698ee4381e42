"""The part of ``benchmarks.cluster`` that runs as a driver on the cluster: times and sizes, and what deaths cost."""

from __future__ import annotations

import json
import os
import pickle
import signal
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import tyro
from ray.exceptions import RayError
from rich.console import Console

from benchmarks.nodes import processes_below
from benchmarks.quickstart import quickstart
from benchmarks.scaling import one_and_all, replay
from esper_ray.cluster import connected
from esper_ray.config import RunConfig
from esper_ray.process import settle
from esper_ray.ray_internals import runner_actors

RUNNERS = 2
RECOVERY_SECONDS = 180.0


@dataclass(frozen=True)
class Driver:
    """Measure on a cluster whose nodes are processes of this machine; writes JSON."""

    what: tyro.conf.Positional[Literal["pieces", "deaths"]]
    """``pieces``: rates, sizes and the update. ``deaths``: of a runner, then of a node."""
    address: tyro.conf.Positional[str]
    """HOST:PORT of the cluster."""
    out: tyro.conf.Positional[Path]
    """File to write."""
    hosts: int = 16
    """Of each runner."""
    epochs: int = 30
    """Steps of an episode."""
    task: str = "digits_impaired"
    """Data and host."""
    repeats: int = 3
    """Timed rounds or iterations."""
    nodes: tuple[int, ...] = ()
    """Processes of the nodes that may be killed."""

    def run(self, console: Console) -> None:
        """Measure, write."""
        with connected(RunConfig(num_env_runners=RUNNERS), self.address, console):
            config = quickstart(
                num_env_runners=RUNNERS, hosts_per_runner=self.hosts, epochs=self.epochs, task=self.task
            )
            algorithm = config.build_algo()
            measure = self._pieces if self.what == "pieces" else self._deaths
            self.out.write_text(json.dumps(measure(algorithm, console)))
            algorithm.stop()

    @property
    def _steps(self) -> int:
        """Of one runner's rollout."""
        return self.hosts * self.epochs

    # ------------------------------------------------------------------ pieces
    def _pieces(self, algorithm: Any, console: Console) -> dict[str, Any]:
        group = algorithm.env_runner_group
        places = group.foreach_env_runner(lambda _: ray.get_runtime_context().get_node_id(), local_env_runner=False)
        if len(set(places)) != RUNNERS:
            raise RuntimeError(f"{RUNNERS} runners are on {len(set(places))} node(s): give every node one CPU")
        console.print("  one node's runner and both, in turns")
        rollouts = one_and_all(group, self.repeats)
        (episodes, _), *_ = group.foreach_env_runner(replay, local_env_runner=False, remote_worker_ids=[1])
        packed = pickle.dumps(episodes, protocol=5)
        weights = algorithm.newest_weights()
        console.print("  iterations of training")
        updates: list[float] = []
        update = algorithm.learner_group.update

        def timed(**keywords: Any) -> Any:
            began = time.perf_counter()
            learnt = update(**keywords)
            updates.append(time.perf_counter() - began)
            return learnt

        algorithm.learner_group.update = timed
        iterations = [_seconds(algorithm.train) for _ in range(self.repeats + 1)][1:]
        return {
            "steps_of_a_rollout": self._steps,
            "seconds_of_a_rollout": rollouts,
            "bytes_per_step": len(packed) / self._steps,
            "unpack_seconds_per_step": self._median(lambda: pickle.loads(packed)) / self._steps,
            "weight_bytes": len(pickle.dumps(weights, protocol=5)),
            "broadcast_seconds": self._median(lambda: self._broadcast(group, weights)),
            "update_seconds": statistics.median(updates[1:]),
            "iteration_seconds": statistics.median(iterations),
        }

    def _median(self, work: Callable[[], object]) -> float:
        return statistics.median([_seconds(work) for _ in range(self.repeats + 1)][1:])

    def _broadcast(self, group: Any, weights: dict[str, Any]) -> None:
        """From the driver's memory into that of every runner."""
        group.foreach_env_runner(
            lambda runner, weights: runner.module.set_state(weights["rl_module"]["default_policy"]),
            kwargs={"weights": ray.put(weights)},
            local_env_runner=False,
        )

    # ------------------------------------------------------------------ deaths
    def _deaths(self, algorithm: Any, console: Console) -> dict[str, Any]:
        console.print("  undisturbed iterations")
        seconds = [_seconds(algorithm.train) for _ in range(self.repeats + 1)][1:]
        undisturbed = statistics.median(seconds)
        found: dict[str, Any] = {"undisturbed_seconds": undisturbed}
        for name, kill in (("runner", _kill_runner), ("node", self._kill_node)):
            console.print(f"  death of a {name}")
            found[name] = self._death(algorithm, kill, undisturbed)
        result = algorithm.train()
        expected = RUNNERS * self._steps * result["training_iteration"]
        found["iterations"] = result["training_iteration"]
        found["steps_missing"] = expected - int(result["num_env_steps_sampled_lifetime"])
        return found

    def _death(self, algorithm: Any, kill: Callable[[int], None], undisturbed: float) -> dict[str, float]:
        """One iteration with a death at half the time that a quiet one takes."""
        group = algorithm.env_runner_group
        pid = group.foreach_env_runner(lambda _: os.getpid(), local_env_runner=False, remote_worker_ids=[1])[0]
        actor = runner_actors(group)[1]
        back: list[float] = []

        def die_and_watch() -> None:
            kill(pid)
            died = time.perf_counter()
            while not back and time.perf_counter() - died < RECOVERY_SECONDS:
                try:
                    ray.get(actor.ping.remote())
                    back.append(time.perf_counter() - died)
                except RayError:
                    time.sleep(0.1)

        killer = threading.Timer(undisturbed / 2, die_and_watch)
        killer.start()
        seconds = _seconds(algorithm.train)
        killer.join()
        if not back:
            raise RuntimeError(f"the runner did not come back within {RECOVERY_SECONDS:.0f} s")
        algorithm.train()  # takes it into service
        return {"recovered_seconds": back[0], "iteration_seconds": seconds}

    def _kill_node(self, runner: int) -> None:
        """Every process of the runner's node, as a power cut would."""
        (node,) = (node for node in self.nodes if runner in processes_below(node))
        for pid in (node, *processes_below(node)):
            _kill_runner(pid)


def _kill_runner(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    settle()
    tyro.cli(Driver).run(Console(highlight=False))
