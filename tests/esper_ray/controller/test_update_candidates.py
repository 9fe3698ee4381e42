"""An update is what training writes for this very network, or it is refused with one reason and nothing of it runs."""

import dataclasses
import hashlib
import json
import pickle
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from esper_ray.controller.updates import candidate
from esper_ray.controller.updates.candidate import MOST_WEIGHT_BYTES, check_weights, read_update
from esper_ray.controller.updates.making import update_of
from esper_ray.controller.updates.policy_update import PolicyUpdate
from esper_ray.controller.updates.verdicts import UpdateReason, UpdateRejected
from esper_ray.errors import UserError
from policies.strategic.checkpoint import MANIFEST_FILE, Manifest, layout
from policies.strategic.network_config import GraphNetworkConfig
from tests.esper_ray.controller.updating import base, learnt, saved


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return saved(base(), tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def live(directory):
    return Manifest.read((directory / MANIFEST_FILE).read_bytes())


@pytest.fixture(scope="module")
def update(tmp_path_factory):
    return update_of(saved(learnt(base()), tmp_path_factory.mktemp("learnt")), 1)


def judged(payload, live):
    """The reason why an update is refused; None if it is not."""
    return reason_of(lambda: check_weights(*read_update(payload), live))


def reason_of(check):
    try:
        check()
    except UpdateRejected as error:
        refused = error
    else:
        return None
    assert "\n" not in str(refused)
    return refused.reason


def changed(update, weights=None, **fields):
    """An update whose manifest is right in itself, with other weights or other fields."""
    manifest = Manifest.read(update.head.manifest.encode())
    if weights is not None:
        fields["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    manifest = manifest.model_copy(update=fields)
    manifest = manifest.model_copy(update={"manifest_sha256": manifest.own_digest})
    head = update.head.model_copy(update={"manifest": manifest.model_dump_json()})
    return PolicyUpdate(head=head, weights=update.weights if weights is None else weights).framed()


@pytest.fixture(scope="module")
def weighed(update, live):
    """Judges weights alone, as the manifest says."""
    manifest = Manifest.read(update.head.manifest.encode())

    def judge(weights):
        own = manifest.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
        return reason_of(lambda: check_weights(PolicyUpdate(head=update.head, weights=weights), own, live))

    once = layout(GraphNetworkConfig(**manifest.network))  # it takes longer than all the rest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidate, "layout", lambda _: once)
        yield judge


def test_an_update_is_its_checkpoint_byte_by_byte_and_holds(directory, update, live):
    own = update_of(directory, 7, "words")
    assert own.head.manifest.encode() == (directory / MANIFEST_FILE).read_bytes()
    assert own.weights == (directory / live.weights_file).read_bytes()
    assert (own.head.version, own.head.trained_on) == (7, "words")
    assert PolicyUpdate.of(own.framed()) == own
    assert judged(own.framed(), live) is judged(update.framed(), live) is judged(changed(update), live) is None


def test_what_is_no_checkpoint_cannot_be_an_update(tmp_path, directory):
    with pytest.raises(UserError, match="holds no checkpoint"):
        update_of(tmp_path, 1)
    damaged = saved(base(), tmp_path / "damaged")
    (damaged / MANIFEST_FILE).write_text((damaged / MANIFEST_FILE).read_text().replace('"play_', '"pray_'))
    with pytest.raises(UserError, match="cannot be an update"):
        update_of(damaged, 1)
    with pytest.raises(UserError, match="cannot be an update"):
        update_of(directory, 0)


def test_each_thing_that_does_not_fit_has_its_reason(update, live):
    tensors = safetensors.torch.load(update.weights)
    first = next(iter(tensors))

    def saving(**other):
        return safetensors.torch.save(tensors | other)

    more = {family: (*names, "new") for family, names in live.registries.items()}
    swapped = live.registries | {"layer_type": tuple(reversed(live.registries["layer_type"]))}
    wider = live.network | {"gat_width": 2 * live.network["gat_width"]}
    cases = {
        b"": UpdateReason.MALFORMED,
        update.framed()[:-1]: UpdateReason.MALFORMED,
        pickle.dumps(update.head.manifest): UpdateReason.MALFORMED,
        update.framed().replace(b'play_temperature\\": 1.0', b'play_temperature\\": 1.5'): UpdateReason.MALFORMED,
        changed(update, normaliser={}): UpdateReason.MALFORMED,
        changed(update, weights=bytes(MOST_WEIGHT_BYTES + 1)): UpdateReason.TOO_LARGE,
        changed(update, architecture_version="gnn_v2"): UpdateReason.ARCHITECTURE,
        changed(update, schema_inputs={}): UpdateReason.ARCHITECTURE,
        changed(update, network=wider): UpdateReason.ARCHITECTURE,
        PolicyUpdate(head=update.head, weights=update.weights[:-1] + b"\x00\x01").framed(): UpdateReason.WEIGHTS_SHA256,
        changed(update, registries=more): UpdateReason.REGISTRIES,
        changed(update, registries=swapped): UpdateReason.REGISTRIES,
        changed(update, capacities=live.capacities | {"hazard": 33}): UpdateReason.REGISTRIES,
        changed(update, shapes={}): UpdateReason.SHAPES,
        changed(update, weights=safetensors.torch.save({})): UpdateReason.SHAPES,
        changed(update, weights=saving(more=torch.zeros(1))): UpdateReason.SHAPES,
        changed(update, weights=saving(**{first: tensors[first].double()})): UpdateReason.SHAPES,
        changed(update, weights=saving(**{first: tensors[first].flatten()[None]})): UpdateReason.SHAPES,
        changed(update, weights=saving(**{first: tensors[first].fill_(torch.inf)})): UpdateReason.NOT_FINITE,
    }
    assert len(cases) == 19
    for payload, reason in cases.items():
        assert judged(payload, live) is reason, reason


def test_new_names_may_follow_those_of_the_live_policy(tmp_path, live):
    further = base()
    further = dataclasses.replace(further, registries=further.registries.extended({"layer_type": ["lately"]}))
    assert judged(update_of(saved(further, tmp_path), 1).framed(), live) is None


class Bomb:
    """Unpickled, it says so."""

    gone_off = False

    @classmethod
    def go_off(cls):
        cls.gone_off = True

    def __reduce__(self):
        return Bomb.go_off, ()


def test_a_pickle_in_disguise_is_refused_and_never_unpickled(update, live, tmp_path):
    torch.save(Bomb(), tmp_path / "bomb.pt")
    bombs = (pickle.dumps(Bomb()), (tmp_path / "bomb.pt").read_bytes())
    header = int.from_bytes(update.weights[:8], "little")
    for bomb in bombs:
        padded = bomb.ljust(len(update.weights), b"\0")
        behind = update.weights[: 8 + header] + padded[: len(update.weights) - 8 - header]
        assert judged(changed(update, weights=bomb), live) is UpdateReason.SHAPES
        assert judged(changed(update, weights=padded), live) is UpdateReason.SHAPES
        assert judged(changed(update, weights=behind), live) in (None, UpdateReason.NOT_FINITE), (
            "they are numbers like any others"
        )
        assert judged(bomb, live) is UpdateReason.MALFORMED
    assert not Bomb.gone_off
    pickle.loads(bombs[0])
    assert Bomb.gone_off, "it would have"


def header_of(weights):
    length = int.from_bytes(weights[:8], "little")
    return json.loads(weights[8 : 8 + length]), weights[8 + length :]


def with_header(header, data):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + data


NUMBERS = st.integers(-(2**65), 2**65) | st.sampled_from((0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1))


@st.composite
def entries(draw):
    """What a header may say of a tensor."""
    return draw(
        st.fixed_dictionaries(
            {},
            optional={
                "dtype": st.sampled_from(("F32", "F64", "BF16", "F8_E4M3", "F4", "I8", "BOOL", "U64", "X", 3)),
                "shape": st.lists(NUMBERS, max_size=4),
                "data_offsets": st.lists(NUMBERS, max_size=3),
            },
        )
    )


@given(st.data())
def test_a_mutated_header_is_refused(update, weighed, data):
    header, content = header_of(update.weights)
    name = data.draw(st.sampled_from(sorted(header)))
    how = data.draw(st.sampled_from(("entry", "overlap", "renamed", "gone", "shifted", "metadata")))
    entry = dict(header[name])
    if how == "entry":
        header[name] = entry | data.draw(entries().filter(lambda new: any(entry.get(k) != v for k, v in new.items())))
    elif how == "overlap":
        other = data.draw(st.sampled_from(sorted(set(header) - {name})))
        header[name] = entry | {"data_offsets": header[other]["data_offsets"]}
    elif how == "renamed":
        header[data.draw(st.text(max_size=5).filter(lambda text: text not in header))] = header.pop(name)
    elif how == "gone":
        del header[name]
    elif how == "shifted":
        by = data.draw(st.integers(1, 64))
        header[name] = entry | {"data_offsets": [at + by for at in entry["data_offsets"]]}
    else:
        header["__metadata__"] = data.draw(st.dictionaries(st.text(max_size=3), st.integers(), min_size=1, max_size=2))
    assert weighed(with_header(header, content)) is UpdateReason.SHAPES


@given(st.integers(0, 2**64 - 1), st.binary(max_size=40))
@example(0, b"")
@example(2**64 - 1, b"{}")
@example(10**8, b"{")
def test_a_length_that_is_none_is_refused(update, weighed, length, start):
    weights = struct.pack("<Q", length) + (start or update.weights[8:])
    if weights != update.weights:
        assert weighed(weights) is UpdateReason.SHAPES
    if start:
        assert weighed(start + update.weights) is UpdateReason.SHAPES


@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_of_a_header_are_refused_or_change_nothing(update, weighed, flips):
    length = int.from_bytes(update.weights[:8], "little")
    weights = bytearray(update.weights)
    for at, value in flips:
        weights[at % (8 + length)] = value
    before = safetensors.torch.load(update.weights)
    reason = weighed(bytes(weights))
    if reason is None:  # white space, say
        after = safetensors.torch.load(bytes(weights))
        assert {name: of.shape for name, of in after.items()} == {name: of.shape for name, of in before.items()}
    else:
        assert reason in (UpdateReason.SHAPES, UpdateReason.NOT_FINITE)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_update_or_refused(live, payload):
    assert judged(payload, live) is UpdateReason.MALFORMED
