"""Statistics and held-out episodes."""

import io

import numpy as np
import pytest
from rich.console import Console

from envs.tasks import make_task
from esper_ray.config import EnvConfig
from esper_ray.measuring.episodes import held_out_seeds, run_episodes
from esper_ray.measuring.evaluation_report import LABELS, comparison_table, evaluation_table
from policies.heuristic import PlateauHeuristic
from policies.learned import LearnedPolicy, build_network
from policies.network_config import NetworkConfig
from policies.scripted import FixedSchedule, NeverGrow, RandomValid
from policies.weights import Weights, load_weights, save_weights

ENV = EnvConfig(task="digits_impaired", max_epochs=16)
SLOTS = make_task(ENV.task).slots


def test_held_out_seeds_are_reproducible_and_differ_from_each_other():
    assert held_out_seeds(3, 64) == held_out_seeds(3, 64)
    assert len(set(held_out_seeds(3, 64) + held_out_seeds(4, 64))) == 128


@pytest.mark.parametrize(
    "policy",
    [
        NeverGrow(SLOTS),
        RandomValid(SLOTS),
        PlateauHeuristic(SLOTS, ENV.max_epochs),
        FixedSchedule(SLOTS, ENV.max_epochs),
        LearnedPolicy(SLOTS, build_network(SLOTS, NetworkConfig(32, 32, 16))),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_every_policy_is_admitted_by_the_masks_and_repeats_itself(policy):
    seeds = held_out_seeds(0, 3)
    successes = []
    first = run_episodes(policy, ENV, seeds, lambda world: successes.append(world.watch.steps.last_success.copy()))
    again = run_episodes(policy, ENV, seeds)
    assert np.all(successes)
    np.testing.assert_array_equal(first.score, again.score)
    assert np.isfinite(first.score).all()
    assert (first.parameters >= 1090).all()


def test_never_grow_grows_nothing():
    results = run_episodes(NeverGrow(SLOTS), ENV, held_out_seeds(0, 2))
    assert (results.parameters == 1090).all()
    assert sum(counts.sum() for counts in results.fates.values()) == 0
    np.testing.assert_allclose(results.score, results.accuracy / 100)


def test_the_fixed_schedule_fossilises_one_depthwise_seed_in_every_host():
    env = EnvConfig(task="digits_impaired", max_epochs=24)
    results = run_episodes(FixedSchedule(SLOTS, env.max_epochs), env, held_out_seeds(0, 2))
    assert (results.fates["fossilized"] == 1).all()
    assert (results.parameters == 1090 + 160).all()


def test_weights_of_other_sizes_are_refused_in_one_clear_line(tmp_path):
    path = tmp_path / "policy.safetensors"
    policy, wider = (LearnedPolicy(SLOTS, build_network(SLOTS, NetworkConfig(w, w, 16))) for w in (32, 64))
    save_weights(policy.state_dict(), path)
    load_weights(policy, Weights.read(path))
    with pytest.raises(ValueError, match="does not hold a policy for 3 slots"):
        load_weights(wider, Weights.read(path))
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="does not hold a policy"):
        load_weights(policy, Weights.read(path))


def test_the_tables_of_everybody_fit_into_80_columns_uncut():
    wide = {"mean": -0.123, "iqm": -0.123, "ci95": [-0.234, -0.123], "mean_ci95": [-0.234, -0.123]}
    fates = {"fossilized": 2.5, "pruned": 11.25, "unfinished": 10.75, "rolled_back": 0.0}
    result = {"score": wide, "accuracy": {"iqm": 98.7}, "parameters": {"iqm": 15698.0}, "fates": fates}
    report = {"task": "digits_impaired", "episodes": 64, "max_epochs": 60}
    report |= {"hosts_by_variant": [14, 0, 13, 12, 13, 12], "variants": ["a kind of host"] * 6}
    result |= {"training_flops": {"iqm": 123.4e9}, "score_by_variant": [-0.111] * 6}
    report["policies"] = dict.fromkeys(LABELS, result)
    report["differences"] = {"learned": dict.fromkeys(LABELS, wide)}
    console = Console(width=80, file=io.StringIO())
    console.print(evaluation_table(report))
    console.print(comparison_table(report))
    text = console.file.getvalue()
    assert "…" not in text
    assert text.count("-0.123 [-0.234, -0.123]  98.7 15,698 123.40   2.50  11.25 10.75") == len(LABELS)
    assert text.count("-0.123 [-0.234, -0.123] -0.123 -0.111 -0.111 -0.111 -0.111 -0.111") == len(LABELS) - 1
    assert "2: 13 × a kind of host" in text
    assert "1: 0" not in text
