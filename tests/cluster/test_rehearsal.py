"""A cluster, rehearsed on this machine: two worker nodes, jobs, deaths, a token, an autoscaler."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.nodes import HOST, ROOT, Nodes, free_port
from benchmarks.random_deaths import STEPS, runners_of, train_with_deaths
from tests.esper_ray.test_cluster_files import COMMANDS, readme_job

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"),
]

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""Under which Ray's fake provider knows its head."""


@pytest.fixture(scope="module")
def nodes():
    nodes = Nodes("--num-cpus=0")
    try:
        nodes.workers = [nodes.add(cpus=2, gpus=1), nodes.add(cpus=2)]
        yield nodes
    finally:
        nodes.close()


def scores_of(run_dir):
    """Score of every iteration, with the steps counted until then."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars("World/score")]


def steps_of(run_dir):
    return [step for step, _ in scores_of(run_dir)]


def test_a_killed_runner_and_a_killed_node_cost_no_iteration_and_no_step(nodes, tmp_path):
    iterations = 4
    extra = nodes.add(cpus=1)
    command = nodes.train("--num-env-runners", 2, "--iterations", iterations, "--run-dir", tmp_path / "run")
    process = subprocess.Popen(
        command, env=nodes.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines, hit = [], []
    for line in process.stdout:
        lines.append(line)
        done = line.split("/")[0].strip()
        if done in ("1", "2"):
            victim = next(node for node in (*nodes.workers, extra) if runners_of(node))
            if done == "1":
                os.kill(runners_of(victim)[0], signal.SIGKILL)
            else:
                nodes.kill(victim)
            hit.append(victim)
    assert process.wait(timeout=120) == 0, "".join(lines)
    assert len(hit) == 2, "".join(lines)
    assert steps_of(tmp_path / "run") == [STEPS * (1 + done) for done in range(iterations)]
    nodes.workers = [node for node in (*nodes.workers, extra) if node is not hit[1]]


def test_runners_killed_at_random_cost_no_iteration_and_no_step(nodes, tmp_path):
    iterations = 3
    train_with_deaths(nodes, tmp_path / "run", iterations, deaths=3)
    assert steps_of(tmp_path / "run") == [STEPS * (1 + done) for done in range(iterations)]


def test_a_driver_killed_on_the_cluster_goes_on_elsewhere_from_the_storage(nodes, tmp_path):
    iterations, storage = 3, f"file://{tmp_path}/storage"
    command = nodes.train("--num-env-runners", 2, "--iterations", iterations, "--run-dir")
    process = subprocess.Popen(
        [*command, str(tmp_path / "lost"), "--storage", storage],
        env=nodes.environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # An iteration is told before it is copied: at the second one's line the first is in the storage.
    line = next((line for line in process.stdout if f"2/{iterations}" in line), None)
    process.kill()
    assert line is not None, "ended before its second iteration"
    process.wait()
    process.stdout.close()
    shutil.rmtree(tmp_path / "lost")
    # The cluster is still there, and has taken back what the dead driver held.
    resume = [*nodes.train()[:4], "--resume", "--run-dir", str(tmp_path / "new"), "--storage", storage]
    result = nodes.run(*resume, "--address", nodes.address)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "resumed after iteration" in result.stdout
    assert steps_of(tmp_path / "new") == [STEPS * (1 + done) for done in range(iterations)]
    result = nodes.run(*command, str(tmp_path / "uninterrupted"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert scores_of(tmp_path / "new") == scores_of(tmp_path / "uninterrupted")


def test_what_the_cluster_lacks_is_named_at_once(nodes, tmp_path):
    began = time.monotonic()
    result = nodes.run(*nodes.train("--num-env-runners", 64, "--run-dir", tmp_path / "run"))
    assert result.returncode == 2, result.stdout + result.stderr
    assert "the cluster will never have room for this run: it needs 64 CPU, and there are" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    print(f"refused after {time.monotonic() - began:.1f} s, imports included")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a GPU that torch cannot use")
def test_hosts_that_cannot_live_on_their_runners_gpu_end_the_run_with_the_reason(nodes, tmp_path):
    asked = ["--num-env-runners", 2, "--gpus-per-env-runner", 0.5, "--run-dir", tmp_path / "run"]
    result = nodes.run(*nodes.train(*asked))
    assert result.returncode == 2, result.stdout + result.stderr
    assert "an env runner cannot start: RuntimeError: Ray gave this runner a GPU, but torch" in result.stderr


def test_every_node_gets_the_drivers_own_packages(nodes):
    program = (
        "import ray\n"
        "from rich.console import Console\n"
        "from esper_ray.cluster import connected\n"
        "from esper_ray.config import RunConfig\n"
        "def place():\n"
        "    import esper_ray\n"
        "    return esper_ray.__file__\n"
        f"with connected(RunConfig(num_env_runners=1), '{nodes.address}', Console()):\n"
        "    print('imported from', ray.get(ray.remote(place).remote()))\n"
    )
    # From another folder: a driver's own one is on its workers' path, which only exists on one machine.
    result = nodes.run(sys.executable, "-c", program, cwd=nodes.folder, PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "/py_modules_files/" in result.stdout.partition("imported from")[2]


def test_the_readmes_job_brings_its_code_along_and_needs_the_token(nodes, tmp_path):
    ours = {
        "http://127.0.0.1:8265": nodes.dashboard,
        "/home/ubuntu/runs/mixed": str(tmp_path / "run"),
        "16": "1",  # runners
        "0.5": "0",  # GPUs of each
    }
    line = readme_job()
    assert all(line.count(word) == 1 for word in ours)
    small = nodes.train("--iterations", 1)[4:]
    place = small.index("--address")
    del small[place : place + 2]  # Ray tells a job where it is
    submit = [*(ours.get(word, word) for word in line), *small]
    refused = nodes.run(*submit, RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert "401" in refused.stdout + refused.stderr or "nauth" in refused.stdout + refused.stderr
    refused = nodes.run(*submit, RAY_AUTH_TOKEN_PATH="", RAY_AUTH_TOKEN="f" * 64)
    assert refused.returncode != 0
    assert not (tmp_path / "run").exists()
    accepted = nodes.run(*submit)
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    assert "1/1" in accepted.stdout
    assert steps_of(tmp_path / "run") == [STEPS // 2]


def test_an_autoscaler_of_cluster_yamls_shape_starts_the_nodes_that_a_run_needs(tmp_path):
    shape = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    types = shape["available_node_types"]
    port = free_port()
    provider = {
        "type": "external",  # as "fake_multinode", whose defaults Ray's wheel lacks
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "disable_node_updaters": True,
        "launch_multiple": True,
        "head_node_id": HEAD_ID,
        "gcs_address": f"{HOST}:{port}",
    }
    empty = (*COMMANDS, "initialization_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter")
    fake = {
        **{name: shape[name] for name in ("cluster_name", "idle_timeout_minutes", "upscaling_speed")},
        "provider": provider,
        "max_workers": 2,
        "available_node_types": {
            "ray.head.default": {"resources": types["head"]["resources"], "node_config": {}, "max_workers": 0},
            # One CPU stands for a worker's eight, since the machine may have but two.
            "gpu_worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        **{name: [] for name in empty},
        **{"file_mounts": {}, "file_mounts_sync_continuously": False, "auth": {}, "docker": {}},
    }
    config = tmp_path / "fake.json"
    head = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the provider's nodes are to use the loopback
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    config.write_text(json.dumps(fake))
    nodes = Nodes("--num-cpus=0", f"--autoscaling-config={config}", port=port, environment=head)
    try:
        asked = ["--num-env-runners", 2, "--iterations", 1]
        result = nodes.run(*nodes.train(*asked, "--run-dir", tmp_path / "run"))
        assert result.returncode == 0, result.stdout + result.stderr
        assert steps_of(tmp_path / "run") == [STEPS]
        result = nodes.run(*nodes.train("--num-env-runners", 3, "--run-dir", tmp_path / "more"))
        assert result.returncode == 2, result.stdout + result.stderr
        assert "will never have room for this run: it needs 3 CPU, and there are 2" in result.stderr
    finally:
        nodes.close()


def test_the_trials_of_a_tuning_are_trained_on_the_workers(nodes, tmp_path):
    tuning = {
        "preset": "debug",
        "settings": {"max_epochs": 8, "hosts_per_runner": 2, "iterations": 3, "num_env_runners": 1},
        "space": {"lr": {"loguniform": [1e-4, 1e-2]}},
        "samples": 3,
        "grace_iterations": 1,
        "concurrent_trials": 2,
    }
    (tmp_path / "tuning.yaml").write_text(yaml.safe_dump(tuning))
    log, seen = tmp_path / "log", set()
    command = [sys.executable, "-m", "esper_ray", "tune", str(tmp_path / "tuning.yaml"), "--address", nodes.address]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--output", str(tmp_path / "out")],
            env=nodes.environment,
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    while process.poll() is None:
        seen |= {runner for node in nodes.workers for runner in runners_of(node)}
        time.sleep(0.2)
    assert process.returncode == 0, log.read_text()
    report = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert {trial["state"] for trial in report["trials"]} <= {"finished", "stopped"}
    assert len(seen) >= len(report["trials"])  # a runner of each, on a worker
    for trial in report["trials"]:
        assert steps_of(tmp_path / "out" / "trials" / trial["name"]) == [
            STEPS // 2 * (1 + done) for done in range(trial["iterations"])
        ]
