"""Runners may take turns in several tasks, each of which has its own scale of returns and its own score."""

import json
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from rich.console import Console
from safetensors.torch import load_file

from envs.observation import ObservationLayout
from esper_ray.cli import parse
from esper_ray.cluster import connected
from esper_ray.config import EnvConfig, TrainConfig, load_config, with_settings
from esper_ray.errors import UserError
from esper_ray.keeping.run_directory import POLICY_FILE, RunDirectory
from esper_ray.learning.ppo_learner import EsperPPOLearner
from esper_ray.learning.training import _played_in, build, train, trained_iterations
from esper_ray.measuring.trained import Trained, World
from esper_ray.presets import DEBUG
from policies.learned import build_network
from policies.network import RecurrentPolicyNetwork
from policies.return_scale import WORLD
from policies.rl_module import HEAD_LOG_PROBS
from tests.esper_ray.learning.test_resume import scalars

torch.set_num_threads(1)

TASKS = ("digits_impaired", "digits")
HOSTS, EPOCHS = 2, 5
CONFIG = with_settings(
    replace(DEBUG, run=replace(DEBUG.run, hosts_per_runner=HOSTS, iterations=4, replay_interval=99)),
    {"max_epochs": EPOCHS, "tasks": "digits_impaired,digits"},
)
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run of four iterations, and after each: the task that was played, and the scales' moments ``[3, K]``."""
    run = RunDirectory.create(tmp_path_factory.mktemp("turns") / "run", CONFIG)
    played, moments, envs = [], [], []
    with connected(CONFIG.run, None, QUIET):
        algorithm = build(run, CONFIG, QUIET)
        for _ in trained_iterations(algorithm, run, CONFIG, QUIET):
            runner = algorithm.env_runner_group.local_env_runner
            played.append(runner.env.unwrapped.task.name)
            envs.append(weakref.ref(runner.env.unwrapped))
            assert sum(env() is not None for env in envs) == 1  # hundreds of former ones would fill the memory
            weights = algorithm.learner_group.get_weights()["default_policy"]
            moments.append(np.array(weights["network.return_scale.moments"]))
        algorithm.stop()
    return run, played, moments


def test_a_runner_takes_turns_and_a_tasks_returns_change_its_scale_alone(told):
    _, played, moments = told
    assert played == [*TASKS, *TASKS]  # runner 0: world 0 + iteration
    assert moments[0][0].tolist() == [HOSTS * EPOCHS, 0]
    for iteration, before, after in zip((1, 2, 3), moments, moments[1:], strict=False):
        changed = TASKS.index(played[iteration])
        assert not np.array_equal(before[:, changed], after[:, changed])
        assert np.array_equal(before[:, 1 - changed], after[:, 1 - changed])


def test_runners_share_the_worlds_out():
    config = with_settings(CONFIG, {"tasks": ["digits", "text", "tabular"]})
    for iteration in range(7):
        configs = _played_in(config, iteration).env_configs
        played = [configs[runner % len(configs)]["task"] for runner in range(5)]
        assert played == [config.env.tasks[(runner + iteration) % 3] for runner in range(5)]


def test_scores_are_told_by_task(told):
    run, played, _ = told
    curves = scalars(run.path)
    for task in TASKS:
        mine = [point for point, name in zip(curves["World/score"], played, strict=True) if name == task]
        assert curves[f"World/score_by_task/{task}"] == mine
        assert len(curves[f"Critic/return_scale/{task}"]) == 4
    averages = run.index()["latest"].averages
    assert [*averages] == [f"{task} {EPOCHS}..{EPOCHS}" for task in TASKS]
    assert run.index()["latest"].average == pytest.approx(sum(averages.values()) / 2)


def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(told, tmp_path):
    path, first = tmp_path / "run", with_settings(CONFIG, {"iterations": 2})
    train(RunDirectory.create(path, first), first, QUIET)
    train(RunDirectory.open(path), CONFIG, QUIET)
    assert scalars(path) == scalars(told[0].path)
    policies = [RunDirectory(place).checkpoint("latest")[1] / POLICY_FILE for place in (path, told[0].path)]
    assert policies[0].read_bytes() == policies[1].read_bytes()


