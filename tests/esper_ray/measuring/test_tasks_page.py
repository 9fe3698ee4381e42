"""docs/tasks.md: its examples run, as installed packages, from the command line."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from envs.tasks import task_names
from envs.tasks.cifar import FOLDER
from esper_ray.cli import parse
from esper_ray.errors import UserError
from tests.envs.cifar_files import md5_of, write_cifar
from tests.envs.packages import install

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs" / "tasks.md").read_text()
SMALL = ["--debug", "--max-epochs", "2", "--hosts-per-runner", "2", "--minibatches", "2", "--iterations", "1"]


def block(first_line):
    """The code block of the page that starts with this comment."""
    (found,) = re.findall(rf"```\w+\n({re.escape(first_line)}\n.*?)```", PAGE, flags=re.DOTALL)
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page's two tasks, installed; the photographs are made, and their sums put in for the page's."""
    path = tmp_path_factory.mktemp("site")
    project = tomllib.loads(block("# pyproject.toml beside it"))
    (module,) = project["tool"]["setuptools"]["py-modules"]
    install(
        path, "stripes", project["project"]["entry-points"]["esper_ray.tasks"], {module: block("# stripes_task.py")}
    )
    photos, found = re.subn(r"MD5 = \{.*?\}", f"MD5 = {md5_of()}", block("# photos_task.py"), flags=re.DOTALL)
    assert found == 1
    install(path, "photos", {"photos": "photos_task:photos"}, {"photos_task": photos})
    return path


def esper_ray(site, *arguments, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(site), str(REPOSITORY)))}
    return subprocess.run(
        [sys.executable, "-m", "esper_ray", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
        check=False,
    )


def test_the_pages_own_task_trains_with_an_argument(site, tmp_path):
    result = esper_ray(
        site, "train", *SMALL, "--task", "stripes", "--task-args", "samples=200", "--run-dir", "run", cwd=tmp_path
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1/1" in result.stdout
    assert json.loads((tmp_path / "run" / "config.json").read_text())["env"]["task_args"] == {"samples": "200"}


def test_images_in_cifars_format_train_in_a_worker_from_a_relative_data_directory(site, tmp_path):
    write_cifar(tmp_path / "data")
    train = ["train", *SMALL, "--num-env-runners", "1", "--task", "photos"]
    result = esper_ray(site, *train, "--data-dir", "data", "--run-dir", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    env = json.loads((tmp_path / "run" / "config.json").read_text())["env"]
    assert (env["data_dir"], env["task_args"]) == (str(tmp_path / "data"), {})
    (tmp_path / "data" / FOLDER / "test_batch").unlink()
    again = esper_ray(site, "evaluate", tmp_path / "run", "--episodes", 2, cwd=site)
    assert again.returncode == 2, again.stdout + again.stderr
    assert f"{tmp_path / 'data' / FOLDER / 'test_batch'} is missing" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--task", "cifar10"], "no data directory was given"),
        (["--task", "cifar_impaired", "--data-dir", "nowhere"], "https://www.cs.toronto.edu/~kriz/cifar.html"),
        (["--task", "photos", "--data-dir", "nowhere"], "nowhere/cifar-10-python.tar.gz"),
        (["--task", "photos"], "needs the argument data_dir"),
        (["--task", "stripes", "--data-dir", "."], "takes no argument data_dir: it knows samples"),
        (["--task", "stripes", "--task-args", "sample=3"], "takes no argument sample: it knows samples"),
        (["--task", "stripes", "--task-args", "samples=few"], "must be of type int, got 'few'"),
        (["--task", "photos", "--task-args", "data_dir=."], "give --data-dir"),
    ],
)
def test_absent_data_and_wrong_arguments_are_named_before_anything_is_written(
    site, tmp_path, monkeypatch, arguments, says
):
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        parse(["train", "--debug", *arguments]).run(Console(quiet=True))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_made_files_do_not_pass_for_cifar_10(site, tmp_path):
    write_cifar(tmp_path / "data")
    result = esper_ray(site, "train", "--debug", "--task", "cifar_impaired", "--data-dir", "data", cwd=tmp_path)
    assert result.returncode == 2, result.stdout + result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "MD5 sum" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_page_lists_every_built_in_task():
    assert re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE) == list(task_names())


def test_the_pages_links_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (REPOSITORY / "docs" / target).exists(), target
