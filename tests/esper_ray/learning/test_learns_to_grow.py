"""All of the learner on the real thing: a short training learns to grow what pays."""

import numpy as np
import torch
from rich.console import Console

from esper_ray.config import with_settings
from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.learning.training import train
from esper_ray.measuring.controls import make_policy
from esper_ray.measuring.episodes import held_out_seeds, run_episodes
from esper_ray.measuring.trained import Trained
from esper_ray.presets import QUICKSTART

torch.set_num_threads(1)

CONFIG = with_settings(
    QUICKSTART,
    {
        "max_epochs": 36,
        "iterations": 8,
        "num_env_runners": 0,
        "hosts_per_runner": 16,
        "replay_interval": 8,
        "feature_dim": 32,
        "hidden_dim": 32,
        "head_dim": 16,
        "lr": 3e-3,
        "lr_final": 0.3,
        # With fewer prunings in the way the first seeds are kept early, and there is something to learn from.
        "op_bias": {"PRUNE": -5.0},
    },
)
HOSTS = 16
LEAD = 0.15
"""A learner that works is ahead by 0.3; one that stands still is not ahead, and one that climbs down falls behind."""


def score(name, trained):
    """Mean committed validation score on hosts that training never saw."""
    policy = make_policy(name, trained.env, trained)
    return np.mean(run_episodes(policy, trained.env, held_out_seeds(0, HOSTS), split="validation").score)


def test_a_short_training_learns_to_grow(tmp_path):
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    train(run, CONFIG, Console(quiet=True))
    trained = Trained.open(run.path, "latest")
    never, learned = (score(name, trained) for name in ("never_grow", "learned"))
    assert learned > never + LEAD
