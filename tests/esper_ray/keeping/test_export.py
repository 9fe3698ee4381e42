"""Exports: what comes back is what was written, and anything else is refused in one clear line."""

import dataclasses
import hashlib
import json
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from esper_ray.errors import UserError
from esper_ray.keeping.export import CARD_FILE, load_export, write_export
from esper_ray.keeping.run_directory import POLICY_FILE, RunDirectory
from esper_ray.measuring.controls import make_policy
from esper_ray.measuring.trained import Trained, World
from esper_ray.presets import DEBUG
from policies.bundle import PolicySettings
from policies.factory import build_policy
from policies.network_config import NetworkConfig
from policies.player import Player
from policies.weights import Weights, load_weights, save_weights

CONFIG = dataclasses.replace(DEBUG, network=NetworkConfig(feature_dim=8, hidden_dim=6, head_dim=4))
SLOTS = CONFIG.env.make_task().slots
SETTINGS = PolicySettings(SLOTS, CONFIG.env.max_epochs, CONFIG.network)


def trained_run(path, scores=(0.3, 0.7, 0.2)):
    """A run whose checkpoints hold different weights, and those of the best one."""
    run, saved = RunDirectory.create(path, CONFIG), {}
    for iteration, score in enumerate(scores, start=1):
        torch.manual_seed(iteration)
        saved[score] = build_policy("learned", SETTINGS)
        with torch.no_grad():
            for parameter in saved[score].network.parameters():
                parameter += 0.3 * torch.randn(parameter.shape)
        state = saved[score].state_dict()
        run.save(iteration, score, lambda directory, state=state: save_weights(state, directory / POLICY_FILE))
    return run, saved


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    path = tmp_path_factory.mktemp("exports")
    run, _ = trained_run(path / "run")
    write_export(run, "best", path / "export")
    return path / "export"


@pytest.fixture
def copy(export, tmp_path):
    return shutil.copytree(export, tmp_path / "copy")


def edit_card(path, change):
    card = json.loads((path / CARD_FILE).read_text())
    change(card)
    (path / CARD_FILE).write_text(json.dumps(card))


def replace_weights(path, write):
    """Other weights that the card vouches for."""
    write(path / POLICY_FILE)
    digest = hashlib.sha256((path / POLICY_FILE).read_bytes()).hexdigest()
    edit_card(path, lambda card: card.update(weights_sha256=digest))


def refusal(path):
    with pytest.raises(UserError) as error:
        load_export(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 800
    return str(error.value)


@pytest.mark.parametrize(("which", "score"), [("best", 0.7), ("latest", 0.2)])
def test_the_exported_policy_decides_as_the_checkpoints(which, score, tmp_path):
    run, saved = trained_run(tmp_path / "run")
    written = write_export(run, which, tmp_path / "out")
    card, policy = load_export(tmp_path / "out")
    assert card == written
    rng = np.random.default_rng(0)
    observations = {
        "obs": rng.random((5, policy.feature_dim), np.float32),
        "blueprint_indices": np.full((5, 3), -1),
        "action_mask": np.ones((5, 56), np.int8),
    }
    players = [Player(chosen, 5, seed=3) for chosen in (policy, saved[score], saved[0.3])]
    actions = [np.stack([player.act(observations) for _ in range(8)]) for player in players]
    np.testing.assert_array_equal(actions[0], actions[1])
    assert (actions[0] != actions[2]).any()


def test_the_card_says_what_the_policy_is(export):
    card = json.loads((export / CARD_FILE).read_text())
    assert set(card) == {
        *("format", "env", "slots", "network", "names", "sizes", "git_commit", "iteration", "latest", "best"),
        *("registry_digests", "weights_sha256"),
    }
    assert card["env"]["task"] == "digits_impaired"
    assert card["iteration"] == 2
    assert card["best"] == {"iteration": 2, "score": 0.7, "max_epochs": 12}
    assert card["latest"] == {"iteration": 3, "score": 0.2, "max_epochs": 12}
    assert card["sizes"]["features"] == 121
    assert card["sizes"]["heads"]["blueprint"][4] == "DEPTHWISE"
    network = build_policy("learned", SETTINGS).network
    assert card["sizes"]["parameters"] == sum(weight.numel() for weight in network.parameters())


def test_a_card_of_before_there_were_kinds_is_read(copy):
    def age(card):
        del card["names"], card["registry_digests"]
        for name in ("kind", "sage_width", "gat_width", "attention_heads"):
            del card["network"][name]

    edit_card(copy, age)
    card, _ = load_export(copy)
    assert (card.network.kind, card.names) == ("flat", {})


def test_a_score_that_was_not_measured_is_null(tmp_path):
    run, _ = trained_run(tmp_path / "run", scores=(float("nan"),))
    write_export(run, "latest", tmp_path / "out")
    assert json.loads((tmp_path / "out" / CARD_FILE).read_text())["best"]["score"] is None
    assert load_export(tmp_path / "out")[0].best.score is None


def test_the_card_does_not_say_where_this_machines_data_are(tmp_path):
    config = dataclasses.replace(CONFIG, env=dataclasses.replace(CONFIG.env, task="cifar10", data_dir=tmp_path))
    run = RunDirectory.create(tmp_path / "run", config)
    settings = dataclasses.replace(SETTINGS, slots=config.env.make_task().slots)
    state = build_policy("learned", settings).state_dict()
    run.save(1, 0.1, lambda directory: save_weights(state, directory / POLICY_FILE))
    write_export(run, "best", tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / CARD_FILE).read_text()
    found = Trained.open(tmp_path / "out", "best", World(data_dir=tmp_path / "elsewhere"))
    assert found.env.data_dir == tmp_path / "elsewhere"


def test_an_export_stands_for_its_run(export):
    found = Trained.open(export, "latest")
    assert (found.path, found.which, found.iteration) == (export, "export", 2)
    assert found.env == CONFIG.env
    _, kept = load_export(export)
    weights = make_policy("learned", found.env, found).state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in kept.state_dict().items())
    assert make_policy("heuristic", found.env).slot_config == SLOTS
    with pytest.raises(UserError, match="unknown policy 'magic'"):
        make_policy("magic", found.env, found)


