"""esper-ray strategic as its user has it: record, imitate, go on, examine."""

import io
import json
import shutil

import pytest
import safetensors.torch
import torch
from rich.console import Console

from esper_ray.cli import parse
from esper_ray.config import PLAY_TEMPERATURE, with_settings
from esper_ray.errors import UserError
from esper_ray.keeping.export import write_export
from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.keeping.strategic_policy import load_strategic
from esper_ray.learning.training import train
from esper_ray.measuring.controls import make_policy
from esper_ray.measuring.trained import Trained, World
from esper_ray.presets import DEBUG
from policies.strategic.checkpoint import Checkpoint
from policies.strategic.replay_store import Replay
from policies.strategic.taught import NOTHING, Taught
from tests.esper_ray.graph_exports import make_export
from tests.esper_ray.learning.test_resume import scalars

TINY = ["--network.sage-width", 16, "--network.gat-width", 8, "--network.attention-heads", 2, "--held-out", 0.4]


def strategic(*words):
    """What a command prints."""
    out = io.StringIO()
    parse(["strategic", *map(str, words)]).run(Console(file=out, width=120))
    return out.getvalue()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "new" / "store"
    few = ["--episodes", 6, "--max-epochs", 8]
    said = strategic("collect", path, *few, "--task", "digits_mixed", "--policies", "heuristic", "random_valid")
    assert "heuristic: 6 episodes, 48 decisions, to be imitated; the governor stopped 0" in said
    assert "random_valid: 6 episodes, 48 decisions, not to be imitated" in said
    said = strategic("collect", path, *few, "--task", "tabular", "--learning-rate-factor", 10)
    assert "heuristic, learning rate × 10: 6 episodes, 48 decisions, not to be imitated" in said
    said = strategic("collect", path, *few, "--task", "tabular", "--policies", "random_valid", "--examples", "True")
    assert "random_valid: 6 episodes, 48 decisions, to be imitated" in said
    return path


@pytest.fixture(scope="module")
def taught(store, tmp_path_factory):
    path = tmp_path_factory.mktemp("taught") / "out"
    said = strategic("imitate", store, path, "--passes", 3, *TINY)
    assert "1/3  loss " in said
    assert "3/3  loss " in said
    assert "agreement" in said
    assert "CRITICAL" in said
    return path


