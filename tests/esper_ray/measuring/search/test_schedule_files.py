"""A search's files hold what was written, and what is no such file is refused."""

import json

import numpy as np
import pytest

from envs.vocabulary import Blueprint
from esper_ray.config import EnvConfig
from esper_ray.errors import UserError
from esper_ray.measuring.search.halving import Rung, SearchResult, SearchSettings
from esper_ray.measuring.search.schedule_files import read_schedule, write_schedule
from policies.schedule import BY_HAND, GrowthPlan, GrowthSchedule

ENV = EnvConfig(task="digits_mixed", max_epochs=60)


def test_the_written_schedule_is_the_one_that_is_read(tmp_path):
    schedule = GrowthSchedule((GrowthPlan(2, Blueprint.NORM, 3),))
    rung = Rung("final", (BY_HAND, schedule), (1, 2), np.array([[0.1, 0.2], [0.4, 0.2]]))
    asked = SearchSettings(host_epochs=240)
    write_schedule(tmp_path / "best.json", ENV, asked, SearchResult((rung,), 240))
    assert read_schedule(tmp_path / "best.json") == schedule
    found = json.loads((tmp_path / "best.json").read_text())
    assert found["validation_score"] == pytest.approx(0.3)
    assert (found["episodes"], found["schedules_tried"]) == (4, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("[", "is not JSON"),
        ("[1]", 'no list "schedule"'),
        ('{"schedule": [{"slot": "a"}]}', "slot must be a whole number"),
        ('{"schedule": [3]}', "holds no schedule"),
    ],
)
def test_a_file_without_a_schedule_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "file.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_schedule(path)
