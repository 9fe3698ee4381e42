"""`ray up` on machines of one's own: the file from docs/cluster, over SSH to loopback addresses, and torn down."""

import time
from pathlib import Path

import pytest
import yaml

from benchmarks.nodes import RAY, ROOT, free_port
from tests.cluster.sshd import MISSING, Machines

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (apt-get install openssh-server rsync)"),
]

HEAD, WORKER = "127.0.0.2", "127.0.0.3"
SECONDS = 30
# A driver that waits for the worker, and says where it has run something on each.
PROGRAM = """
import time, ray
ray.init()
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.5)
place = ray.remote(num_cpus=1)(lambda: (time.sleep(3), ray.util.get_node_ip_address())[1])
print("ran on", *sorted(ray.get([place.remote(), place.remote()])))
"""


@pytest.fixture
def machines():
    machines = Machines(HEAD, WORKER)
    try:
        yield machines
    finally:
        machines.close()


def cluster_file(machines):
    """local.yaml with these machines in it; what it would download is installed."""
    file = yaml.safe_load((ROOT / "docs" / "cluster" / "local.yaml").read_text().replace("6379", str(free_port())))
    file["cluster_name"] = f"loopback-{machines.port}"
    file["provider"] |= {"head_ip": HEAD, "worker_ips": [WORKER]}
    file["auth"]["ssh_user"] = machines.user
    file["setup_commands"] = [command for command in file["setup_commands"] if "uv" not in command]
    assert len(file["setup_commands"]) == 3
    path = machines.folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(file))
    return path


def test_ray_up_starts_ray_on_every_machine_and_ray_down_ends_it(machines):
    path = cluster_file(machines)
    (machines.home / ".local" / "bin").mkdir(parents=True)  # where uv would have put itself
    began = time.monotonic()
    up = machines.run(str(RAY), "up", "--yes", "--no-config-cache", str(path), cwd=ROOT)
    assert up.returncode == 0, up.stdout + up.stderr
    print(f"up after {time.monotonic() - began:.0f} s")
    assert (machines.home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    assert (machines.home / "esper-ray" / "constraints.txt").read_bytes() == (ROOT / "constraints.txt").read_bytes()

    submit = [str(RAY), "job", "submit", "--address", f"http://127.0.0.1:{machines.dashboard_port}", "--"]
    job = machines.run(*submit, "python", "-c", PROGRAM)
    assert job.returncode == 0, job.stdout + job.stderr
    assert f"ran on {HEAD} {WORKER}" in job.stdout

    # Another `ray` would end every Ray of this machine, whoever started it.
    found = machines.call(HEAD, "command -v ray").splitlines()[-1]
    assert Path(found).resolve() == machines.home / "esper-ray" / "venv" / "bin" / "ray"
    down = machines.run(str(RAY), "down", "--yes", str(path), cwd=ROOT)
    assert down.returncode == 0, down.stdout + down.stderr
    assert "No nodes remaining" in down.stdout
    # It only calls the head: the others would notice within two minutes, and leave their log readers.
    machines.call(WORKER, "~/.local/bin/ray stop")
    deadline = time.monotonic() + SECONDS
    while machines.processes():
        assert time.monotonic() < deadline, machines.processes()
        time.sleep(0.5)
