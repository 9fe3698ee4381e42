"""A strategic policy says of a packet what its export says of the same host in the greenhouse."""

import json
import shutil

import pytest
import torch

from esper_ray.errors import UserError
from esper_ray.keeping.export import CARD_FILE, load_export
from esper_ray.keeping.strategic_policy import POLICY, load_strategic
from esper_ray.live.policies import SHIPPED
from esper_ray.measuring.controls import make_policy
from esper_ray.measuring.trained import Trained, World
from policies.strategic.checkpoint import MANIFEST_FILE
from policies.strategic.inference import StrategicPolicy
from policies.strategic.taught import NOTHING
from tests.esper_ray.graph_exports import make_export, packets
from tests.policies.strategic.test_both_ways_in import MAX_EPOCHS

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return make_export(tmp_path_factory.mktemp("graphs"), "digits", "tabular")


@pytest.mark.parametrize("task", ["digits", "text", "digits_scale"])
def test_a_packet_and_a_vector_of_a_host_are_read_alike(export, task):
    """Whatever its slots are, at home and where the policy never was."""
    trained = Trained.open(export, "latest", World(task, max_epochs=MAX_EPOCHS))
    learned = make_policy("learned", trained.env, trained)
    checkpoint = load_strategic(export)
    run = StrategicPolicy(checkpoint).open_run("greenhouse")
    several = 0
    for observation, packet in packets(task, 8):
        obs = {name: torch.from_numpy(leaf).unsqueeze(1) for name, leaf in observation.items()}
        with torch.inference_mode():
            expected = learned.forward(obs, learned.initial_hidden(1))
        found = run.read(packet).result
        for own, other in zip(found.distribution.log_probs, expected.distribution.log_probs, strict=True):
            torch.testing.assert_close(own, other[0], atol=1e-5, rtol=1e-5)
        value = found.scaled_value * checkpoint.return_scale
        torch.testing.assert_close(value, expected.value[0], atol=1e-5, rtol=1e-5)
        several += not bool(found.distribution.forced)
        run.commit()
    assert trained.network.play_temperature == checkpoint.play_temperature != 1.0 != checkpoint.return_scale
    assert several == 9
    assert load_export(export)[0].env.task_names == checkpoint.tasks


def test_what_an_export_is_made_of_is_a_checkpoint(export, tmp_path):
    """Saved as one, alone or as an imitation has it, it is the same policy."""
    checkpoint = load_strategic(export)
    checkpoint.save(tmp_path / "run" / POLICY)
    for path in (tmp_path / "run", tmp_path / "run" / POLICY):
        again = load_strategic(path)
        assert again.registries.digests == checkpoint.registries.digests
        assert again.seen == checkpoint.seen != checkpoint.seen.all_but({})
        assert (again.tasks, again.return_scale) == (("digits", "tabular"), checkpoint.return_scale)
        assert (again.play_temperature, again.taught) == (checkpoint.play_temperature, NOTHING)
        assert Trained.open(path, "latest").network.play_temperature == checkpoint.play_temperature
        assert all(torch.equal(again.weights[name], of) for name, of in checkpoint.weights.items())


def test_what_is_no_strategic_policy_is_refused_in_one_line(export, tmp_path):
    with pytest.raises(UserError, match=r"holds no strategic policy: give what .* or an export of a run"):
        load_strategic(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text("{}")
    with pytest.raises(UserError, match=r"holds no policy that can be used: architecture_version"):
        load_strategic(tmp_path)
    with pytest.raises(UserError, match=r"reads Obs V3: give one that was trained with --network\.kind graph"):
        load_strategic(SHIPPED / "images")


def rename(card):
    names = card["names"]["layer_type"]
    names[0], names[1] = names[1], names[0]


def forget(card):
    del card["registry_digests"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (rename, "the names of layer_type are not those that the weights were trained with"),
        (forget, "does not fit its weights: there must be a digest of each of seed_kind, .*, got none"),
        (lambda card: card["names"].pop("hazard"), "there must be the families"),
    ],
)
def test_names_that_are_not_those_of_training_are_refused(export, tmp_path, change, reason):
    copy = shutil.copytree(export, tmp_path / "copy")
    card = json.loads((copy / CARD_FILE).read_text())
    change(card)
    (copy / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(UserError, match=reason):
        load_strategic(copy)
