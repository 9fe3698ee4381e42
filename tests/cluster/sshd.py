"""Machines of one's own, as far as `ray up` can tell: loopback addresses that answer SSH, each with its own Ray."""

import getpass
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.nodes import RAY, STORE_BYTES, free_port, processes_below

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
"""Debian's package puts it where only root's PATH looks."""
MISSING = [name for name in ("ssh", "ssh-keygen", "rsync") if shutil.which(name) is None] + ["sshd"] * (SSHD is None)

# What machines have for themselves and addresses of one machine share: ports, and what `ray stop` ends.
RAY_OF_A_MACHINE = """#!/bin/bash
read -r _ _ address _ <<< "$SSH_CONNECTION"
case "$1" in
    start) shift; exec {ray} start $(cat {folder}/$address.arguments) "$@" ;;
    stop)
        for kind in raylet '[^g]*' gcs_server; do  # in this order, as the real one
            for signal in TERM KILL; do
                for process in $(grep -lzs -- {folder}/$address /proc/[0-9]*/cmdline); do
                    process=${{process%/cmdline}}
                    [[ $(< $process/comm) == $kind ]] && kill -$signal ${{process#/proc/}}
                done
                sleep 1
            done
        done 2> /dev/null
        exit 0 ;;
    *) exec {ray} "$@" ;;
esac
"""
# A cluster file has no field for the port, and ssh looks for the user's own home, whatever $HOME is.
SSH = """#!/bin/bash
arguments=()
for argument; do
    [ "$last" = -i ] && argument=${{argument/#\\~/$HOME}}
    arguments+=("$argument")
    last=$argument
done
exec {ssh} -F none -p {port} "${{arguments[@]}}"
"""
# As Debian and Ubuntu make it for a new user.
PROFILE = 'if [ -d "$HOME/.local/bin" ]; then PATH="$HOME/.local/bin:$PATH"; fi\n'


class Machines:
    """An SSH daemon of this user's own on several loopback addresses, and the homes of who calls and who is called.

    Args:
        addresses: Of 127.0.0.0/8, the head's first.

    Attributes:
        home: Of the machines, which share it.
        laptop: Home of the caller.
        environment: Of the caller's commands.
    """

    def __init__(self, *addresses):
        self.folder = Path(tempfile.mkdtemp(prefix="esper-", dir="/tmp"))  # Unix sockets allow few characters
        self.home, self.laptop, commands = (self.folder / name for name in ("home", "laptop", "bin"))
        self.addresses = addresses
        self.user, self.port, self.dashboard_port = getpass.getuser(), free_port(), free_port()
        installed = self.home / "esper-ray" / "venv" / "bin"
        for path in (installed, self.laptop / ".ssh", self.laptop / ".ray", commands):
            path.mkdir(parents=True)
        (self.home / ".profile").write_text(PROFILE)
        key = self.laptop / ".ssh" / "id_ed25519"
        for path in (key, self.folder / "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
        token = self.laptop / ".ray" / "auth_token"
        token.write_text("0123456789abcdef" * 4)
        token.chmod(0o600)
        _script(commands / "ssh", SSH.format(ssh=shutil.which("ssh"), port=self.port))
        _script(installed / "ssh", (commands / "ssh").read_text())
        _script(installed / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        _script(installed / "ray", RAY_OF_A_MACHINE.format(ray=RAY, folder=self.folder))
        for address in addresses:
            (self.folder / f"{address}.arguments").write_text(self._arguments(address, head=address == addresses[0]))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SSH_"))},
            "PATH": f"{commands}:{RAY.parent}:{os.environ['PATH']}",
            "HOME": str(self.laptop),
            "RAY_TMPDIR": str(self.laptop),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._log = self.folder / "sshd.log"
        self._daemon = self._serve()

    def _arguments(self, address, head):
        ports = ["dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port"]
        arguments = [
            f"--node-ip-address={address}",
            f"--temp-dir={self.folder / address}",
            f"--object-store-memory={STORE_BYTES}",
            *("--min-worker-port=0", "--max-worker-port=0", "--num-cpus=1", "--disable-usage-stats"),
            *(f"--{name}={free_port()}" for name in (*ports, *(["ray-client-server-port"] if head else []))),
        ]
        return " ".join([*arguments, *([f"--dashboard-port={self.dashboard_port}"] if head else [])])

    def _serve(self):
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists, and its service is not started
        settings = [
            f"Port {self.port}",
            *(f"ListenAddress {address}" for address in self.addresses),
            f"HostKey {self.folder}/host_key",
            f"AuthorizedKeysFile {self.laptop}/.ssh/id_ed25519.pub",
            f"AllowUsers {self.user}",
            *("PidFile none", "StrictModes no", "UsePAM no", "PasswordAuthentication no", "PrintMotd no"),
            *("KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password", "MaxStartups 100"),
            # Not the user's own home: `ray up` writes into it.
            f"SetEnv HOME={self.home} RAY_TMPDIR={self.folder} RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1",
        ]
        (self.folder / "sshd_config").write_text("\n".join(settings) + "\n")
        with self._log.open("w") as log:
            daemon = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")], stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + 30
        while "Server listening" not in self._log.read_text():
            assert daemon.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)
        return daemon

    def call(self, address, command):
        """A command in a login shell of a machine, as Ray runs them."""
        shell = ["bash", "--login", "-c", "-i", shlex.quote(command)]
        target = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", f"{self.user}@{address}"]
        ssh = ["ssh", "-i", str(self.laptop / ".ssh" / "id_ed25519"), *target, *shell]
        return self.run(*ssh).stdout.strip()

    def run(self, *command, timeout=300, **more):
        """A command of the caller."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False, **more
        )

    def processes(self):
        """Ray's on all machines, by id; workers have other titles, but end with their node."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes()
            except OSError:  # it ended meanwhile
                continue
            if any(f"{self.folder}/{address}".encode() in command for address in self.addresses):
                found.append(int(path.parent.name))
        return found

    def close(self):
        """End the daemon and whatever is left of the machines."""
        for pid in (*processes_below(self._daemon.pid), self._daemon.pid, *self.processes()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _script(path, text):
    path.write_text(text)
    path.chmod(0o755)
