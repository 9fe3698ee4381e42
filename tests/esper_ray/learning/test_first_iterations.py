"""A run may begin in another draw of its world's hosts."""

import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from esper_ray.cluster import connected
from esper_ray.config import TrainConfig, load_config, with_settings
from esper_ray.errors import UserError
from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.learning.training import build, trained_iterations
from esper_ray.presets import DEBUG

torch.set_num_threads(1)

CONFIG = with_settings(
    replace(DEBUG, run=replace(DEBUG.run, hosts_per_runner=2), env=replace(DEBUG.env, max_epochs=4)),
    {
        "task": "digits_mixed",
        "task_args": {"variants": "first_healthy,narrow_last"},
        "iterations": 3,
        "first_iterations": 2,
        "first_task_args": {"variants": "wide_first"},
    },
)


def test_hosts_are_those_of_the_first_arguments_until_the_first_iterations_are_done(tmp_path):
    console = Console(quiet=True)
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    assert load_config(run.config_path) == CONFIG
    kinds, scores, best = [], [], []
    with connected(CONFIG.run, None, console):
        algorithm = build(run, CONFIG, console)
        for saved in trained_iterations(algorithm, run, CONFIG, console):
            kinds.append(algorithm.env_runner_group.local_env_runner.env.unwrapped.task.variants)
            scores.append(saved.score)
            best.append(run.index()["best"].iteration)
        algorithm.stop()
    first, later = CONFIG.first_env.make_task().variants, CONFIG.env.make_task().variants
    assert kinds == [first, first, later]
    assert (len(first), len(later)) == (1, 2)
    # A score in another world says nothing about which checkpoint is the best.
    assert [math.isnan(score) for score in scores] == [True, True, False]
    assert best[-1] == 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"first_iterations": 2}, "need each other"),
        ({"first_task_args": {"variants": "wide_first"}}, "need each other"),
        ({"first_iterations": 2, "first_task_args": {"variants": "huge"}}, "huge"),
        ({"first_iterations": -1}, "first_iterations must be a whole number from 0 to .*, got -1"),
        ({"first_iterations": 2, "first_task_args": {"a": 1}, "algorithm": "impala"}, "are for the algorithm ppo"),
    ],
)
def test_what_makes_no_beginning_is_refused(settings, says):
    with pytest.raises(UserError, match=says):
        with_settings(TrainConfig(), {"task": "digits_mixed", **settings})


def test_other_arguments_of_the_task_stay():
    arguments = {"variants": "wide_first", "lr_spread": "1"}
    first = {"first_iterations": 1, "first_task_args": {"variants": "narrow_first"}}
    config = with_settings(TrainConfig(), {"task": "digits_mixed", "task_args": arguments, **first})
    assert config.first_env.task_args == {"variants": "narrow_first", "lr_spread": "1"}
