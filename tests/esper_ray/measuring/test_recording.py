"""What is recorded of an episode is what was read, done, and followed."""

import dataclasses

import numpy as np
import pytest
import torch

from envs.action_masks import refusals
from envs.alpha import ramp_value
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.observation import ObservationLayout
from envs.vocabulary import TEMPO_EPOCHS, LifecycleOp, SeedStage
from esper_ray.config import EnvConfig
from esper_ray.errors import UserError
from esper_ray.measuring.controls import make_policy
from esper_ray.measuring.episodes import held_out_seeds, run_episodes, search_seeds
from esper_ray.measuring.recording import RecordedWorld, record_episodes, recorded_seeds
from policies.strategic.labels import LOSS_AFTER, LOSS_BEFORE, observations_in, risk_labels, score_gained
from policies.strategic.schema import RISK_CLASSES

torch.set_num_threads(1)
ENV = EnvConfig(task="digits_mixed", max_epochs=12)
SEEDS = recorded_seeds(0, 3)


@pytest.fixture(scope="module")
def episodes():
    return record_episodes(make_policy("random_valid", ENV), ENV, SEEDS)


def test_the_recorded_actions_lead_to_what_is_recorded(episodes):
    """A fresh world that executes them shows every observation, reward and loss again, each in its own row."""
    world = MorphogenesisVectorEnv(len(SEEDS), graph=True, **ENV.keywords())
    observations, info = world.reset(seed=SEEDS)
    began = info["score"]
    assert [len(episode) for episode in episodes] == [ENV.longest] * len(SEEDS)
    grown = 0
    for step in range(ENV.longest):
        recorded = {name: np.stack([e.steps[name][step].numpy() for e in episodes]) for name in episodes[0].steps}
        for name, leaf in observations.items():
            assert np.array_equal(recorded[f"observation.{name}"], leaf)
        assert not any(
            of.any() for of in refusals(recorded["actions"], world.watch.mask, world.task.slots.heads).values()
        )
        grown += (recorded["actions"][:, 0] == LifecycleOp.GERMINATE).sum()
        assert np.array_equal(recorded["loss_before"], world.progress.loss[:, -1].astype(np.float32))
        observations, rewards, _, _, info = world.step(recorded["actions"])
        assert np.array_equal(recorded["rewards"], rewards.astype(np.float32))
        assert np.array_equal(recorded["loss_after"], world.progress.loss[:, -1].astype(np.float32))
    assert grown
    gained = [float(score_gained(episode.steps["rewards"])[0]) for episode in episodes]
    assert gained == pytest.approx(info["committed_score"] - began, abs=1e-5)


def test_a_recorded_policy_plays_as_it_does_unrecorded(episodes):
    results = run_episodes(make_policy("random_valid", ENV), ENV, SEEDS, split="validation")
    world = MorphogenesisVectorEnv(len(SEEDS), **ENV.keywords())
    began = world.reset(seed=SEEDS)[1]["score"]
    gained = [float(score_gained(episode.steps["rewards"])[0]) for episode in episodes]
    assert gained == pytest.approx(results.score - began, abs=1e-5)


def test_a_host_that_the_governor_stops_ends_there_and_was_in_danger():
    episodes = record_episodes(make_policy("heuristic", ENV), ENV, recorded_seeds(1, 4), learning_rate_factor=1e12)
    stopped = [episode for episode in episodes if episode.steps["stopped"].any()]
    assert stopped
    for episode in stopped:
        assert episode.steps["stopped"].tolist() == [False] * (len(episode) - 1) + [True]
        labels = risk_labels(episode.steps[LOSS_BEFORE], episode.steps[LOSS_AFTER], episode.steps["stopped"])
        assert (labels[-5:] == RISK_CLASSES.index("CRITICAL")).all()
        assert episode.steps["rewards"][-1] < -0.5  # the governor's fine
    assert min(len(episode) for episode in stopped) < ENV.longest


def test_drawn_ramps_are_recorded_where_blending_begins_and_are_what_seeds_are_blended_in_by():
    env = dataclasses.replace(ENV, max_epochs=16)
    reader, layout = RecordedWorld.of(env, ramps_drawn=True).reader(), ObservationLayout(env.make_task().slots)
    episodes = record_episodes(make_policy("fixed_schedule", env), env, recorded_seeds(0, 6), ramps_drawn=True)
    shapes = set()
    for episode in episodes:
        read = observations_in(episode.steps)
        assert (reader.measured(read).allowed_methods == 1).all()
        obs = reader.flat(read)["obs"].numpy()
        actions, ramp = (episode.steps[name].numpy() for name in ("actions", "ramp"))
        chosen = np.arange(len(obs)), actions[:, 1]
        begins = (actions[:, 0] == LifecycleOp.ADVANCE) & (layout.stages(obs)[chosen] == SeedStage.TRAINING)
        assert np.array_equal(np.isfinite(ramp), np.repeat(begins[:, None], 3, axis=1))
        for at in np.flatnonzero(begins[:-1]):
            slot = actions[at, 1]
            alpha, target = layout.slot(obs[at + 1], "alpha")[slot], layout.slot(obs[at], "alpha_target")[slot]
            possible = target * ramp_value(*ramp[at], 1 / np.array(TEMPO_EPOCHS))
            assert np.isclose(possible, alpha, atol=1e-6).any()
            shapes.add(int(ramp[at, 0]))
    assert len(shapes) > 1


def test_recorded_hosts_are_nobody_elses():
    mine = {*recorded_seeds(0, 200), *recorded_seeds(1, 200)}
    assert len(mine) == 400
    assert not mine & {*held_out_seeds(0, 200), *search_seeds(0, 200), *held_out_seeds(1, 200)}


def test_a_world_is_the_same_text_however_it_was_written():
    given = ({}, {"lr_spread": "2", "depth": "1"}, {"depth": "1", "lr_spread": "2"})
    worlds = [EnvConfig(task="digits_mixed", task_args=args) for args in given]
    texts = [RecordedWorld.of(env).text for env in worlds]
    assert texts[0] != texts[1] == texts[2]
    assert all(RecordedWorld.read(text).text == text for text in texts)
    slots = worlds[0].make_task().slots
    assert RecordedWorld.read(texts[0]).reader().slots == slots


@pytest.mark.parametrize("text", ["", "{}", '{"task": 1, "task_args": {}, "ramps_drawn": false}', "[1]"])
def test_another_text_is_no_world(text):
    with pytest.raises(UserError, match="the recorded world"):
        RecordedWorld.read(text)


def test_a_world_of_a_task_that_is_not_here_is_named():
    with pytest.raises(UserError, match="unknown task 'gone'"):
        RecordedWorld.read('{"task": "gone", "task_args": {}, "ramps_drawn": false}').reader()
