"""The comparison of one schedule for all hosts with one for each, on made-up landscapes."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from benchmarks import looking_pays
from benchmarks.looking_pays import LookingPays
from envs.morphogenesis import host_variant
from envs.vocabulary import Blueprint

NAMES = ("late", "even")
TASTES = {"late": Blueprint.DEPTHWISE, "even": Blueprint.NORM}


def landscape(taste):
    """Hosts that gain 0.2 by the blueprint that they like, less its rent."""

    def play(pool, env, episodes):
        names, task = env.task_args["variants"].split(","), env.make_task()
        scores = []
        for schedule, seed in episodes:
            liked = taste[names[host_variant(task, seed)]]
            kinds = {plan.blueprint for plan in schedule.plans}
            scores.append(0.5 + 0.2 * (liked in kinds) - 0.1 * len(schedule.plans))
        yield np.array(scores)

    return play


@pytest.mark.parametrize(
    ("taste", "gained"), [(TASTES, 0.1), (dict.fromkeys(NAMES, Blueprint.NORM), 0.0)], ids=["different", "alike"]
)
def test_what_looking_gains_is_the_own_best_less_the_best_for_all(monkeypatch, tmp_path, taste, gained):
    for module in (looking_pays,):
        monkeypatch.setattr(module, "play", landscape(taste))
    page = tmp_path / "page.md"
    asked = LookingPays(NAMES, 3, 40, 2, 3, output=page)
    asked.run(Console(file=io.StringIO()))
    text = page.read_text()
    nothing, single, own, gain = (float(value) for value in re.findall(r"[+-]?\d\.\d{3}", text.split("**all**")[1])[:4])
    assert nothing == pytest.approx(0.5)
    assert (own, single) == (pytest.approx(0.6), pytest.approx(0.6 - gained))
    assert gain == pytest.approx(gained)
    assert f"--output {page}`" in text
