"""A Ray cluster of several nodes on this machine's loopback, apart from every other Ray here."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"
HEAD = "127.0.0.2"
"""All of 127.0.0.0/8 is loopback on Linux, so that every node has an address of its own; Ray replaces the first."""
STORE_BYTES = 100_000_000
START_SECONDS = 90.0
STARTS = 3
"""How often a node is started before Ray's own limit (30 s, and fixed) counts: a busy machine may need longer."""
TOO_SLOW = "timed out during startup"


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]


def processes_below(pid: int) -> list[int]:
    """All that a process started, directly or not (Linux)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # it ended meanwhile
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(pid, []))
    for child in found:  # grows
        found += children.get(child, [])
    return found


class Nodes:
    """Starts and kills nodes; each is one process group of its own.

    Args:
        head: Arguments of the head's ``ray start``.
        port: Of the cluster; any free one by default.
        environment: Of the head alone.

    Attributes:
        workers: Nodes beside the head; whoever kills one takes it out.
    """

    def __init__(self, *head: str, port: int | None = None, environment: dict[str, str] | None = None) -> None:
        # Unix sockets allow few characters.
        self.folder = Path(tempfile.mkdtemp(prefix="esper-", dir="/tmp"))
        self.port, self.dashboard_port = port or free_port(), free_port()
        self.address, self.dashboard = f"{HEAD}:{self.port}", f"http://{HOST}:{self.dashboard_port}"
        self.token = self.folder / "token"
        self.token.write_text("0123456789abcdef" * 4)
        self.token.chmod(0o600)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": "",  # runs bring their code along
            "OMP_NUM_THREADS": "1",
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.launched: list[subprocess.Popen[str]] = []
        self.workers: list[subprocess.Popen[str]] = []
        self.known: dict[int, set[int]] = {}
        self.count = 0
        arguments = ("--head", f"--port={self.port}", f"--dashboard-host={HOST}", *head)
        try:
            self.head = self._start(*arguments, **(environment or {}))
        except BaseException:
            self.close()
            raise

    def add(self, cpus: int, gpus: int = 0) -> subprocess.Popen[str]:
        """A node that reports these resources, whatever the machine has."""
        return self._start(f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}")

    def _start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        for _ in range(STARTS):
            process, log = self._launch(*arguments, **environment)
            self.launched.append(process)
            deadline = time.monotonic() + START_SECONDS
            while "Ray runtime started" not in (said := log.read_text()):
                self._look(process)
                if process.poll() is not None or time.monotonic() > deadline:
                    break
                time.sleep(0.2)
            else:
                self.count += 1
                return process
            self._end(process)
            if TOO_SLOW not in said:
                break
        raise RuntimeError(f"a node did not start: {said}")

    def _launch(self, *arguments: str, **environment: str) -> tuple[subprocess.Popen[str], Path]:
        """``ray start`` with its log."""
        ports = [
            f"--{name}={free_port()}"
            for name in ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
        ]
        if "--head" in arguments:
            ports += [f"--dashboard-port={self.dashboard_port}", f"--ray-client-server-port={free_port()}"]
        log = self.folder / f"node-{len(self.launched)}.log"
        command = [
            *(str(RAY), "start", "--block", "--disable-usage-stats", f"--node-ip-address=127.0.0.{2 + self.count}"),
            *(f"--object-store-memory={STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"),
            # Agents unpack a job's code anew, each over what it finds: nodes must not share a folder.
            f"--temp-dir={self.folder / str(len(self.launched))}",
            *ports,
            *arguments,
        ]
        with log.open("w") as file:
            process = subprocess.Popen(
                command,
                env={**self.environment, **environment},
                cwd=self.folder,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        return process, log

    def kill(self, node: subprocess.Popen[str]) -> None:
        """As a power cut would: every process of the node at once."""
        for pid in (node.pid, *processes_below(node.pid)):
            _signal(pid, signal.SIGKILL)
        node.wait()

    def close(self) -> None:
        """End every process of every node."""
        for node in self.launched:
            self._look(node)
            self._end(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _look(self, node: subprocess.Popen[str]) -> None:
        """Note which processes are a node's, while those that started them live."""
        self.known.setdefault(node.pid, {node.pid}).update(processes_below(node.pid))

    def _end(self, node: subprocess.Popen[str]) -> None:
        for pid in self.known[node.pid]:
            if _ours(pid, self.folder):
                _signal(pid, signal.SIGKILL)
        node.wait()

    def run(
        self, *arguments: str, timeout: float = 240, cwd: Path = ROOT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A command on this machine, with the cluster's token unless told otherwise."""
        return subprocess.run(
            arguments,
            env={**self.environment, **environment},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def train(self, *arguments: object) -> list[str]:
        """Command of a small training run on the cluster."""
        return [
            *(sys.executable, "-m", "esper_ray", "train", "--debug", "--address", self.address),
            *("--max-epochs", "8", "--hosts-per-runner", "2", "--minibatches", "2", "--replay-interval", "99"),
            *map(str, arguments),
        ]


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _ours(pid: int, folder: Path) -> bool:
    """Whether a process is one of the cluster's, not a later one with the same number."""
    try:
        return str(folder).encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
