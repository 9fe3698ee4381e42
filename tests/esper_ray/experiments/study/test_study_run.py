"""A study does everything once, whatever interrupts it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

import esper_ray.learning.training
from esper_ray.cli import parse
from esper_ray.errors import UserError
from esper_ray.experiments.study.study_directory import StudyDirectory
from esper_ray.experiments.study.study_file import Study
from esper_ray.experiments.study.study_parts import StudyInterruptedError
from tests.esper_ray.experiments.study.small import SMALL, FakeTraining, elsewhere, run_with, written

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


def test_a_study_plays_policies_that_read_graphs_wherever_its_worlds_have_slots(tmp_path, monkeypatch):
    graph = {"network.kind": "graph", "sage_width": 16, "gat_width": 8, "attention_heads": 2}
    worlds = {"same": None, "scale": {"task": "digits_scale"}, "rows": {"task": "tabular"}}
    few = {"arms": {"graph": {}}, "seeds": 1, "evaluations": worlds, "settings": SMALL["settings"] | graph}
    directory = StudyDirectory(tmp_path / "out", Study.read(written(tmp_path, **few)))
    run_with(monkeypatch, FakeTraining(), directory)
    played = [json.loads(path.read_text()) for path in directory.path.glob("episodes/*/graph.seed-0.json")]
    scores = [of["measures"]["score"] for results in played for of in results["policies"].values()]
    assert [len(of) for of in scores] == [2, 2, 2]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"settings": {}}', '{"settings": {}, "seconds": 1, "policies": [1]}']
)
def test_damaged_episodes_are_refused_in_one_line_and_kept(tmp_path, monkeypatch, content):
    directory = StudyDirectory(tmp_path / "out", Study.read(written(tmp_path)))
    with pytest.raises(StudyInterruptedError):
        run_with(monkeypatch, FakeTraining(1), directory)
    episodes = directory.path / "episodes" / "same" / "never_grow.json"
    episodes.write_text(content)
    with pytest.raises(UserError, match=r"never_grow\.json is (damaged, remove it|not JSON)") as refused:
        run_with(monkeypatch, FakeTraining(), directory)
    assert "\n" not in str(refused.value)
    assert episodes.read_text() == content


def test_results_of_other_settings_are_not_reused(tmp_path, monkeypatch):
    def run(training=None, **changes):
        file = written(tmp_path, **({"arms": {"learned": {}}, "seeds": 1, "evaluations": {}} | changes))
        run_with(monkeypatch, training or FakeTraining(), StudyDirectory(tmp_path / "out", Study.read(file)))
        files = [json.loads(path.read_text()) for path in tmp_path.glob("out/episodes/*/*.json")]
        return {len(results["measures"]["score"]) for file in files for results in file["policies"].values()}

    assert run() == {2}
    assert run(episodes=3) == {3}
    learned = tmp_path / "out" / "episodes" / "digits_impaired" / "learned.seed-0.json"
    before = learned.stat().st_mtime_ns
    assert run(episodes=3) == {3}
    assert learned.stat().st_mtime_ns == before
    colder = SMALL["settings"] | {"play_temperature": 0.1}
    training = FakeTraining()
    run(episodes=3, settings=colder, training=training)
    assert not training.iterations
    assert learned.stat().st_mtime_ns > before
    before = learned.stat().st_mtime_ns
    assert run(episodes=3, settings=colder) == {3}
    assert learned.stat().st_mtime_ns == before
    shutil.rmtree(tmp_path / "out" / "runs")
    run(episodes=3)  # the fake's new weights are drawn anew
    assert learned.stat().st_mtime_ns > before
    with pytest.raises(UserError, match="other settings"):
        run(settings=SMALL["settings"] | {"lr": 0.1})


def test_a_study_plays_what_another_one_beside_it_has_trained(tmp_path, monkeypatch):
    controls = {"controls": ["best_schedule"], "search_epochs": 180}
    trainer = written(tmp_path, arms={"learned": {}}, seeds=1, evaluations={}, **controls)
    file, out = elsewhere(tmp_path, controls=["training_schedule"]), tmp_path / "out"
    command = parse(["study", str(file), "--output", str(out / "elsewhere"), "--workers", "0"])
    with pytest.raises(UserError) as refusal:
        command.run(Console(quiet=True))
    assert "lacks learned, seed 0; the best schedule" in str(refusal.value)
    assert str(refusal.value).endswith(f"first run esper-ray study {trainer} --output {out / 'small'}")
    run_with(monkeypatch, FakeTraining(), StudyDirectory(out / "small", Study.read(trainer)))
    training = FakeTraining()
    monkeypatch.setattr(esper_ray.learning.training, "train", training)
    command.run(Console(quiet=True))
    assert not training.iterations
    schedule = json.loads((out / "small" / "schedules" / "digits_impaired.json").read_text())["schedule"]
    played = out.glob("elsewhere/episodes/*/training_schedule.json")
    assert [json.loads(path.read_text())["settings"]["schedule"] for path in played] == [schedule, schedule]
    page = (out / "elsewhere" / "study.md").read_text()
    assert "| policy | same | wide |" in page
    assert page.count("best schedule of the training world") == 4  # scores, differences, each world
    with pytest.raises(UserError, match="is for the study 'small'"):
        StudyDirectory(out / "small", Study.read(file))


def test_a_search_with_other_settings_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    changes = {"arms": {"learned": {}}, "seeds": 1, "evaluations": {}, "controls": ["best_schedule"]}

    def run(training, **more):
        run_with(
            monkeypatch, training, StudyDirectory(tmp_path / "out", Study.read(written(tmp_path, **changes, **more)))
        )

    with pytest.raises(StudyInterruptedError):
        run(FakeTraining(stop_after=0), search_epochs=180)
    training = FakeTraining()
    with pytest.raises(UserError, match="another host_epochs"):
        run(training, search_epochs=240)
    assert not training.iterations


def test_a_killed_study_goes_on_at_the_next_command(tmp_path):
    file = written(tmp_path, arms={"learned": {}}, seeds=1, evaluations={}, controls=["never_grow"])
    command = [sys.executable, "-m", "esper_ray", "study", str(file), "--output", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--workers", "0"], stdout=subprocess.DEVNULL, env=environment)
    index = tmp_path / "out" / "runs" / "learned" / "seed-0" / "checkpoints" / "index.json"
    while process.poll() is None and not (index.is_file() and "latest" in index.read_text()):
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
