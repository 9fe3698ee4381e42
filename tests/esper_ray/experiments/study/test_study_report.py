"""The report of a study has everybody and everything."""

import json

import numpy as np
import pytest

from envs.tasks import make_task
from esper_ray.experiments.study.study_directory import StudyDirectory
from esper_ray.experiments.study.study_file import Study
from esper_ray.experiments.study.study_report import write_report
from esper_ray.measuring.evaluation import evaluate
from esper_ray.measuring.trained import Trained
from esper_ray.presets import DEBUG
from tests.esper_ray.experiments.study.small import FakeTraining, run_with, written

SLOTS = make_task(DEBUG.env.task).slots


def test_the_report_has_every_policy_with_paired_differences_and_pictures(tmp_path, monkeypatch):
    controls = ["never_grow", "static_big", "best_schedule", "learned_greedy", "static_final"]
    mixed = {"task": "digits_mixed", "task_args": {"variants": "late,even"}}
    file = written(tmp_path, evaluations={"mixed": mixed}, episodes=4, controls=controls, search_epochs=360)
    directory = StudyDirectory(tmp_path / "out", Study.read(file))
    run_with(monkeypatch, FakeTraining(), directory)
    write_report(directory)
    report = json.loads((directory.path / "study.json").read_text())
    assert report["arms"]["state"]["scores"] == [pytest.approx([0.1, 0.2])] * 2
    arms = ["factored", "state"]
    following = {f"{arm}, {which}" for arm in arms for which in ("greedy", "static final")}
    evaluation = report["evaluations"]["mixed"]
    policies, differences, hosts = (evaluation[key] for key in ("policies", "differences", "hosts_by_variant"))
    assert evaluation["name"] == "mixed"
    assert sum(hosts) == 4
    assert all(hosts), "the seed of the held-out hosts draws both kinds"
    assert list(policies)[:2] == arms
    assert set(policies) == {*arms, *following, "never_grow", "static_big", "best_schedule"}
    for arm in arms:
        assert set(differences[arm]) == set(policies) - {arm}
        for other, difference in differences[arm].items():
            for statistic, interval in (("iqm", "ci95"), ("mean", "mean_ci95")):
                lead = policies[arm]["score"][statistic] - policies[other]["score"][statistic]
                assert difference[statistic] == pytest.approx(lead)
                assert difference[interval][0] <= difference[interval][1]
    for result in policies.values():
        assert all(sum(shares) == pytest.approx(1, abs=1e-5) for shares in result["behaviour"]["ops"])
        assert result["training_flops"]["iqm"] > 0
        assert np.average(result["score_by_variant"], weights=hosts) == pytest.approx(result["score"]["mean"])
    assert sum(map(sum, policies["static_big"]["behaviour"]["fossilized"])) == SLOTS.num_slots
    page = (directory.path / "study.md").read_text()
    assert f"{hosts[0]} × {evaluation['variants'][0]}" in page
    for picture in ("learning_curves", "mixed-costs", "mixed-behaviour"):
        assert f"({picture}.png)" in page
        assert (directory.path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_a_study_of_one_training_says_what_evaluate_says_of_it(tmp_path, monkeypatch):
    controls = ["never_grow", "static_big", "static_final", "learned_greedy"]
    file = written(tmp_path, arms={"learned": {}}, seeds=1, evaluations={}, episodes=3, controls=controls)
    directory = StudyDirectory(tmp_path / "out", Study.read(file))
    run_with(monkeypatch, FakeTraining(), directory)
    (found,) = write_report(directory)["evaluations"].values()
    (training,) = directory.trainings
    trained = Trained.open(training.path, "latest")
    done, output = [], tmp_path / "evaluation.json"
    alone = evaluate(trained, 3, 0, 1, done.append, names=("learned", *controls), schedule=None, output=output)
    assert json.loads(output.read_text()) == alone
    assert sorted(done) == sorted(alone["policies"])
    names = {"static_final": "learned, static final", "learned_greedy": "learned, greedy"}
    for policy, result in alone["policies"].items():
        inside = found["policies"][names.get(policy, policy)]
        for part in ("score", "accuracy", "parameters", "training_flops"):
            assert result[part]["iqm"] == inside[part]["iqm"]
        assert (result["fates"], result["score_by_variant"]) == (inside["fates"], inside["score_by_variant"])
    shared = {"task", "task_args", "max_epochs", "episodes", "seed", "split", "variants", "hosts_by_variant"}
    assert {key: alone[key] for key in shared} == {key: found[key] for key in shared}
