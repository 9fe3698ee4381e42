"""A run may draw how long its episodes are, anew for every iteration."""

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from esper_ray.cli import parse
from esper_ray.config import TrainConfig, load_config, with_settings
from esper_ray.errors import UserError
from esper_ray.keeping.run_directory import POLICY_FILE, RunDirectory
from esper_ray.learning.training import train
from esper_ray.measuring.trained import Trained, World
from esper_ray.presets import DEBUG
from tests.esper_ray.learning.test_resume import scalars

torch.set_num_threads(1)

HOSTS = 2
CONFIG = with_settings(
    replace(DEBUG, run=replace(DEBUG.run, hosts_per_runner=HOSTS, seed=3, replay_interval=99, keep_checkpoints=9)),
    {"max_epochs": "4..9"},
)


def trained(path, iterations, **settings):
    """A run, begun or gone on with."""
    config = with_settings(CONFIG, {"iterations": iterations, **settings})
    run = RunDirectory.open(path) if path.exists() else RunDirectory.create(path, config)
    train(run, config, Console(quiet=True))
    return run


def weights(run, iteration):
    return (run.checkpoints / f"iteration-{iteration:06d}" / POLICY_FILE).read_bytes()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("drawn") / "run", 4)


# ---------------------------------------------------------------------- what is drawn
@given(
    least=st.integers(1, 10**6),
    more=st.integers(0, 10**6),
    seed=st.integers(0, 2**20 - 1),
    iteration=st.integers(0, 10**9),
)
def test_a_horizon_is_in_the_interval_and_depends_on_seed_and_iteration_alone(least, more, seed, iteration):
    most = min(least + more, 10**6)
    config = with_settings(TrainConfig(), {"max_epochs": f"{least}..{most}", "seed": seed})
    drawn = config.env_in(iteration).max_epochs
    assert least <= drawn <= most
    later = with_settings(config, {"hosts_per_runner": 8, "num_env_runners": 4, "iterations": 10**9})
    assert later.env_in(iteration).max_epochs == drawn
    thirds = config.env.thirds
    assert [epochs for third in thirds for epochs in (third[0], third[-1])] == sorted(
        epochs for third in thirds for epochs in (third[0], third[-1])
    )
    assert sum(map(len, thirds)) == most - least + 1
    assert config.env.keywords()["max_epochs"] == config.env.longest == most


def test_all_horizons_are_as_likely():
    config = with_settings(TrainConfig(), {"max_epochs": "3..6"})
    counts = Counter(config.env_in(iteration).max_epochs for iteration in range(2000))
    assert sorted(counts) == [3, 4, 5, 6]
    assert all(abs(count - 500) < 100 for count in counts.values())  # five standard deviations
    assert config.host_epochs(2000) == 64 * sum(epochs * count for epochs, count in counts.items())


def test_one_number_stays_one():
    for given_ in (7, "7"):
        config = with_settings(TrainConfig(), {"max_epochs": given_})
        assert json.loads(config.to_json())["env"]["max_epochs"] == 7
        assert {config.env_in(iteration).max_epochs for iteration in range(50)} == {7}
    assert parse(["train", "--max-epochs", "7"]).config.env.max_epochs == 7
    assert parse(["train", "--max-epochs", "15..150"]).config.env.horizons == range(15, 151)


@pytest.mark.parametrize(
    "wrong", ["30..15", "0..5", "1..2000000", "5..", "..5", "5...9", "5..9..11", "1.5..3", "many", "-1", "1e3"]
)
def test_what_is_no_interval_is_refused(wrong):
    says = f"max_epochs must be a whole number .*, or an interval of them such as 15..150, got '?{wrong}'?"
    with pytest.raises(UserError, match=says):
        parse(["train", "--max-epochs", wrong])
    with pytest.raises(UserError, match="max_epochs must be"):
        with_settings(TrainConfig(), {"max_epochs": wrong})


def test_only_ppo_draws():
    with pytest.raises(UserError, match=r"max_epochs 15\.\.30 is for the algorithm ppo"):
        with_settings(TrainConfig(), {"max_epochs": "15..30", "algorithm": "impala"})


