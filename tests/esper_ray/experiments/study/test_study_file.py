"""What a study's file may say; what can't be done is refused before anything starts."""

import re

import pytest

from envs.tasks import make_task
from esper_ray.errors import UserError
from esper_ray.experiments.study.study_directory import StudyDirectory
from esper_ray.experiments.study.study_file import Study
from esper_ray.keeping.writing import check_writable, make_directories
from esper_ray.presets import DEBUG
from tests.esper_ray.experiments.study.small import elsewhere, written
from tests.places import ROOT

SHIPPED = sorted((ROOT / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_repositorys_studies_can_be_read(path):
    study = Study.read(path)
    assert len(study.seeds) >= 3
    assert study.episodes >= 64


def test_the_example_of_the_page_can_be_read(tmp_path):
    page = (ROOT / "docs" / "studies.md").read_text()
    example, cores = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "example.yaml").write_text(example)
    study = Study.read(tmp_path / "example.yaml")
    assert study.configs["larger"].learner.lr == 0.003
    for key in Study.model_fields:
        assert f"`{key}`" in page
    (tmp_path / "cores.yaml").write_text(cores)
    arms = Study.read(tmp_path / "cores.yaml").configs
    assert [arms[name].network.hidden_dim for name in ("lstm_512", "lstm_128")] == [512, 128]
    assert not arms["no_lstm"].network.memory
    assert arms["fragments"].learner.fragment_epochs == 50


def test_the_repository_has_studies():
    assert len(SHIPPED) >= 5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"colour": "red"}, "colour"),
        ({"preset": "quick"}, "default, quickstart, thorough, debug"),
        ({"settings": {"learning_rate": 1}}, "learning_rate"),
        ({"settings": {"max_epoch": 1}}, "did you mean 'max_epochs'"),
        ({"settings": {"max_epochs": "many"}}, "max_epochs"),
        ({"evaluations": {"short": {"max_epochs": "5..9"}}}, r"'short': max_epochs must be one number, got 5\.\.9"),
        ({"arms": {"state": {"critic_baseline": "none"}}}, "arm 'state': .*critic_baseline"),
        ({"arms": {"never_grow": {}}}, "rename never_grow"),
        ({"arms": {"a/b": {}}}, "arms"),
        ({"arms": {"a" * 51: {}}}, "arms"),
        ({"evaluations": {"a" * 51: {}}}, "evaluations"),
        ({"arms": {}}, "arms"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": 0}, "seeds"),
        ({"settings": {"seed": 3}}, "under seeds"),
        ({"settings": {"storage": "s3://somewhere"}}, "settings: .* which they would share; leave storage out"),
        ({"arms": {"one": {"storage": "s3://somewhere"}}}, "arm 'one': .* leave storage out"),
        ({"evaluations": {"there": {"task": "digit"}}}, "evaluation 'there': unknown task 'digit'"),
        ({"evaluations": {"there": {"lr": 0.1}}}, "evaluation 'there': .* others belong to an arm"),
        ({"evaluations": {"there": {"task": "digits_scale"}}}, "cannot play evaluation 'there'"),
        ({"episodes": 1}, "episodes"),
        ({"controls": ["none"]}, "controls must be among"),
        ({"controls": ["best_schedule"], "search_epochs": 10}, "search_epochs"),
        ({"controls": ["training_schedule"]}, "training_schedule needs trained_by"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_starts(changes, says, tmp_path):
    file = written(tmp_path, **changes)
    with pytest.raises(UserError, match=says) as refusal:
        Study.read(file)
    assert str(refusal.value).startswith(str(file))
    assert "\n" not in str(refusal.value)


def test_the_longest_names_are_those_of_files_that_can_be_written(tmp_path):
    name = "a" + "\U00020000" * 49  # letters of four bytes
    seed = 2**20 - 1
    file = written(tmp_path, arms={name: None}, evaluations={name: None}, seeds=[seed])
    directory = StudyDirectory(tmp_path / "out", Study.read(file))
    (training,) = directory.trainings
    for path in (training.path / "config.json", directory.schedule_path(name), tmp_path / f"{name}.seed-{seed}.json"):
        make_directories(path.parent)
        check_writable(path)


def test_a_study_takes_what_it_trains_from_another_one(tmp_path):
    trainer = Study.read(written(tmp_path))
    study = Study.read(elsewhere(tmp_path))
    assert (study.configs, study.seeds) == (trainer.configs, trainer.seeds)
    assert study.worlds["wide"].max_epochs == 6
    assert "mixed" not in study.worlds


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trained_by": "nothing"}, "cannot read .*nothing.yaml"),
        ({"seeds": 2, "settings": {}}, "trained_by takes settings, seeds from .*small.yaml"),
        ({"trained_by": "elsewhere"}, "must name a study that trains, but .*elsewhere.yaml takes"),
        ({"controls": ["training_schedule"]}, "training_schedule needs trained_by, and there the control"),
    ],
)
def test_what_cannot_be_taken_from_another_study_is_refused(changes, says, tmp_path):
    written(tmp_path)
    file = elsewhere(tmp_path, **changes)
    with pytest.raises(UserError, match=says) as refusal:
        Study.read(file)
    assert str(refusal.value).startswith(f"{file}: ")


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


def test_trainings_that_draw_their_horizons_play_the_longest_unless_told_otherwise(tmp_path):
    evaluations = {"same": {}, "short": {"max_epochs": 5}}
    study = Study.read(written(tmp_path, settings={"max_epochs": "5..9"}, evaluations=evaluations))
    assert {name: world.max_epochs for name, world in study.worlds.items()} == {"same": 9, "short": 5}


def test_trainings_in_several_tasks_play_each_of_them(tmp_path):
    tasks = {"tasks": "digits,tabular"}
    study = Study.read(written(tmp_path, settings=tasks, evaluations={}))
    assert {name: (world.task, world.tasks) for name, world in study.worlds.items()} == {
        "digits": ("digits", ()),
        "tabular": ("tabular", ()),
    }
    study = Study.read(written(tmp_path, settings=tasks, evaluations={"words": {"task": "text"}}))
    assert study.worlds["words"].tasks == ()
    with pytest.raises(UserError, match="'same': give the task, one of digits, tabular, say"):
        Study.read(written(tmp_path, settings=tasks, evaluations={"same": {}}))
