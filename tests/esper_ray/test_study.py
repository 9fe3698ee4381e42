"""A study does everything once, whatever interrupts it, and refuses what it can't do before it starts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

import esper_ray.training
from envs.tasks import make_task
from esper_ray.config import DEBUG
from esper_ray.errors import UserError
from esper_ray.run_directory import POLICY_FILE
from esper_ray.study import Study, StudyDirectory, StudyInterruptedError, run_study
from esper_ray.study_report import write_report
from policies.learned import LearnedPolicy, build_network
from policies.weights import save_weights

SMALL = {
    "preset": "debug",
    "settings": {"max_epochs": 6, "hosts_per_runner": 2, "iterations": 2},
    "arms": {"factored": None, "state": {"critic_baseline": "state"}},
    "seeds": 2,
    "evaluations": {"same": None, "mixed": {"task": "digits_mixed"}},
    "episodes": 2,
    "controls": ["never_grow", "fixed_schedule"],
}
SLOTS = make_task(DEBUG.env.task).slots
SHIPPED = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


def written(path, **changes):
    file = path / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL | changes))
    return file


class FakeTraining:
    """Stands in for ``train``: one checkpoint and one point of a curve per iteration, and stops when told.

    Args:
        stop_after: Iterations in all after which it stops as after Ctrl-C.
    """

    def __init__(self, stop_after=1000):
        self.stop_after, self.iterations = stop_after, []

    def __call__(self, run, config, console):
        index = run.index()
        slots = config.env.make_task().slots
        policy = LearnedPolicy(slots, build_network(slots, config.network))
        writer = SummaryWriter(str(run.path))
        for iteration in range(index["latest"].iteration + 1 if index else 1, config.run.iterations + 1):
            if len(self.iterations) == self.stop_after:
                break
            run.save(iteration, 0.1 * iteration, lambda path: save_weights(policy.state_dict(), path / POLICY_FILE))
            writer.add_scalar("World/score", 0.1 * iteration, 12 * iteration)
            self.iterations.append((run.path.parent.name, config.run.seed, iteration))
        writer.close()


def run_with(monkeypatch, training, directory):
    monkeypatch.setattr(esper_ray.training, "train", training)
    run_study(directory, workers=0, console=Console(quiet=True))


EVERYTHING = [(arm, seed, iteration) for seed in (0, 1) for arm in ("factored", "state") for iteration in (1, 2)]


@pytest.mark.parametrize("stop_after", [1, 4])
def test_an_interrupted_study_goes_on_where_it_stopped_and_does_nothing_twice(stop_after, tmp_path, monkeypatch):
    directory = StudyDirectory(tmp_path / "out", Study.read(written(tmp_path)))
    first, second, third = FakeTraining(stop_after), FakeTraining(), FakeTraining()
    with pytest.raises(StudyInterruptedError):
        run_with(monkeypatch, first, directory)
    played = {path: path.stat().st_mtime_ns for path in directory.path.glob("episodes/*/*.json")}
    assert len(played) >= 4  # the controls at least
    run_with(monkeypatch, second, directory)
    assert first.iterations + second.iterations == EVERYTHING
    assert all(path.stat().st_mtime_ns == time for path, time in played.items())
    assert len(list(directory.path.glob("episodes/*/*.json"))) == 2 * (2 + 4)
    run_with(monkeypatch, third, directory)
    assert not third.iterations


def test_the_report_has_every_policy_with_paired_differences_and_pictures(tmp_path, monkeypatch):
    controls = ["never_grow", "static_big", "best_schedule", "learned_greedy", "static_final"]
    file = written(tmp_path, evaluations={"same": None}, controls=controls, search_epochs=180)
    directory = StudyDirectory(tmp_path / "out", Study.read(file))
    run_with(monkeypatch, FakeTraining(), directory)
    write_report(directory)
    report = json.loads((directory.path / "study.json").read_text())
    assert report["arms"]["state"]["scores"] == [pytest.approx([0.1, 0.2])] * 2
    arms = ["factored", "state"]
    following = {f"{arm}, {which}" for arm in arms for which in ("greedy", "static final")}
    assert report["evaluations"]["same"]["name"] == "same"
    policies = report["evaluations"]["same"]["policies"]
    differences = report["evaluations"]["same"]["differences"]
    assert list(policies)[:2] == arms
    assert set(policies) == {*arms, *following, "never_grow", "static_big", "best_schedule"}
    for arm in arms:
        assert set(differences[arm]) == set(policies) - {arm}
        for other, difference in differences[arm].items():
            assert difference["iqm"] == pytest.approx(policies[arm]["score"]["iqm"] - policies[other]["score"]["iqm"])
            assert difference["ci95"][0] <= difference["ci95"][1]
    for result in policies.values():
        assert all(sum(shares) == pytest.approx(1, abs=1e-5) for shares in result["behaviour"]["ops"])
        assert result["training_flops"]["iqm"] > 0
    assert sum(map(sum, policies["static_big"]["behaviour"]["fossilized"])) == SLOTS.num_slots
    page = (directory.path / "study.md").read_text()
    for picture in ("learning_curves", "same-costs", "same-behaviour"):
        assert f"({picture}.png)" in page
        assert (directory.path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_results_of_other_settings_are_not_reused(tmp_path, monkeypatch):
    def run(**changes):
        file = written(tmp_path, **({"arms": {"learned": {}}, "seeds": 1, "evaluations": {}} | changes))
        run_with(monkeypatch, FakeTraining(), StudyDirectory(tmp_path / "out", Study.read(file)))
        files = [json.loads(path.read_text()) for path in tmp_path.glob("out/episodes/*/*.json")]
        return {len(results["measures"]["score"]) for file in files for results in file["policies"].values()}

    assert run() == {2}
    assert run(episodes=3) == {3}
    learned = tmp_path / "out" / "episodes" / "digits_impaired" / "learned.seed-0.json"
    before = learned.stat().st_mtime_ns
    assert run(episodes=3) == {3}
    assert learned.stat().st_mtime_ns == before
    shutil.rmtree(tmp_path / "out" / "runs")
    run(episodes=3)  # the fake's new weights are drawn anew
    assert learned.stat().st_mtime_ns > before
    with pytest.raises(UserError, match="other settings"):
        run(settings=SMALL["settings"] | {"lr": 0.1})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_repositorys_studies_can_be_read(path):
    study = Study.read(path)
    assert len(study.seeds) >= 3
    assert study.episodes >= 64


def test_the_example_of_the_page_can_be_read(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "example.yaml").write_text(example)
    study = Study.read(tmp_path / "example.yaml")
    assert study.configs["larger"].learner.lr == 0.003
    for key in Study.model_fields:
        assert f"`{key}`" in page


def test_the_repository_has_studies():
    assert len(SHIPPED) >= 5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"colour": "red"}, "colour"),
        ({"preset": "quick"}, "default, quickstart, debug"),
        ({"settings": {"learning_rate": 1}}, "learning_rate"),
        ({"settings": {"max_epoch": 1}}, "did you mean 'max_epochs'"),
        ({"settings": {"max_epochs": "many"}}, "max_epochs"),
        ({"arms": {"state": {"critic_baseline": "none"}}}, "arm 'state': .*critic_baseline"),
        ({"arms": {"never_grow": {}}}, "rename never_grow"),
        ({"arms": {"a/b": {}}}, "arms"),
        ({"arms": {}}, "arms"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": 0}, "seeds"),
        ({"settings": {"seed": 3}}, "under seeds"),
        ({"evaluations": {"there": {"task": "digit"}}}, "evaluation 'there': unknown task 'digit'"),
        ({"evaluations": {"there": {"lr": 0.1}}}, "evaluation 'there': .* others belong to an arm"),
        ({"evaluations": {"there": {"task": "digits_scale"}}}, "cannot play evaluation 'there'"),
        ({"episodes": 1}, "episodes"),
        ({"controls": ["none"]}, "controls must be among"),
        ({"controls": ["best_schedule"], "search_epochs": 10}, "search_epochs"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_starts(changes, says, tmp_path):
    file = written(tmp_path, **changes)
    with pytest.raises(UserError, match=says) as refusal:
        Study.read(file)
    assert str(refusal.value).startswith(str(file))
    assert "\n" not in str(refusal.value)


def test_an_evaluation_on_another_task_starts_without_the_arguments_of_the_first(tmp_path):
    text = tmp_path / "some.txt"
    text.write_text("to be or not to be " * 1000)
    study = Study.read(
        written(
            tmp_path,
            settings={"task": "text", "task_args": {"text_file": str(text)}},
            evaluations={"same": {}, "rows": {"task": "tabular"}},
        )
    )
    assert study.worlds["same"].task_args == {"text_file": str(text)}
    assert study.worlds["rows"].task_args == {}


def test_settings_are_those_of_the_command_line(tmp_path):
    study = Study.read(written(tmp_path))
    assert study.configs["state"].learner.critic_baseline == "state"
    assert study.configs["factored"].learner == DEBUG.learner
    assert study.worlds["mixed"].max_epochs == 6
    assert study.worlds["mixed"].make_task().slots == make_task("digits_mixed").slots


def test_a_killed_study_goes_on_at_the_next_command(tmp_path):
    file = written(tmp_path, arms={"learned": {}}, seeds=1, evaluations={}, controls=["never_grow"])
    command = [sys.executable, "-m", "esper_ray", "study", str(file), "--output", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--workers", "0"], stdout=subprocess.DEVNULL, env=environment)
    index = tmp_path / "out" / "runs" / "learned" / "seed-0" / "checkpoints" / "index.json"
    while process.poll() is None and not index.is_file():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads(index.read_text())["latest"]["iteration"] >= 1
    result = subprocess.run([*command, "--workers", "1"], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "time left" in result.stdout or "about" in result.stdout
    assert "never grow" in result.stdout
    report = json.loads((tmp_path / "out" / "study.json").read_text())
    assert report["arms"]["learned"]["epochs"] == [12.0, 24.0]