def test_nothing_is_overwritten_and_nothing_is_left_of_what_fails(tmp_path):
    run, _ = trained_run(tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out exists and is not empty"):
        write_export(run, "best", out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    run.checkpoint("best")[1].joinpath(POLICY_FILE).write_bytes(b"broken")
    with pytest.raises(UserError, match="does not hold a policy"):
        write_export(run, "best", tmp_path / "other")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}


def damaged(content, place, change, inserted):
    """``content`` with one byte changed, cut off, or with bytes put in, at a relative place."""
    at = int(place * (len(content) - 1))
    if change == "flip":
        return content[:at] + bytes([content[at] ^ (inserted[0] or 1)]) + content[at + 1 :]
    if change == "cut":
        return content[:at]
    return content[:at] + inserted + content[at:]


def outcome(load, error, *arguments):
    """What a loader returns, and the message of its error; another kind of error is none of these."""
    try:
        return load(*arguments), ""
    except error as refused:
        return None, str(refused)


DAMAGE = (st.floats(0, 1), st.sampled_from(["flip", "cut", "insert"]), st.binary(min_size=1, max_size=20))


@given(*DAMAGE)
def test_any_damage_to_the_weights_is_refused(export, place, change, inserted):
    content = (export / POLICY_FILE).read_bytes()
    try:
        (export / POLICY_FILE).write_bytes(damaged(content, place, change, inserted))
        assert "SHA-256 differs" in refusal(export)
    finally:
        (export / POLICY_FILE).write_bytes(content)


@given(*DAMAGE)
def test_a_damaged_card_is_refused_or_says_the_same_about_the_policy(export, place, change, inserted):
    content = (export / CARD_FILE).read_bytes()
    before, _ = load_export(export)
    try:
        (export / CARD_FILE).write_bytes(damaged(content, place, change, inserted))
        after, message = outcome(load_export, UserError, export)
        assert "\n" not in message
        assert message or (after[0].sizes, after[0].slots) == (before.sizes, before.slots)
    finally:
        (export / CARD_FILE).write_bytes(content)


@given(*DAMAGE)
def test_damage_that_no_card_vouches_against_is_refused_or_leaves_a_policy(export, place, change, inserted):
    policy = build_policy("learned", SETTINGS)
    path = export.parent / "damaged.safetensors"
    path.write_bytes(damaged((export / POLICY_FILE).read_bytes(), place, change, inserted))
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    _, message = outcome(load_weights, ValueError, policy, Weights.read(path))
    if message:
        assert "does not hold a policy for 3 slots" in message
        assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("dump", [lambda bomb: pickle.dumps(bomb), None], ids=["pickle", "torch"])
def test_a_pickle_is_refused_and_not_run(copy, tmp_path, dump):
    bomb = Bomb(tmp_path / "ran")
    replace_weights(copy, lambda path: path.write_bytes(dump(bomb)) if dump else torch.save({"a": bomb}, path))
    assert "not a readable safetensors file" in refusal(copy)
    assert not (tmp_path / "ran").exists()


def state(**changes):
    found = {name: tensor.clone() for name, tensor in build_policy("learned", SETTINGS).state_dict().items()}
    return {name: tensor for name, tensor in (found | changes).items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lstm_norm.weight": None}, "no tensor lstm_norm.weight"),
        ({"extra": torch.zeros(2)}, "unknown tensor extra"),
        ({"lstm_norm.weight": torch.zeros(7)}, r"lstm_norm.weight is (7,) instead of (6,)"),
        ({"lstm_norm.weight": torch.zeros(6, dtype=torch.int64)}, "torch.int64 instead of torch.float32"),
    ],
)
def test_other_tensors_are_refused_by_name(copy, changes, says):
    replace_weights(copy, lambda path: save_file(state(**changes), path))
    assert says in refusal(copy)


