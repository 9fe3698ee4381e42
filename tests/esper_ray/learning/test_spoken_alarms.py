"""What training tells the person who watches when an update did not do what it is for."""

import io
from dataclasses import replace

import numpy as np
import torch
from rich.console import Console

from esper_ray.cluster import connected
from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.learning.training import build, trained_iterations
from esper_ray.presets import DEBUG
from policies.rl_module import HEAD_LOG_PROBS

torch.set_num_threads(1)

CONFIG = replace(DEBUG, run=replace(DEBUG.run, hosts_per_runner=2, iterations=2), env=replace(DEBUG.env, max_epochs=4))


def test_a_rollout_that_the_update_does_not_reproduce_is_said_in_words_after_its_iteration(tmp_path):
    console = Console(file=io.StringIO(), width=1000)
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    printed = []
    with connected(CONFIG.run, None, console):
        algorithm = build(run, CONFIG, console)
        runner = algorithm.env_runner_group.local_env_runner
        play = runner.sample

        def other_log_probabilities(**asked):
            episodes = play(**asked)
            for episode in episodes:
                stored = episode.extra_model_outputs[HEAD_LOG_PROBS]
                for step in range(len(episode)):
                    stored[step] = np.full_like(stored[step], -9.0)
            return episodes

        for _ in trained_iterations(algorithm, run, CONFIG, console):
            printed.append(console.file.getvalue())
            runner.sample = other_log_probabilities
        algorithm.stop()
    healthy, broken = printed[0], printed[1].removeprefix(printed[0])
    assert "1/2 score" in healthy
    assert len(healthy.splitlines()) == 1
    _, replay, no_step = broken.splitlines()
    assert "other log-probabilities than the rollout had stored" in replay
    assert no_step.startswith("the update made no step, the policy is as it was: kl ")