# ---------------------------------------------------------------------- training
def test_every_host_of_an_iteration_is_trained_for_the_epochs_that_were_drawn(run):
    assert load_config(run.config_path).env.max_epochs == "4..9"
    curves = scalars(run.path)
    drawn = [CONFIG.env_in(iteration).max_epochs for iteration in range(4)]
    assert len({*drawn}) > 1
    for tag in ("World/horizon", "World/episode_epochs"):
        assert [value for _, value in curves[tag]] == drawn
    assert [step for step, _ in curves["World/score"]] == [HOSTS * sum(drawn[: done + 1]) for done in range(4)]
    by_length = {tag: points for tag, points in curves.items() if tag.startswith("World/score_by_horizon/")}
    assert {*by_length} <= {f"World/score_by_horizon/{third}" for third in ("4..5", "6..7", "8..9")}
    assert sorted(point for points in by_length.values() for point in points) == curves["World/score"]


def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(run, tmp_path):
    trained(tmp_path / "resumed", 2)
    resumed = trained(tmp_path / "resumed", 4)
    assert scalars(resumed.path) == scalars(run.path)
    assert weights(resumed, 4) == weights(run, 4)


def test_an_iteration_is_that_of_a_run_whose_episodes_all_have_this_length(run, tmp_path):
    drawn = CONFIG.env_in(0).max_epochs
    assert drawn < CONFIG.env.longest
    assert weights(trained(tmp_path / "plain", 1, max_epochs=drawn), 1) == weights(run, 1)


# ---------------------------------------------------------------------- the best checkpoint
def test_long_episodes_make_no_checkpoint_the_best(tmp_path):
    run = RunDirectory.create(tmp_path / "run", CONFIG)

    def save(iteration, score, kind):
        kinds = dict.fromkeys(("short", "long"), math.nan) | {kind: score}
        return run.save(iteration, score, lambda path: (path / "weights").write_text("w"), kinds=kinds)

    assert math.isnan(save(1, 0.9, "long").average)
    assert save(2, 0.1, "short").average == 0.5
    for iteration in range(3, 9):
        save(iteration, 0.3, "short")
    assert run.index()["best"].iteration == 8  # better at short ones, though all score less than the first did
    assert save(9, 0.8, "long").average < run.index()["best"].average
    assert run.index()["best"].iteration == 8


def test_an_index_of_before_there_were_kinds_goes_on(tmp_path):
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    run.save(1, 0.4, lambda path: (path / "weights").write_text("w"))
    file = run.checkpoints / "index.json"
    index = json.loads(file.read_text())
    for entry in index.values():
        del entry["averages"]
    file.write_text(json.dumps(index))
    assert run.save(2, 0.8, lambda path: (path / "weights").write_text("w"), kinds={"60": 0.8}).average == 0.5


# ---------------------------------------------------------------------- afterwards
def test_a_policy_plays_the_longest_unless_told_otherwise_and_its_card_says_what_it_was_trained_for(run, tmp_path):
    quiet = Console(quiet=True)
    parse(["export", str(run.path), str(tmp_path / "out")]).run(quiet)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["env"]["max_epochs"] == "4..9"
    assert card["latest"]["max_epochs"] == CONFIG.env_in(3).max_epochs
    for place in (run.path, tmp_path / "out"):
        assert Trained.open(place, "latest").env.max_epochs == 9
        assert Trained.open(place, "latest", World(max_epochs=5)).env.max_epochs == 5
    parse(["replay", str(run.path), "--max-epochs", "4"]).run(quiet)
    assert (run.path / "replay-learned-0-4-epochs.png").is_file()
    few = ["--episodes", "2", "--workers", "1", "--policies", "learned", "never_grow", "--max-epochs", "5"]
    command = [sys.executable, "-m", "esper_ray", "evaluate", str(run.path), *few]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads((run.path / "evaluation-5-epochs.json").read_text())["max_epochs"] == 5
