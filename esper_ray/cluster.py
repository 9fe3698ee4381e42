"""Where a run's processes live: a Ray of its own on this machine, or a cluster that others use too."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from rich.console import Console

import envs
import esper_ray
import policies
from esper_ray.config import RunConfig
from esper_ray.errors import UserError
from esper_ray.ray_internals import JOB_VARIABLE, autoscaler_report, infeasible_groups, why_no_cluster

ADDRESS_VARIABLE = "RAY_ADDRESS"
LOCAL = "local"
"""Ray's word for a cluster that a process starts for itself."""
REACH_SECONDS = 5.0
HOME = Path(esper_ray.__file__).parents[1]
"""Directory of our packages."""
GRACE_SECONDS = 3.0
"""How long Ray may take to find room before it is asked why there is none; nodes report what is free every second."""
REMINDER_SECONDS = 60.0

Bundle = dict[str, float]
"""What one process needs on one node: amounts by resource."""


def in_a_job() -> bool:
    """Whether ``ray job submit`` started this process."""
    return JOB_VARIABLE in os.environ


@contextmanager
def connected(run: RunConfig, address: str | None, console: Console, at_once: int = 1) -> Iterator[None]:
    """A Ray with room for a run's processes.

    Args:
        run: Which processes.
        address: ``auto`` or HOST:PORT of a cluster, which is left as it was; by default that of ``RAY_ADDRESS``. With
            neither, a Ray that lives as long as the context. Without effect where this process is connected already.
        console: Told when the run has to wait for its turn or for new nodes.
        at_once: Such runs that a Ray of this process's own has room for; a cluster must have it for one.

    Raises:
        UserError: no cluster there, or one that will never have that room.
    """
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    _check_own_gpu(run)
    address = address or os.environ.get(ADDRESS_VARIABLE) or LOCAL
    bundles = demand(run)
    if ray.is_initialized():  # by the caller, whose it stays
        find_room(bundles, "the cluster", console)
        yield
        return
    if address == LOCAL:
        # The CPUs are as many as are asked for: processes on one machine may share its cores.
        cpus = math.ceil(at_once * sum(bundle["CPU"] for bundle in bundles)) or 1
        start_ray(num_cpus=cpus)
    else:
        _connect(address)
    try:
        find_room(bundles, "this machine" if address == LOCAL else "the cluster", console)
        yield
    finally:
        ray.shutdown()  # of a cluster: this process's connection only


def demand(run: RunConfig) -> list[Bundle]:
    """What each process beside the driver needs, runners first."""
    runner = {"CPU": float(run.cpus_per_env_runner), "GPU": float(run.gpus_per_env_runner)}
    # As RLlib does by default: a learner with a GPU leaves the CPUs to the runners.
    learner = {"CPU": 0.0 if run.gpus_per_learner else 1.0, "GPU": float(run.gpus_per_learner)}
    return [runner] * run.num_env_runners + [learner] * run.num_learners


def runner_device() -> str:
    """Device of the hosts in this process: its GPU if Ray gave it one.

    Raises:
        RuntimeError: Ray gave it one that torch cannot use.
    """
    if not ray.is_initialized() or not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        return "cpu"
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"Ray gave this runner a GPU, but torch {torch.__version__} cannot use it: install a build of torch "
            "with CUDA on the nodes, or train with --gpus-per-env-runner 0"
        )
    return "cuda"


# ---------------------------------------------------------------------- room
def find_room(bundles: Sequence[Bundle], place: str, console: Console) -> None:
    """Return once all processes could start; wait while the cluster is busy or growing.

    Raises:
        UserError: they never could; says what is short.
    """
    bundles = [{name: amount for name, amount in bundle.items() if amount} for bundle in bundles]
    if not bundles:
        return
    asked = time.time()
    group = placement_group(bundles, strategy="PACK")
    try:
        patience, reminded = GRACE_SECONDS, -math.inf
        while not group.wait(patience):
            missing = shortage(bundles, _living_nodes())
            if missing and _cannot_grow(group, asked):
                raise UserError(f"{place} will never have room for this run: {missing}. Ask for less, or add nodes")
            if time.monotonic() - reminded > REMINDER_SECONDS:
                reminded = time.monotonic()
                why = f"new nodes, since {missing}" if missing else "other work to end, which has its resources now"
                console.print(f"waiting for {why} (Ctrl-C gives up)")
            patience = 1.0
    finally:
        # RLlib makes its own processes and cannot be given these places. They are free again for it at once; should
        # someone else be quicker, it waits.
        remove_placement_group(group)


