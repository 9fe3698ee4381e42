"""Schedules that a search may try."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.tasks import make_task
from esper_ray.measuring.search.space import ScheduleSpace

SPACE = ScheduleSpace.of(make_task("digits_mixed"), max_epochs=60)


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1))
def test_drawn_and_varied_schedules_stay_within_what_the_task_offers(seed):
    rng = np.random.default_rng(seed)
    schedules = [SPACE.drawn(rng) for _ in range(4)]
    for _ in range(20):
        schedules.append(SPACE.varied(schedules[-8:], rng))
    for schedule in schedules:
        for plan in schedule.plans:
            assert plan.slot in range(3)
            assert plan.blueprint in SPACE.blueprints
            assert 0 <= plan.epoch <= 48
            assert 0 <= plan.training_epochs <= 20
    assert len(set(schedules)) > 5