def files(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_all_policies_play_the_same_hosts(store):
    worlds = Replay.open(store).worlds.values()
    hosts = [world.hosts[at : at + 6] for world in worlds for at in (0, 6)]
    assert len({*hosts}) == 1
    assert [world.sources[::6] for world in worlds] == [
        ("heuristic", "random_valid"),
        ("heuristic, learning rate × 10", "random_valid"),
    ]
    assert [world.exemplary[::6] for world in worlds] == [(True, False), (False, True)]


def test_what_is_taught_is_a_policy_that_says_what_it_was_taught(taught):
    report = json.loads((taught / "imitation.json").read_text())
    checkpoint = Checkpoint.load(taught / "policy")
    assert checkpoint.tasks == ("digits_mixed", "tabular")
    assert checkpoint.max_epochs == Trained.open(taught, "latest").env.longest == 8, "that of the episodes on record"
    assert checkpoint.config.sage_width == 16
    assert checkpoint.return_scale == report["return_scale"] != 1.0
    assert "GERMINATE" not in checkpoint.seen.never["ops"]
    assert "GROW_INTERNAL" in checkpoint.seen.never["ops"]
    assert "seed.allows_linear" in checkpoint.seen.never["inputs"]
    assert "linear" in checkpoint.registries["layer_type"].names
    losses = [entry["held_out"]["total"] for entry in report["passes"]]
    assert losses[report["best_pass"] - 1] == min(losses)
    assert checkpoint.taught == Taught(risk=True), "no ramp of this record was drawn"
    assert checkpoint.play_temperature == Trained.open(taught, "latest").network.play_temperature == PLAY_TEMPERATURE
    scale = checkpoint.network().scale
    assert scale.seen == checkpoint.seen
    assert scale.moments[0].max() >= 96 * 0.6, "that of the examples learnt from"


def test_a_graph_network_may_begin_with_what_was_taught(taught, tmp_path):
    widths = {"sage_width": 16, "gat_width": 8, "attention_heads": 2, "network.kind": "graph"}
    settings = {"task": "tabular", "max_epochs": 4, "iterations": 1, "lr": 1e-12, "begin_from": taught, **widths}
    config = with_settings(DEBUG, settings)
    run = RunDirectory.create(tmp_path / "run", config)
    train(run, config, Console(quiet=True))
    curves = scalars(run.path)
    assert curves["Alarm/replay"][0][1] == 0.0, "the first rollout is played by what was taught"
    after = safetensors.torch.load(run.policy("latest")[1].content)
    policy = Checkpoint.load(taught / "policy")
    numbered = ("embeddings", "fallback")
    kept = {name: of for name, of in policy.weights.items() if not any(table in name for table in numbered)}
    scale = kept.pop("scale.moments")
    for name, tensor in kept.items():
        torch.testing.assert_close(after[f"graphs.{name}"], tensor, atol=1e-6, rtol=0, msg=name)
    assert (after["graphs.scale.moments"][0] >= scale[0]).all(), "and goes on counting"
    write_export(run, "latest", tmp_path / "export")
    assert load_strategic(tmp_path / "export").taught == NOTHING, "rewards have moved what it was taught on"
    wider = with_settings(config, {"sage_width": 64})
    with pytest.raises(UserError, match="has sage_width 16, this network 64: train with the same"):
        train(RunDirectory.create(tmp_path / "wider", wider), wider, Console(quiet=True))


def test_what_was_taught_is_evaluated_as_any_policy_is(taught, tmp_path):
    taught = shutil.copytree(taught, tmp_path / "taught")  # results are written beside it
    said = io.StringIO()
    few = ["--episodes", "3", "--max-epochs", "5", "--policies", "learned", "never_grow", "--task", "digits_scale"]
    parse(["evaluate", str(taught), *few]).run(Console(file=said, width=120))
    assert "learned" in said.getvalue()
    trained = Trained.open(taught, "best", World("tabular", max_epochs=5))
    policy, checkpoint = make_policy("learned", trained.env, trained), Checkpoint.load(taught / "policy")
    assert float(policy.network.return_scale.value) == pytest.approx(checkpoint.return_scale)
    assert policy.network.graphs.scale.seen == checkpoint.seen


def test_who_goes_on_ends_with_the_same_files(store, taught, tmp_path):
    strategic("imitate", store, tmp_path / "out", "--passes", 1, *TINY)
    said = strategic("imitate", store, tmp_path / "out", "--passes", 3, *TINY)
    assert "goes on after pass 1" in said
    assert "1/3" not in said
    assert files(tmp_path / "out") == files(taught)
    strategic("imitate", store, tmp_path / "out", "--passes", 3, *TINY)
    assert files(tmp_path / "out") == files(taught)


def test_examined_on_the_hosts_held_out_in_training_it_agrees_as_it_did_there(store, taught, tmp_path):
    report = json.loads((taught / "imitation.json").read_text())
    said = strategic("evaluate", taught, store, "--held-out", 0.4, "--output", tmp_path / "new" / "found.json")
    found = json.loads((tmp_path / "new" / "found.json").read_text())["found"]
    assert list(found) == [
        "digits_mixed: heuristic",
        "digits_mixed: random_valid",
        "tabular: heuristic, learning rate × 10",
        "tabular: random_valid",
        "all",
    ]
    best = report["passes"][report["best_pass"] - 1]["agreement"]
    assert {name: found["all"][name] for name in ("agreement", "heads", "risk")} == {
        name: best[name] for name in ("agreement", "heads", "risk")
    }
    assert found["all"]["value"] == pytest.approx(best["value"], rel=1e-4)
    assert found["digits_mixed: random_valid"]["agreement"] is None
    assert "tabular: random_valid" in said
    everybody = strategic("evaluate", taught / "policy", store, "--held-out", 1)
    assert "of" in everybody


def test_what_a_run_exported_is_examined_likewise(store, tmp_path):
    output = tmp_path / "found.json"
    said = strategic("evaluate", make_export(tmp_path, "tabular"), store, "--held-out", 1, "--output", output)
    assert "digits_mixed: heuristic" in said
    assert "explained" in said
    risks = json.loads(output.read_text())["found"]["all"]["risk"].values()
    assert {risk["recall"] for risk in risks} == {None}, "nobody taught it any"


def test_ramps_that_were_drawn_are_learnt_from(tmp_path):
    few = ["--episodes", 6, "--max-epochs", 14, "--task", "digits_mixed", "--policies", "fixed_schedule"]
    strategic("collect", tmp_path / "store", *few, "--randomise-ramps")
    strategic("imitate", tmp_path / "store", tmp_path / "out", "--passes", 1, *TINY)
    (report,) = json.loads((tmp_path / "out" / "imitation.json").read_text())["passes"]
    assert report["learnt"]["ramps"] > 0
    checkpoint = Checkpoint.load(tmp_path / "out" / "policy")
    assert "seed.allows_linear" in checkpoint.seen.inputs
    assert checkpoint.taught == Taught(risk=True, methods=True, windows=True)
    said = strategic("evaluate", tmp_path / "out", tmp_path / "store", "--held-out", 1)
    assert "digits_mixed with drawn ramps: fixed_schedule" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("collect store --policies", "nobody plays: give one or more --policies"),
        ("collect store --policies foo", "unknown policy 'foo': give .*, or the directory of a run or an export"),
        ("collect store --policies best_schedule", "best_schedule plays what a search found: give --schedule"),
        ("collect store --task foo", "unknown task 'foo'"),
        ("collect store --capacity 5 --episodes 1 --max-epochs 6", "was made to hold 1000000 steps at most, not 5"),
        ("collect small --capacity 5 --episodes 1 --max-epochs 6", "6 steps do not fit into small, which holds 5"),
        ("collect store --learning-rate-factor 0", "learning_rate_factor must be"),
        ("imitate none out", "none holds no recorded episodes: make some"),
        ("imitate taught out", "taught holds no recorded episodes"),
        ("imitate store taught --passes 9 --lr 0.5 --held-out 0.4", "was begun with lr 0.001, now it is 0.5"),
        ("imitate store taught --passes 9 --held-out 0.4", "was begun with network.sage_width 16, now it is 256"),
        (
            "imitate store out --held-out 0.000001",
            "of the 12 recorded episodes that are examples none is held out",
        ),
        ("imitate store out --network.sage-width 0", "sage_width must be"),
        ("evaluate store store", "store holds no strategic policy"),
        ("evaluate taught store --held-out 0", "no recorded episode of store is of a held-out host"),
        ("evaluate taught store --held-out 2", "held_out must be"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line_and_changes_nothing(
    words, reason, store, taught, tmp_path, monkeypatch
):
    shutil.copytree(store, tmp_path / "store")
    shutil.copytree(taught, tmp_path / "taught")
    monkeypatch.chdir(tmp_path)
    before = {**files(tmp_path / "store"), **files(tmp_path / "taught")}
    with pytest.raises(UserError, match=reason) as refusal:
        strategic(*words.split())
    assert "\n" not in str(refusal.value)
    assert {**files(tmp_path / "store"), **files(tmp_path / "taught")} == before
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_is_named(store, taught, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    (tmp_path / "store" / "00000001.safetensors").write_bytes(b"")
    for words in (("imitate", tmp_path / "store", tmp_path / "out"), ("evaluate", taught, tmp_path / "store")):
        with pytest.raises(UserError, match=r"00000001.safetensors is not the shard that was written"):
            strategic(*words)
    assert not (tmp_path / "out").exists()
