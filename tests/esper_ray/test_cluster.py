"""What a run asks of a cluster, and what it is told where there is too little."""

import dataclasses
import io
import socket
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from envs.morphogenesis import MorphogenesisVectorEnv
from esper_ray import cluster
from esper_ray.cli import parse
from esper_ray.cluster import ADDRESS_VARIABLE, connected, demand, runner_device, shortage
from esper_ray.config import LearnerConfig, RunConfig, TrainConfig
from esper_ray.errors import UserError
from esper_ray.learning.training import env_keywords
from esper_ray.presets import DEBUG

AMOUNT = st.sampled_from([0.25, 0.5, 1.0, 2.0])
BUNDLE = st.fixed_dictionaries({"CPU": AMOUNT}, optional={"GPU": AMOUNT})


@given(st.lists(BUNDLE, max_size=6), st.integers(0, 3))
def test_a_node_for_each_process_is_room_enough_and_a_process_larger_than_every_node_never_is(bundles, others):
    nodes = [*bundles, *[{"CPU": 0.1, "memory": 1e9}] * others]
    assert shortage(bundles, nodes) is None
    assert "3 CPU" in shortage([*bundles, {"CPU": 3.0}], [*nodes, *[{"CPU": 2.0}] * 9])


@given(st.lists(BUNDLE, min_size=1, max_size=6), st.lists(BUNDLE, max_size=6))
def test_a_resource_that_is_short_in_all_is_named_with_both_amounts(bundles, nodes):
    said = shortage(bundles, nodes)
    for name in ("CPU", "GPU"):
        needed, there = (sum(bundle.get(name, 0.0) for bundle in some) for some in (bundles, nodes))
        if needed > there:
            assert f"{needed:g} {name}" in said
            assert f"{there:g}" in said


def test_a_process_that_fits_no_single_node_is_named():
    assert shortage([{"CPU": 1.0, "GPU": 0.75}] * 2, [{"CPU": 8.0, "GPU": 1.0}] * 2) is None
    said = shortage([{"CPU": 1.0, "GPU": 0.75}] * 3, [{"CPU": 8.0, "GPU": 1.0}] * 2 + [{"GPU": 0.5, "CPU": 1.0}])
    assert "1 CPU and 0.75 GPU on one node" in said


@pytest.mark.parametrize(("runners", "cpus", "threads"), [(2, 3, 3), (2, 0.5, 1), (0, 3, 1)])
def test_hosts_compute_on_as_many_threads_as_their_runner_has_cpus(runners, cpus, threads):
    run = dataclasses.replace(DEBUG.run, num_env_runners=runners, cpus_per_env_runner=cpus)
    config = dataclasses.replace(DEBUG, run=run)
    assert MorphogenesisVectorEnv(2, **env_keywords(config, config.env)).num_threads == threads


def test_gpus_come_as_asked_for_and_free_the_learners_of_cpus():
    run = RunConfig(num_env_runners=2, cpus_per_env_runner=3, gpus_per_env_runner=0.25, num_learners=1)
    assert demand(run) == [{"CPU": 3.0, "GPU": 0.25}] * 2 + [{"CPU": 1.0, "GPU": 0.0}]
    run = RunConfig(num_env_runners=0, num_learners=2, gpus_per_learner=1)
    assert demand(run) == [{"CPU": 0.0, "GPU": 1.0}] * 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gpus_per_env_runner": 1.5}, "gpus_per_env_runner must be in \\[0, 1\\] or whole, got 1.5"),
        ({"cpus_per_env_runner": 0}, "cpus_per_env_runner"),
        ({"gpus_per_learner": -1}, "gpus_per_learner"),
        ({"num_env_runners": 0, "gpus_per_env_runner": 1}, "--num-env-runners"),
    ],
)
def test_placement_that_ray_cannot_grant_is_refused(settings, says):
    with pytest.raises(UserError, match=says):
        RunConfig(**settings)


def test_learners_get_equal_shares():
    run = RunConfig(num_env_runners=2, hosts_per_runner=6, num_learners=2)
    with pytest.raises(UserError, match="2 × 4"):
        TrainConfig(run=run)
    TrainConfig(run=run, learner=LearnerConfig(minibatches=3))
    with pytest.raises(UserError, match="at least 2 minibatches"):
        TrainConfig(run=run, learner=LearnerConfig(minibatches=1))


def test_a_private_ray_that_lacks_gpus_says_so_and_is_gone_afterwards(monkeypatch):
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    run = RunConfig(num_env_runners=1, gpus_per_env_runner=1)
    with pytest.raises(UserError, match="it needs 1 GPU, and there are 0"), connected(run, None, Console()):
        pytest.fail("there is no GPU here")
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("http://127.0.0.1:8265", "HOST:PORT"),
        ("localhost", "'localhost' is no address"),
        ("127.0.0.1:0x10", "is no address"),
        ("127.0.0.1:99999", "is no address"),
        ("[/b]:" + "9" * 30, "is no address"),
    ],
)
def test_an_address_without_a_cluster_is_named(address, says):
    with pytest.raises(UserError, match=says), connected(DEBUG.run, address, Console(file=io.StringIO())):
        pytest.fail("nobody listens there")


def test_a_server_that_is_something_else_is_named_soon(monkeypatch):
    web = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    web.RequestHandlerClass.log_message = lambda *_: None
    threading.Thread(target=web.serve_forever, daemon=True).start()
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    monkeypatch.setattr(cluster, "REACH_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for wrong in (web.server_port, port, silent.getsockname()[1]):
            address = f"127.0.0.1:{wrong}"
            says = f"what answers at {address} is no Ray cluster: "
            with pytest.raises(UserError, match=says), connected(DEBUG.run, address, Console(quiet=True)):
                pytest.fail("that is no cluster")
    other.stop(None)
    web.shutdown()
    web.server_close()


def test_a_ray_that_cannot_start_here_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 100)))
    (tmp_path / ("x" * 100)).mkdir()
    monkeypatch.setenv(ADDRESS_VARIABLE, "")
    says = "Ray cannot start on this machine: .*path length.* RAY_TMPDIR names another"
    with pytest.raises(UserError, match=says), connected(DEBUG.run, None, Console(quiet=True)):
        pytest.fail("its sockets have no room there")


def test_a_cluster_that_cannot_be_reached_for_lack_of_a_directory_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    says = "no Ray cluster can be used at auto: .*No such file or directory.*gone"
    with pytest.raises(UserError, match=says), connected(DEBUG.run, "auto", Console(quiet=True)):
        pytest.fail("there is no place to start from")


def test_a_run_that_found_no_cluster_leaves_nothing_behind(tmp_path):
    command = parse(["train", "--debug", "--address", "127.0.0.1:1", "--run-dir", str(tmp_path / "run")])
    with pytest.raises(UserError, match="no Ray cluster answers"):
        command.run(Console(file=io.StringIO()))
    assert not (tmp_path / "run").exists()


def test_hosts_live_on_the_cpu_outside_of_a_runner_with_a_gpu():
    assert runner_device() == "cpu"
