"""A checkpoint is what was saved, or it is refused with the field that does not fit."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from benchmarks.full_disk import files_of_at_most
from envs.slots import SlotConfig
from policies.distribution import ActionTables
from policies.strategic.checkpoint import MANIFEST_FILE, Checkpoint, Manifest
from policies.strategic.graph import GraphBatch
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.network_config import SMALL
from policies.strategic.normaliser import MetricNormaliser, metric_sums, metric_values
from policies.strategic.registries import Capacities, Registries
from policies.strategic.seen import Seen
from policies.strategic.taught import Taught
from tests.policies.strategic.graphs import random_arrays, tensors_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    registries = Registries(tmp_path_factory.mktemp("names") / "registries.json")
    normaliser = MetricNormaliser()
    normaliser.observe(metric_sums(metric_values({"loss": 3.0})))
    return Checkpoint(
        config=SMALL,
        weights=GraphPolicyNetwork(SMALL).state_dict(),
        registries=registries.register({"layer_type": ["conv2d", "linear"], "blueprint": ["norm"]}),
        normaliser=normaliser,
        seen=Seen.all_but({"inputs": ("layer.depth",), "ops": ("GROW_INTERNAL",), "blueprints": ("ATTENTION",)}),
        tasks=("digits_mixed", "text"),
        min_epochs=15,
        max_epochs=60,
        commit="0123456789abcdef0123456789abcdef01234567",
        return_scale=0.25,
        taught=Taught(risk=True),
        play_temperature=0.4,
    )


@pytest.fixture
def saved(checkpoint, tmp_path):
    checkpoint.save(tmp_path / "policy")
    return tmp_path / "policy"


def test_it_comes_back_as_it_was(checkpoint, saved):
    loaded = Checkpoint.load(saved)
    assert replace(loaded, weights={}, normaliser=None) == replace(checkpoint, weights={}, normaliser=None)
    assert torch.equal(loaded.normaliser.moments, checkpoint.normaliser.moments)
    graphs, tables = GraphBatch.from_arrays(random_arrays()), ActionTables(SlotConfig.for_row(3).heads)
    before, after = (tensors_of(of.network()(graphs, tables)) for of in (checkpoint, loaded))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_whoever_numbers_names_otherwise_reads_the_same(checkpoint, tmp_path):
    names = {"layer_type": ["embedding", "linear", "conv2d"], "blueprint": ["attention", "norm"]}
    others = Registries(tmp_path / "registries.json").register(names)
    theirs, ours = checkpoint.network(), checkpoint.network()
    ours.load_state_dict(checkpoint.weights_for(others))
    for family, of in names.items():
        for table in (name for name, _ in theirs.named_parameters() if name.endswith(f"embeddings.{family}.weight")):
            for name in of:
                before = theirs.get_parameter(table)[checkpoint.registries[family].index(name)]
                assert torch.equal(ours.get_parameter(table)[others[family].index(name)], before)
    fallback = "encoders.activation.fallback.weight"
    assert torch.equal(ours.get_parameter(fallback)[3], theirs.get_parameter(fallback)[1]), "of conv2d"
    assert torch.equal(ours.get_parameter(fallback)[1], theirs.get_parameter(fallback)[0]), "nobody knew embedding"


def test_it_is_the_same_file_each_time(checkpoint, saved, tmp_path):
    Checkpoint.load(saved).save(tmp_path / "again")
    for path in saved.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_new_one_takes_the_place_of_the_old_one(checkpoint, saved):
    other = replace(checkpoint, weights=GraphPolicyNetwork(SMALL).state_dict())
    (saved / "mine.safetensors").write_bytes(b"mine")
    other.save(saved)
    assert len(list(saved.iterdir())) == 3, "the old weights are gone, and nothing else"
    assert (saved / "mine.safetensors").is_file()
    loaded = Checkpoint.load(saved)
    assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in other.weights.items())


def test_a_disk_that_is_full_leaves_the_old_one(checkpoint, saved):
    other = replace(checkpoint, weights=GraphPolicyNetwork(SMALL).state_dict())
    with files_of_at_most(2**14), pytest.raises(OSError, match="File too large"):
        other.save(saved)
    loaded = Checkpoint.load(saved)
    assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in checkpoint.weights.items())


# ------------------------------------------------------------------ what was tampered with
def _first_shape(shapes):
    name = next(iter(shapes))
    return {**shapes, name: [1, *shapes[name]]}


TAMPERED = {
    "architecture_version": (lambda old: "gnn_v2", "architecture_version: it is 'gnn_v2', this program has 'gnn_v1'"),
    "network": (lambda old: {**old, "sage_width": 0}, "network: sage_width must be"),
    "schema_inputs": (lambda old: {**old, "layer": old["layer"][::-1]}, "schema_inputs: .* reads other inputs"),
    "shapes": (_first_shape, "shapes: they are not those of a network of these widths"),
    "weights_sha256": (lambda old: "0" * 64, "weights_sha256: there is no file 0000000000000000.safetensors"),
    "capacities": (lambda old: {**old, "layer_type": 65}, "capacities: .* room for 65 names, the network for 64"),
    "registries": (lambda old: {**old, "layer_type": ["conv2d", "conv2d"]}, "registries: layer_type has a name twice"),
    "registry_digests": (lambda old: {**old, "blueprint": "0" * 64}, "registry_digests: the names of blueprint"),
    "normaliser": (lambda old: {**old, "loss": {"mean": 0.0, "variance": -1.0}}, "normaliser: loss must have"),
    "min_epochs": (lambda old: 0, "min_epochs: Input should be greater than or equal to 1"),
    "max_epochs": (lambda old: 0, "max_epochs: Input should be greater than or equal to 1"),
    "tasks": (lambda old: [], "tasks: Tuple should have at least 1 item"),
    "commit": (lambda old: "yesterday", "commit: String should match pattern"),
    "never_seen": (lambda old: {**old, "ops": ["JUMP"]}, "never_seen: there is nothing called 'JUMP' among the ops"),
    "taught": (lambda old: {**old, "risk": "yes"}, r"taught\.risk: Input should be a valid boolean"),
    "play_temperature": (lambda old: 0.0, "play_temperature: Input should be greater than or equal to 0.01"),
    "return_scale": (lambda old: 0.0, "return_scale: Input should be greater than 0"),
    "manifest_sha256": (lambda old: "0" * 64, "manifest_sha256: the manifest was edited"),
}


def test_every_field_is_tampered_with_below():
    assert set(TAMPERED) == set(Manifest.model_fields)


def tamper(directory, **fields):
    path = directory / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("field", TAMPERED)
def test_a_field_that_does_not_fit_is_refused_by_its_name(saved, field):
    other, reason = TAMPERED[field]
    manifest = json.loads((saved / MANIFEST_FILE).read_text())
    tamper(saved, **{field: other(manifest[field])})
    with pytest.raises(ValueError, match=reason) as refused:
        Checkpoint.load(saved)
    assert str(refused.value).startswith(f"{saved} holds no policy that can be used: {field}")


@pytest.mark.parametrize("field", TAMPERED)
def test_a_field_that_is_missing_is_refused_by_its_name(saved, field):
    path = saved / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    del manifest[field]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"holds no policy that can be used: {field}"):
        Checkpoint.load(saved)


def test_names_of_another_training_are_refused(saved):
    """They would fit, and mean something else."""
    manifest = json.loads((saved / MANIFEST_FILE).read_text())
    tamper(saved, registries={**manifest["registries"], "layer_type": ["linear", "conv2d"]})
    with pytest.raises(ValueError, match="registry_digests: the names of layer_type are not those"):
        Checkpoint.load(saved)


TAUGHT_MORE = {"taught": {"risk": True, "methods": True, "windows": True}}
FITTING = [{"tasks": ["cifar"]}, {"commit": None}, {"normaliser": "other"}, TAUGHT_MORE, {"more": 1}]


@pytest.mark.parametrize("fields", FITTING)
def test_an_edit_that_would_fit_is_refused_too(saved, fields):
    if fields.get("normaliser") == "other":
        fields = {"normaliser": {name: {"mean": 0.0, "variance": 1.0} for name in ("loss", "gradient_norm")}}
        fields["normaliser"] |= {name: {"mean": 0.0, "variance": 1.0} for name in ("samples_per_s", "hook_latency_ms")}
    tamper(saved, **fields)
    with pytest.raises(ValueError, match=r"manifest_sha256: the manifest was edited|more: Extra inputs"):
        Checkpoint.load(saved)


def test_damaged_weights_are_refused(saved):
    (weights,) = saved.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="has other content, was it damaged"):
        Checkpoint.load(saved)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{" * 10_000])
def test_what_is_no_manifest_is_refused(saved, content):
    (saved / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(ValueError, match="holds no policy that can be used"):
        Checkpoint.load(saved)


def test_weights_of_another_type_are_refused(checkpoint, tmp_path):
    halves = {name: tensor.half() for name, tensor in checkpoint.weights.items()}
    replace(checkpoint, weights=halves).save(tmp_path)
    with pytest.raises(ValueError, match=r"is torch.float16 instead of torch.float32"):
        Checkpoint.load(tmp_path)


def test_the_weights_are_plain_safetensors(checkpoint, saved):
    (weights,) = saved.glob("*.safetensors")
    state = safetensors.torch.load(weights.read_bytes())
    assert all(torch.equal(state[name], tensor) for name, tensor in checkpoint.weights.items())


def test_capacities_are_those_of_the_registries(checkpoint, tmp_path):
    registries = Registries(tmp_path / "few.json", Capacities(layer_type=3)).register({"layer_type": ["conv2d"]})
    replace(checkpoint, registries=registries).save(tmp_path / "policy")
    assert Checkpoint.load(tmp_path / "policy").registries == registries
