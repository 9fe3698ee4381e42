"""One run of a graph network in worlds of different hosts and slots: learnt, stopped, handed on, played elsewhere."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from rich.console import Console

from envs.action_masks import split_mask
from envs.graph.layout import GraphLayout
from envs.live.errors import LiveError
from envs.live.places import IMAGE, SEQUENCE
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.slots import SlotConfig
from envs.tasks import make_task
from esper_ray.cli import parse
from esper_ray.config import TrainConfig, with_settings
from esper_ray.controller.proposing import load_proposer
from esper_ray.errors import UserError
from esper_ray.keeping.export import CARD_FILE, load_export, read_export, write_export
from esper_ray.keeping.run_directory import POLICY_FILE, RunDirectory
from esper_ray.learning.training import _played_in, train
from esper_ray.learning.worlds import OneOfSeveral, make_env
from esper_ray.live.policies import find_policy
from esper_ray.measuring.controls import make_policy
from esper_ray.measuring.episodes import run_episodes
from esper_ray.measuring.trained import Trained, World
from esper_ray.presets import DEBUG
from policies.player import Player
from policies.return_scale import WORLD
from policies.strategic.inference import StrategicPolicy
from tests.esper_ray.learning.test_resume import scalars
from tests.policies.strategic.states import state

torch.set_num_threads(1)

HOSTS, EPOCHS = 2, 4
TASKS = ("tabular", "digits_scale")
CONFIG = with_settings(
    replace(DEBUG, run=replace(DEBUG.run, num_env_runners=2, hosts_per_runner=HOSTS, iterations=3, replay_interval=3)),
    {"max_epochs": EPOCHS, "tasks": list(TASKS), "network.kind": "graph"},
)
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three iterations of two runners, one in each world; they change places every time."""
    path = tmp_path_factory.mktemp("graphs") / "run"
    run = RunDirectory.create(path, CONFIG)
    train(run, CONFIG, QUIET)
    return run


