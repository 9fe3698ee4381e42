"""What a tuning's file may say; what can't be done is refused before anything starts."""

import re

import pytest

from esper_ray.errors import UserError
from esper_ray.experiments.tuning.tuning_file import Tuning
from tests.esper_ray.experiments.tuning.small import SMALL, written
from tests.places import ROOT

SHIPPED = sorted((ROOT / "studies" / "tuning").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_repositorys_tunings_can_be_read(path):
    assert Tuning.read(path).samples >= 16


def test_the_example_of_the_page_can_be_read_and_the_page_has_every_key(tmp_path):
    page = (ROOT / "docs" / "tuning.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "example.yaml").write_text(example)
    Tuning.read(tmp_path / "example.yaml")
    for key in Tuning.model_fields:
        assert f"`{key}`" in page


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"colour": "red"}, "colour"),
        ({"preset": "quick"}, "default, quickstart, thorough, debug"),
        ({"space": {}}, "space"),
        ({"space": {"learning_rat": {"choice": [1]}}}, "unknown setting 'learning_rat'"),
        ({"space": {"lr": {"normal": [0, 1]}}}, "normal"),
        ({"space": {"lr": {}}}, "lr: .*one of choice, uniform, loguniform, integers"),
        ({"space": {"lr": {"choice": [1.0], "uniform": [0, 1]}}}, "lr: .*one of"),
        ({"space": {"lr": {"uniform": [1, 0]}}}, "first number must be below"),
        ({"space": {"lr": {"loguniform": [0, 1]}}}, "above 0"),
        ({"space": {"num_epochs": {"integers": [1.5, 3]}}}, "num_epochs"),
        ({"space": {"clip": {"uniform": [-2, -1]}}}, "clip must be a number above 0"),
        ({"space": {"minibatches": {"choice": [3]}}}, "minibatches = 3 cannot be made"),
        ({"space": {"iterations": {"choice": [4]}}, "settings": {}, "grace_iterations": 1}, "iterations cannot be"),
        ({"space": {"parameter_rent": {"uniform": [0, 1]}}}, "parameter_rent cannot be drawn"),
        ({"space": {"play_temperature": {"uniform": [0.1, 1]}}}, "play_temperature cannot be drawn"),
        ({"space": {"task": {"choice": ["digit"]}}}, "task cannot be drawn"),  # no trial's config is made for this
        ({"space": {"max_epochs": {"choice": [6]}}}, "max_epochs: .*not both"),
        ({"settings": {"seed": 3}}, "training seed"),
        ({"settings": {"storage": "s3://somewhere"}}, "leave storage out"),
        ({"grace_iterations": 5}, "a trial has only 4"),
        ({"reduction_factor": 1}, "reduction_factor"),
        ({"samples": 0}, "samples"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_starts(changes, says, tmp_path):
    file = written(tmp_path, **changes)
    with pytest.raises(UserError, match=says) as refusal:
        Tuning.read(file)
    assert str(refusal.value).startswith(str(file))
    assert "\n" not in str(refusal.value)


def test_draws_lie_in_their_ranges_and_stay_when_samples_are_added(tmp_path):
    space = {
        "lr": {"loguniform": ["1e-4", "1e-2"]},  # as PyYAML reads numbers without a point
        "entropy_coeff": {"uniform": [0.0, 0.5]},
        "num_epochs": {"integers": [1, 3]},
        "critic_baseline": {"choice": ["state", "op"]},
    }
    few = Tuning.read(written(tmp_path, space=space, samples=5))
    many = Tuning.read(written(tmp_path, space=space, samples=200))
    assert many.draws[:5] == few.draws
    columns = {name: [drawn[name] for drawn in many.draws] for name in space}
    assert set(columns["num_epochs"]) == {1, 2, 3}
    assert set(columns["critic_baseline"]) == {"state", "op"}
    assert all(0 <= value <= 0.5 for value in columns["entropy_coeff"])
    assert all(1e-4 <= value <= 1e-2 for value in columns["lr"])
    assert 70 <= sum(value < 1e-3 for value in columns["lr"]) <= 130  # half of the orders of magnitude
    assert [config.learner.num_epochs for config in many.configs] == columns["num_epochs"]
    other = Tuning.read(written(tmp_path, space=space, samples=5, seed=1))
    assert other.draws != few.draws
    assert {config.run.seed for config in other.configs} == {1}
    assert SMALL["settings"]["max_epochs"] == other.base.env.max_epochs
