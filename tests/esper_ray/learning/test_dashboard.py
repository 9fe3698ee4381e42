"""What TensorBoard has to show of a real run, read from its file and in a browser."""

import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.util.tensor_util import make_ndarray

from benchmarks.full_disk import files_of_at_most
from envs.tasks import make_task
from esper_ray.errors import UserError
from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.learning.dashboard import LAYOUT, RESULTS, SHOWN_FIRST, hyperparameters
from esper_ray.learning.tensorboard import TensorBoard
from esper_ray.learning.training import train
from esper_ray.presets import DEBUG
from tests.esper_ray.browser import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SLOTS = make_task(DEBUG.env.task).slots


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    run = RunDirectory.create(tmp_path_factory.mktemp("runs") / "small", DEBUG)
    train(run, DEBUG, Console(quiet=True))
    return run.path


@pytest.fixture(scope="module")
def events(run_dir):
    return EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def test_every_chart_has_a_tag_and_every_result_of_the_hyperparameter_page_exists(events):
    tags = events.Tags()["scalars"]
    for charts in LAYOUT.values():
        for title, patterns in charts.items():
            assert any(re.fullmatch(pattern, tag) for pattern in patterns for tag in tags), title
    assert set(RESULTS) <= set(tags)
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_the_histograms_count_every_step_and_every_germination(events):
    steps = DEBUG.run.hosts_per_runner * DEBUG.env.max_epochs
    for event in events.Tensors("Policy/op"):
        left, right, count = make_ndarray(event.tensor_proto).T
        assert (left + right).tolist() == [2 * op for op in SLOTS.ops]
        assert count.sum() == steps
    germinations = {event.step: make_ndarray(event.tensor_proto)[1, 2] for event in events.Tensors("Policy/op")}
    for event in events.Tensors("Policy/blueprint"):
        bins = make_ndarray(event.tensor_proto)
        assert len(bins) == len(SLOTS.blueprints)
        assert bins[:, 2].sum() == germinations[event.step]


def test_hyperparameters_are_in_the_runs_own_file(events, run_dir):
    assert not [path for path in run_dir.rglob("events.out.*") if path.parent != run_dir]
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    written = metadata.parse_session_start_info_plugin_data(content).hparams
    assert set(written) == set(hyperparameters(DEBUG))
    assert set(SHOWN_FIRST) <= set(written)
    assert written["learner/lr"].number_value == DEBUG.learner.lr
    assert written["env/task"].string_value == DEBUG.env.task
    assert written["network/op_bias"].string_value == "PRUNE=-2.0"


def test_what_does_not_fit_on_the_disk_is_told_once(tmp_path, monkeypatch):
    config = replace(DEBUG, run=replace(DEBUG.run, iterations=9, replay_interval=9))
    tracebacks = []
    monkeypatch.setattr(threading, "excepthook", tracebacks.append)
    for written_before in range(3):
        board = TensorBoard(tmp_path, config)
        for iteration in range(written_before + 1):
            result = {"num_env_steps_sampled_lifetime": 10 * iteration + 10, "training_iteration": iteration + 1}
            result |= {"env_runners": {"num_env_steps_sampled": 10}, "time_this_iter_s": 1.0}
            if iteration < written_before:
                board.on_train_result(algorithm=None, result=result)
                continue
            with files_of_at_most(1), pytest.raises(UserError, match=f"cannot write {tmp_path}: File too large"):
                board.on_train_result(algorithm=None, result=result)
    assert not tracebacks
    assert threading.excepthook == tracebacks.append


@pytest.fixture
def tensorboard(run_dir):
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run_dir), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        told = (re.search(r"http://[\w.:]+", line) for line in process.stderr)
        yield next(address.group() for address in told if address)
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_the_pages_are_rendered_in_a_browser(tensorboard, tmp_path):
    page = Page(CHROMIUM, tmp_path / "profile")
    try:
        page.open(f"{tensorboard}/#custom_scalars")
        page.text_with(*LAYOUT["World"], *LAYOUT["Policy"], "World/reward/accuracy", "Policy/op_share/GERMINATE")
        page.open(f"{tensorboard}/#hparams")
        page.text_with("learner/lr", "env/task", *RESULTS.values())
        page.open(f"{tensorboard}/#histograms")
        page.text_with("Policy/op", "Policy/blueprint")
        page.open(f"{tensorboard}/#images")
        page.text_with("Replay/held_out_episode")
        page.open(f"{tensorboard}/#text")
        page.text_with("critic_baseline")
        page.screenshot(tmp_path / "text.png")
        assert (tmp_path / "text.png").read_bytes().startswith(b"\x89PNG")
    finally:
        page.close()