@pytest.fixture(scope="module")
def export(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "out"
    write_export(run, "latest", path)
    return path


def test_what_was_played_is_what_is_learnt_from(run):
    curves = scalars(run.path)
    assert [value for _, value in curves["Alarm/replay"]] == [0.0] * 3
    assert max(value for _, value in curves["Optimiser/replay_error"]) < 1e-4
    assert all(len(curves[f"Critic/return_scale/{task}"]) == 3 for task in TASKS)
    assert [len(curves[f"World/score_by_task/{task}"]) for task in TASKS] == [3, 3]


def test_impala_learns_from_graphs(tmp_path):
    config = with_settings(CONFIG, {"tasks": [], "task": "tabular", "algorithm": "impala", "minibatches": 1})
    run = RunDirectory.create(tmp_path / "run", config)
    train(run, config, QUIET)
    curves = scalars(run.path)
    assert len(curves["World/score"]) == 3
    assert all(np.isfinite(value) for _, value in curves["Optimiser/gradient_norm/all"])
    first, last = (curves["Critic/return_scale"][at][1] for at in (0, -1))
    assert first != last, "returns were learnt from"


def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(run, tmp_path):
    path, first = tmp_path / "run", with_settings(CONFIG, {"iterations": 2})
    train(RunDirectory.create(path, first), first, QUIET)
    train(RunDirectory.open(path), CONFIG, QUIET)
    policies = [RunDirectory(place).checkpoint("latest")[1] / POLICY_FILE for place in (path, run.path)]
    assert policies[0].read_bytes() == policies[1].read_bytes()
    curves, expected = scalars(path), scalars(run.path)
    assert {tag: curves[tag] for tag in expected} == expected


def test_the_same_seed_gives_the_same_bits(tmp_path):
    config = with_settings(CONFIG, {"tasks": [], "task": "tabular", "iterations": 1, "replay_interval": 1})
    bits = []
    for name in "ab":
        torch.manual_seed(len(bits))  # whatever a process has drawn before
        run = RunDirectory.create(tmp_path / name, config)
        train(run, config, QUIET)
        bits.append((run.checkpoint("latest")[1] / POLICY_FILE).read_bytes())
    assert bits[0] == bits[1]


def test_a_run_is_drawn_and_compared_as_any_is(run, tmp_path):
    replay = ["replay", str(run.path), "--max-epochs", "3", "--task", "text"]
    parse([*replay, "--output", str(tmp_path / "replay.png")]).run(QUIET)
    assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")
    other = shutil.copytree(run.path, tmp_path / "other")
    parse(["evaluate", str(other), "--episodes", "2", "--policies", "learned", "never_grow"]).run(QUIET)
    parse(["compare", str(run.path), str(other), "--output", str(tmp_path / "out")]).run(QUIET)
    assert f"2 of tabular, {EPOCHS} epochs" in (tmp_path / "out" / "comparison.md").read_text()


def test_an_export_plays_any_task_as_its_run_does(run, export):
    card, _ = load_export(export)
    assert card.network.kind == "graph"
    assert json.loads((export / CARD_FILE).read_text())["names"]["layer_type"] == [
        *("linear", "layernorm", "conv2d", "batchnorm2d"),
    ]
    for task in (*TASKS, "text"):
        actions = []
        for place in (run.path, export):
            trained = Trained.open(place, "latest", World(task))
            policy = make_policy("learned", trained.env, trained)
            env = MorphogenesisVectorEnv(2, graph=policy.reads_graphs, **trained.env.keywords())
            observation, _ = env.reset(seed=0)
            player = Player(policy, 2, seed=1)
            actions.append([player.act(observation)])
            for _ in range(2):
                observation, *_, info = env.step(actions[-1][-1])
                assert "refused" not in info
                actions[-1].append(player.act(observation))
        np.testing.assert_array_equal(*actions)
    results = run_episodes(policy, trained.env, [3, 4])
    assert np.isfinite(results.score).all()


def test_an_export_grows_models_and_is_played_at_its_own_temperature(export):
    """In somebody's loop as under a controller."""
    with pytest.raises(LiveError, match="was trained on hosts of topology"):
        find_policy(str(export), SEQUENCE, 2, EPOCHS, force=False)
    decider = find_policy(str(export), IMAGE, 2, EPOCHS, force=True)
    temperature = read_export(export)[0].network.play_temperature
    assert decider.checkpoint.play_temperature == temperature != 1.0
    packet = state()
    reading = StrategicPolicy(decider.checkpoint).open_run(packet.run_id).read(packet)
    thought = load_proposer(str(export))[0].think(packet, None, torch.Generator().manual_seed(0), greedy=False)
    assert tuple(thought.said["op_probs"].values()) == tuple(reading.result.distribution.op_log_probs[0].exp().tolist())


@pytest.mark.parametrize(("task", "others"), [("tabular", 5), ("digits_scale", 5), ("digits", 3)])
def test_worlds_are_brought_to_one_size(task, others):
    """Nothing that a world has is lost, and nothing that it lacks is admitted."""
    slots = SlotConfig.for_row(others, internal_levels=others == 5)
    place = OneOfSeveral(1, 3, slots, graph=700)
    env = make_env({"num_envs": 2, "task": task, "max_epochs": 4, "graph": True, WORLD: place})
    plain = MorphogenesisVectorEnv(2, task=task, max_epochs=4, graph=True)
    obs, _ = env.reset(seed=0)
    own, _ = plain.reset(seed=0)
    assert env.single_action_space == spaces.MultiDiscrete([head.size for head in slots.heads])
    for _ in range(3):
        assert obs in env.observation_space
        assert (obs[WORLD] == 1).all()
        size = GraphLayout.of(make_task(task)).size
        np.testing.assert_array_equal(obs["graph"][:, :size], own["graph"])
        assert not obs["graph"][:, size:].any()
        wide = split_mask(obs["action_mask"], slots.heads)
        for name, view in split_mask(own["action_mask"], plain.task.slots.heads).items():
            inside = (slice(None), *(slice(end) for end in view.shape[1:]))
            np.testing.assert_array_equal(wide[name][inside], view)
            assert wide[name].sum() == view.sum()
        actions = np.zeros((2, 8), np.int64)
        actions[:, :3] = [1, 0, 4]
        (obs, *_), (own, *_) = env.step(actions), plain.step(actions)


# ---------------------------------------------------------------------- settings
def test_the_world_is_observed_as_graphs_where_the_network_reads_them():
    for kind in ("flat", "graph"):
        config = with_settings(DEBUG, {"network.kind": kind})
        assert _played_in(config, 0).env_configs[0]["graph"] == (kind == "graph")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"network.kind": "round"}, "kind"),
        ({"kind": "graph"}, "unknown setting 'kind'"),
        ({"network.kind": "graph", "sage_width": 1}, "sage_width must be"),
        ({"tasks": ["digits", "digits_scale"]}, "--network.kind graph can"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, says):
    with pytest.raises(UserError, match=says) as refusal:
        with_settings(TrainConfig(), settings)
    assert "\n" not in str(refusal.value)


def test_a_run_cannot_go_on_with_a_network_of_another_kind(run):
    flat = with_settings(with_settings(CONFIG, {"tasks": ["tabular"]}), {"network.kind": "flat"})
    with pytest.raises(UserError, match=r"network\.kind from 'graph' to 'flat'"):
        train(run, flat, QUIET)
