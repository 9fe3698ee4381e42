"""A run may learn from parts of episodes, with the recurrent state carried from one to the next."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from rich.console import Console

from esper_ray.cli import parse
from esper_ray.config import LearnerConfig, TrainConfig, load_config, with_settings
from esper_ray.errors import UserError
from esper_ray.keeping.run_directory import POLICY_FILE, RunDirectory
from esper_ray.learning.ppo import _fragments
from esper_ray.learning.training import train
from esper_ray.presets import DEBUG
from policies.rl_module import HEAD_LOG_PROBS
from tests.esper_ray.learning.test_learner import MODULE, Parts, config_of
from tests.esper_ray.learning.test_resume import scalars

torch.set_num_threads(1)
CONFIG = with_settings(
    replace(DEBUG, run=replace(DEBUG.run, seed=3, replay_interval=99, keep_checkpoints=9)),
    {"max_epochs": 8, "num_epochs": 2},
)


def trained(path, **settings):
    config = with_settings(CONFIG, settings)
    run = RunDirectory.open(path) if path.exists() else RunDirectory.create(path, config)
    train(run, config, Console(quiet=True))
    return run


def weights(run, iteration=2):
    return (run.checkpoints / f"iteration-{iteration:06d}" / POLICY_FILE).read_bytes()


@pytest.mark.parametrize(
    ("length", "most", "parts"), [(150, None, [150]), (150, 50, [50, 50, 50]), (60, 50, [50, 10]), (12, 50, [12])]
)
def test_a_rollout_is_learnt_from_in_parts_that_make_it_up(length, most, parts):
    assert _fragments(length, most) == parts


def test_a_fragment_begins_with_the_state_that_the_acting_policy_had_and_its_log_probabilities_are_replayed():
    parts = Parts(config_of(fragment=4))
    parts.perturb()
    left = None
    for _ in range(3):
        episodes = parts.runner.sample()
        batch = parts.train_batch(episodes)[MODULE]
        for name in ("h", "c"):
            begun = batch[Columns.STATE_IN][name]
            before = torch.zeros_like(begun) if left is None else torch.stack([state[name] for state in left])
            assert torch.equal(begun, before)
        left = [
            {name: torch.as_tensor(np.array(values[-1])) for name, values in states.items()}
            for states in (episode.get_extra_model_outputs(Columns.STATE_OUT) for episode in episodes)
        ]
        assert all(state["h"].abs().max() > 0 for state in left)
        with torch.no_grad():
            output = parts.learner.module.forward_train({MODULE: batch})[MODULE]["forward_result"]
        real = batch[Columns.LOSS_MASK]
        replayed = output.distribution.log_prob(batch[Columns.ACTIONS].long())
        torch.testing.assert_close(replayed[real], batch[HEAD_LOG_PROBS][real], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whole") / "run")


def test_an_iteration_plays_whole_episodes_and_updates_after_every_fragment(whole, tmp_path):
    run = trained(tmp_path / "run", fragment_epochs=3)
    assert load_config(run.config_path).learner.fragment_epochs == 3
    found, usual = scalars(run.path), scalars(whole.path)
    assert found["World/episode_epochs"] == usual["World/episode_epochs"] == [(32, 8.0), (64, 8.0)]
    parts = (points for tag, points in found.items() if tag.startswith("World/reward/"))
    returns = np.sum([[value for _, value in points] for points in parts], axis=0)
    # The return is the score's change: no step is counted twice where an episode is cut.
    start = np.array([value for _, value in found["World/score"]]) - returns
    assert ((start > -0.01) & (start < 0.3)).all()
    assert max(value for _, value in found["Optimiser/replay_error"]) < 1e-4
    assert weights(run) != weights(whole)


def test_fragments_as_long_as_an_episode_are_whole_episodes(whole, tmp_path):
    assert weights(trained(tmp_path / "run", fragment_epochs=8)) == weights(whole)


def test_a_run_that_is_resumed_repeats_one_that_was_not_stopped(tmp_path):
    straight = trained(tmp_path / "straight", fragment_epochs=3)
    trained(tmp_path / "stopped", fragment_epochs=3, iterations=1)
    assert weights(trained(tmp_path / "stopped", fragment_epochs=3)) == weights(straight)


def test_the_command_line_takes_it_and_impala_does_not():
    assert parse(["train", "--fragment-epochs", "50"]).config.learner.fragment_epochs == 50
    assert TrainConfig().learner.fragment_epochs is None
    with pytest.raises(UserError, match="fragment_epochs is for the algorithm ppo, got 50: leave it out"):
        with_settings(CONFIG, {"algorithm": "impala", "fragment_epochs": 50})
    with pytest.raises(UserError, match="fragment_epochs must be"):
        LearnerConfig(fragment_epochs=0)