def shortage(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> str | None:
    """What is short when every bundle must lie on one of these nodes; None if they all find a place.

    Args:
        bundles: Amounts above 0 by resource.
        nodes: What each node has in all.
    """
    # The rare resource first, then the large bundles, each where it leaves the least: not always the best packing,
    # but with two kinds of bundles close to it; Ray's own decides, this only finds the words.
    left = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=lambda bundle: (-bundle.get("GPU", 0.0), -bundle.get("CPU", 0.0))):
        fitting = [node for node in left if all(node.get(name, 0.0) >= need for name, need in bundle.items())]
        if not fitting:
            break
        tightest = min(fitting, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)))
        for name, need in bundle.items():
            tightest[name] = round(tightest[name] - need, 4)  # Ray counts in ten-thousandths
    else:
        return None
    asked, there = _sum(bundles), _sum(nodes)
    short = {name: need for name, need in asked.items() if need > there.get(name, 0.0)}
    if short:
        return " and ".join(
            f"it needs {need:g} {name}, and there {'is' if there.get(name, 0.0) == 1 else 'are'} "
            f"{there.get(name, 0.0):g}"
            for name, need in short.items()
        )
    parts = " and ".join(f"{amount:g} {name}" for name, amount in bundle.items())
    return f"one of its processes needs {parts} on one node, and no node has that beside the others"


def _sum(bundles: Sequence[Bundle]) -> Bundle:
    total: Counter[str] = Counter()
    for bundle in bundles:
        for name, amount in bundle.items():
            total[name] += amount  # type: ignore[assignment]  # typeshed's Counter holds int
    return dict(total)


def _living_nodes() -> list[Bundle]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _cannot_grow(group: PlacementGroup, asked: float) -> bool:
    """Whether no autoscaler will ever make room for this group, which was asked for at that time (Unix seconds).

    Ray has two autoscalers. The second, which ``ray up`` starts for a cloud, names the requests that exceed what it may
    start. The first reports what it is starting, every five seconds: nothing, once it has seen the request, means that
    it will start no more. It runs without a cluster file, too, and starts nothing then.
    """
    infeasible = infeasible_groups()
    if infeasible is not None:
        return any(group.id.hex() in description for description in infeasible)
    report = autoscaler_report()
    if report is None:
        return True
    return report.starting is False and report.asked >= asked


# ---------------------------------------------------------------------- connection
def start_ray(**settings: Any) -> None:
    """Start a Ray of this process's own.

    Args:
        settings: Further arguments of ``ray.init``.

    Raises:
        UserError: it cannot start here.
    """
    place = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    hint = f"its files and sockets are in {place}; RAY_TMPDIR names another directory"
    # Ray puts the current directory first on its workers' path, where a folder named envs would hide ours.
    with _initialising("Ray cannot start on this machine", hint), chdir(HOME):
        ray.init(LOCAL, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, **settings)


def _connect(address: str) -> None:
    _check_listening(address)
    # In a job the packages came along with the working directory; else every node gets this process's own.
    packages = [str(Path(str(package.__file__)).parent) for package in (envs, policies, esper_ray)]
    runtime_env = None if in_a_job() else {"py_modules": packages, "excludes": ["__pycache__"]}
    hint = "does this shell have its token, that is RAY_AUTH_MODE=token and ~/.ray/auth_token?"
    with (
        _initialising(f"no Ray cluster can be used at {address}", hint),
        # As above; elsewhere the same path may hold other things than here, but hardly one that is made for this.
        tempfile.TemporaryDirectory(prefix="esper-ray-") as nowhere,
        chdir(nowhere),
    ):
        ray.init(address, runtime_env=runtime_env, logging_level=logging.ERROR, log_to_driver=False)


@contextmanager
def _initialising(failed: str, hint: str) -> Iterator[None]:
    """Around ``ray.init``, which is to fail in one line, and to leave SIGTERM to whom it belonged before."""
    usual = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise UserError(f"{failed}: {' '.join(str(error).split())[:300]} ({hint})") from error
    finally:
        if threading.current_thread() is threading.main_thread():  # in others Ray does not touch it either
            signal.signal(signal.SIGTERM, usual)


def _check_listening(address: str) -> None:
    """Find out soon what Ray would try for half a minute, or for ever."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise UserError(
            f"{address} is not the address of a cluster but of a service on it: give HOST:PORT as `ray start` printed "
            f"it, or auto (from --address, or {ADDRESS_VARIABLE})"
        )
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"{address!r} is no address of a cluster: give HOST:PORT, or auto (from --address, or {ADDRESS_VARIABLE})"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, UnicodeError) as error:
        raise UserError(f"no Ray cluster answers at {address}: {getattr(error, 'strerror', None) or error}") from error
    if reason := why_no_cluster(address, REACH_SECONDS):
        raise UserError(f"what answers at {address} is no Ray cluster: {reason[:300]}")


def _check_own_gpu(run: RunConfig) -> None:
    if run.gpus_per_learner and not run.num_learners and not torch.cuda.is_available():
        raise UserError(
            f"gpus_per_learner is {run.gpus_per_learner:g}, but torch sees no GPU here, where this process learns: "
            "give --num-learners 1 to learn on a GPU of the cluster"
        )