def test_a_foreign_model_is_refused_in_a_short_line(copy):
    replace_weights(copy, lambda path: save_file({f"layer{i}.weight": torch.zeros(3) for i in range(500)}, path))
    message = refusal(copy)
    assert "and 5" in message
    assert len(message) < 500


@pytest.mark.parametrize("name", [POLICY_FILE, CARD_FILE])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    assert name in refusal(copy)
    with pytest.raises(UserError, match=name):
        Trained.open(copy, "best")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda card: card.update(colour="red"), "colour: Extra inputs are not permitted"),
        (lambda card: card["network"].update(colour="red"), "network.colour"),
        (lambda card: card["env"].update(colour="red"), "env.colour"),
        (lambda card: card["sizes"].update(colour=3), "sizes.colour"),
        (lambda card: card.pop("sizes"), "sizes: Field required"),
        (lambda card: card.pop("git_commit"), "git_commit: Field required"),
        (lambda card: card.update(iteration="many"), "iteration: Input should be a valid integer"),
        (lambda card: card["best"].update(score=float("nan")), "best.score: Input should be a finite number"),
        (lambda card: card.update(format="esper-ray policy 2"), "format: Input should be 'esper-ray policy 1'"),
        (lambda card: card["env"].update(task="chess"), "chess"),
        (lambda card: card["env"].update(task="digits_scale"), "but task 'digits_scale' has"),
        (lambda card: card["slots"].update(slot_ids=["r0c0"]), "was trained for SlotConfig"),
        (lambda card: card["slots"].update(slot_ids=[]), "slots: slot_ids must be one or more"),
        (lambda card: card["network"].update(hidden_dim=10**4), "does not fit this version: number of parameters"),
        (lambda card: card["network"].update(hidden_dim=10**9), "hidden_dim must be a whole number"),
        (lambda card: card["network"].update(hidden_dim=10**40), "hidden_dim must be a whole number"),
        (lambda card: card["network"].update(op_bias={"HOPE": 1.0}), "HOPE"),
        (
            lambda card: card["network"].update(hidden_dim=0),
            "hidden_dim must be a whole number from 1",
        ),
        (lambda card: card["sizes"].update(features=122), "number of features is 122 in its card, 121 here"),
        (
            lambda card: card["sizes"]["heads"]["blueprint"].reverse(),
            "does not fit this version: head blueprint is FLEX_ATTENTION, MLP,",
        ),
        (lambda card: card["sizes"].update(parameters=3), "number of parameters is 3 in its card"),
        (lambda card: card.update(weights_sha256="0"), "SHA-256 differs"),
    ],
)
def test_a_card_that_does_not_fit_is_refused_by_field(copy, change, says):
    edit_card(copy, change)
    assert says in refusal(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_card_is_refused(copy, content):
    (copy / CARD_FILE).write_bytes(content)
    assert re.search("is not (a card of this version|JSON|UTF-8 text): ", refusal(copy))


def test_a_card_that_says_a_key_twice_is_refused(copy):
    card = (copy / CARD_FILE).read_text()
    (copy / CARD_FILE).write_text(card.replace("{", '{"iteration": 7,', 1))
    assert "'iteration' is given twice" in refusal(copy)


def test_what_is_neither_run_nor_export_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        Trained.open(tmp_path, "best")