def test_a_policy_of_several_tasks_plays_the_first_unless_told_otherwise(told, tmp_path):
    run, _, moments = told
    assert load_config(run.config_path).env.tasks == TASKS
    parse(["export", str(run.path), str(tmp_path / "out")]).run(QUIET)
    assert json.loads((tmp_path / "out" / "card.json").read_text())["env"]["tasks"] == [*TASKS]
    for place in (run.path, tmp_path / "out"):
        trained = Trained.open(place, "latest")
        assert (trained.env.task, trained.env.tasks, trained.tasks) == (TASKS[0], (), TASKS)
        assert Trained.open(place, "latest", World("digits")).env == EnvConfig(task="digits", max_epochs=EPOCHS)
    scale = load_file(tmp_path / "out" / POLICY_FILE)["return_scale.moments"]
    assert scale.tolist() == moments[-1][:, 0].tolist()


def test_values_and_targets_are_in_the_units_of_their_task():
    slots = CONFIG.env.make_task().slots
    alone = build_network(slots, CONFIG.network)
    network = RecurrentPolicyNetwork(slots.heads, alone.encoder, CONFIG.network, num_worlds=2)
    network.return_scale.moments.copy_(torch.tensor([[10.0, 10.0], [0.0, 0.0], [40.0, 4000.0]]))
    obs = {
        "obs": torch.rand(1, 2, ObservationLayout(slots).size),
        "blueprint_indices": torch.zeros(1, 2, slots.num_slots, dtype=torch.int64),
        WORLD: torch.tensor([[[0], [1]]]),
    }
    output = network(obs, network.initial_hidden(1))
    factors = torch.tensor([[2.0, 20.0]])
    torch.testing.assert_close(output.value, output.scaled_value * factors)
    op = torch.ones(1, 2, dtype=torch.int64)
    torch.testing.assert_close(output.q_value(op), output.scaled_q_value(op) * factors)
    columns = (Columns.ACTIONS, HEAD_LOG_PROBS, Postprocessing.ADVANTAGES, Columns.LOSS_MASK)
    batch = {name: torch.ones(1, 2) for name in columns} | {Postprocessing.VALUE_TARGETS: factors, Columns.OBS: obs}
    minibatch = EsperPPOLearner.minibatch(SimpleNamespace(settings=CONFIG.learner), network, batch, output)
    torch.testing.assert_close(minibatch.scaled_returns, torch.ones(1, 2))


# ---------------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tasks": "digits,digits_scale"}, "cannot act in tasks 'digits' and 'digits_scale': they have the slots r0c0, "
         "r0c1, r0c2 without internal levels, and the slots r0c0, r0c1, r0c2, r0c3, r0c4 with internal levels"),
        ({"tasks": "digits,digits"}, "must differ from each other"),
        ({"tasks": "digits,nothing"}, "unknown task 'nothing'"),
        ({"tasks": ""}, "unknown task ''"),
        ({"tasks": "digits,"}, "unknown task ''"),
        ({"tasks": "digits,text", "task": "text"}, "task must be left out where tasks are digits, text, got 'text'"),
        ({"tasks": "digits_mixed,digits", "task_args": {"variants": "wide_first"}}, "'digits' takes no argument"),
        ({"tasks": "digits,text", "algorithm": "impala"}, "for the algorithm ppo"),
    ],
)  # fmt: skip
def test_tasks_that_do_not_go_together_are_refused(settings, says):
    with pytest.raises(UserError, match=says) as refusal:
        with_settings(TrainConfig(), settings)
    assert "\n" not in str(refusal.value)


def test_a_task_takes_the_place_of_several_and_several_of_one():
    config = with_settings(TrainConfig(), {"task": "text"})
    several = with_settings(config, {"tasks": ["tabular", "digits"]})
    assert (several.env.task, several.env.tasks) == ("tabular", ("tabular", "digits"))
    assert [world.task for world in several.env.worlds] == ["tabular", "digits"]
    for task in ("digits", "tabular", "digits_impaired"):
        one = with_settings(several, {"task": task})
        assert (one.env.task, one.env.tasks) == (task, ())
    assert with_settings(several, {"tasks": "text"}).env == EnvConfig(task="text")
    assert parse(["train", "--tasks", "digits,text"]).config.env.tasks == ("digits", "text")
    assert with_settings(several, {"lr": 0.1}).env == several.env
