"""An index once given stays, whoever asks, in whichever process; reading gives none."""

import json
import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.full_disk import files_of_at_most
from envs.vocabulary import BLENDING_METHODS
from policies.strategic.builder import GraphBuilder, numbered
from policies.strategic.graph_columns import Layers
from policies.strategic.measured import Measured
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.registries import PRE_SEEDED, UNKNOWN, Capacities, Registries, RegistryView, RegistryViews
from tests.policies.strategic.states import chain, state

NAMES = st.lists(st.text(min_size=1, max_size=4), max_size=12)


def view(*names, capacity=16):
    return RegistryView("layer_type", capacity, names)


@given(st.lists(NAMES, max_size=4))
def test_indices_are_given_from_one_in_the_order_of_first_sight_and_stay(tmp_path_factory, rounds):
    registries = Registries(tmp_path_factory.mktemp("r") / "registries.json")
    seen = []
    for names in rounds:
        before = registries.views["layer_type"]
        after = registries.register({"layer_type": names})["layer_type"]
        seen += [name for name in dict.fromkeys(names) if name not in seen]
        assert [after.index(name) for name in seen] == list(range(1, len(seen) + 1))
        assert [before.index(name) for name in before.names] == [after.index(name) for name in before.names]
    assert Registries(registries._path).views == registries.views


def test_families_begin_with_their_names(tmp_path):
    views = Registries(tmp_path / "registries.json").views
    assert [views["optimizer_family"].index(name) for name in ("sgd", "adam", "adamw", "rmsprop", "adagrad")] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert [views["schedule"].index(name) for name in BLENDING_METHODS] == [1, 2, 3, 4]
    assert all(view.names == PRE_SEEDED.get(family, ()) for family, view in views.views.items())


def test_reading_an_unknown_name_gives_zero_and_inserts_nothing(tmp_path):
    registries = Registries(tmp_path / "registries.json")
    views = registries.register({"layer_type": ["conv2d"]})
    digests = views.digests
    assert views["layer_type"].index("linear") == views["layer_type"].index(None) == UNKNOWN == 0
    assert views["layer_type"].names == ("conv2d",)
    assert not hasattr(views["layer_type"], "register")
    with pytest.raises(AttributeError):
        views["layer_type"].names = ("linear",)
    assert registries.views.digests == Registries(tmp_path / "registries.json").views.digests == digests


def test_what_finds_no_room_reads_as_unknown_and_is_told_once(tmp_path, caplog):
    registries = Registries(tmp_path / "registries.json", Capacities(hazard=2))
    with caplog.at_level(logging.WARNING):
        registries.register({"hazard": ["a", None, "b", "c", "d"]})
        views = registries.register({"hazard": ["c", "e", "a"]})
    assert [views["hazard"].index(name) for name in "abcde"] == [1, 2, 0, 0, 0]
    (record,) = caplog.records
    assert "hazard has room for 2 names: 'c'" in record.getMessage()


def test_what_trains_numbers_names_alike_and_the_rest_reads_as_unknown(caplog):
    """More kinds of layer than there is room for, in two worlds: both are read, and one line says what is not."""
    worlds = [
        Measured.of(state(chain(layers).model_copy(update={"layers": layers_called(layers, first)})))
        for first, layers in ((0, 50), (40, 60))
    ]
    with caplog.at_level(logging.WARNING):
        views = numbered(worlds)
    known = [f"type{at}" for at in range(64)]
    assert views["layer_type"].names == tuple(known)
    (record,) = caplog.records
    assert "layer_type has room for 64 names: 'type64'" in record.getMessage()
    codes = GraphBuilder(views, MetricNormaliser()).build(worlds[1]).nodes["layer"].codes[0, :, 0]
    assert codes.tolist() == [*range(41, 65), *[UNKNOWN] * 36]
    assert views["optimizer_family"].names == PRE_SEEDED["optimizer_family"]


def layers_called(count, first):
    return Layers(name=tuple(map(str, range(count))), layer_type=tuple(f"type{first + at}" for at in range(count)))


def test_a_full_family_does_not_keep_the_others_from_growing(tmp_path):
    registries = Registries(tmp_path / "registries.json", Capacities(hazard=1))
    registries.register({"hazard": ["a", "b"]})
    views = registries.register({"hazard": ["b"], "layer_type": ["linear"]})
    assert views["layer_type"].index("linear") == 1
    assert views["hazard"].index("b") == UNKNOWN


PROCESS = """
import sys
from pathlib import Path
from policies.strategic.registries import Registries
registries = Registries(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for name in sys.argv[2:]:
    views = registries.register({"layer_type": [name]})
    print(name, views["layer_type"].index(name))
"""


def test_several_processes_give_a_name_one_index(tmp_path):
    path, names = tmp_path / "registries.json", [f"layer{i}" for i in range(40)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, path, *order], **pipes)
        for order in (names, names[::-1], names[20:] + names[:20])
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate()[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    final = Registries(path).views["layer_type"]
    assert sorted(final.names) == sorted(names)
    for lines in told:
        assert sorted(lines) == sorted(f"{name} {final.index(name)}" for name in names)


def test_a_write_that_fails_registers_nothing_and_leaves_the_file(tmp_path):
    path = tmp_path / "registries.json"
    registries = Registries(path)
    registries.register({"layer_type": ["conv2d"]})
    content, views, files = path.read_bytes(), registries.views, set(tmp_path.iterdir())
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        registries.register({"layer_type": ["linear"]})
    assert path.read_bytes() == content
    assert registries.views == views
    assert set(tmp_path.iterdir()) == files


@given(NAMES.map(lambda names: tuple(dict.fromkeys(names))), st.data())
def test_digests_tell_names_and_orders_apart(names, data):
    other = tuple(data.draw(st.permutations(names)))
    assert (view(*names).digest == view(*other).digest) == (names == other)
    assert view(*names, "one more").digest != view(*names).digest or "one more" in names


def test_the_digest_is_that_of_the_canonical_pairs():
    # printf '[["conv2d",1],["linear",2]]' | sha256sum
    expected = "332023766c128eaf3268cf3f88040da4d9b92c7fbec290705a0c69b09b6eba40"
    assert view("conv2d", "linear").digest == expected
    assert view("conv2d", "linear", capacity=9).digest == view("conv2d", "linear").digest


def test_other_names_than_the_weights_were_trained_with_are_refused():
    views = RegistryViews.fresh(Capacities())
    views.check_digests(views.digests)
    for family in views.views:
        with pytest.raises(ValueError, match=f"the names of {family} are not those"):
            views.check_digests({**views.digests, family: "0" * 64})
    with pytest.raises(ValueError, match="a digest of each"):
        views.check_digests({})


FRESH = {family: list(names) for family, names in RegistryViews.fresh(Capacities()).names.items()}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "does not hold registries"),
        ("[]", "a list of names for each family"),
        ('{"layer_type": 3}', "a list of names for each family"),
        ("{}", "there must be the families"),
        (json.dumps(FRESH | {"more": []}), "there must be the families"),
        (json.dumps(FRESH | {"schedule": []}), "schedule must begin with linear, cosine"),
        (json.dumps(FRESH | {"layer_type": ["a", "a"]}), "layer_type has a name twice"),
        (json.dumps(FRESH | {"layer_type": [""]}), "at least one letter"),
        (json.dumps(FRESH | {"layer_type": [1]}), "at least one letter"),
        (json.dumps(FRESH | {"hazard": [str(i) for i in range(33)]}), "hazard has room for 32 names, got 33"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, reason):
    path = tmp_path / "registries.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=reason) as refused:
        Registries(path)
    assert str(path) in str(refused.value)
    assert path.read_text() == content


def test_capacities_have_room_for_what_families_begin_with():
    with pytest.raises(ValueError, match="optimizer_family must have room for the 5 names"):
        Capacities(optimizer_family=4)
    with pytest.raises(ValueError, match="hazard must be a whole number"):
        Capacities(hazard=0)


def test_an_empty_name_and_an_unknown_family_are_refused(tmp_path):
    registries = Registries(tmp_path / "registries.json")
    with pytest.raises(ValueError, match="at least one letter"):
        registries.register({"layer_type": ["linear", ""]})
    with pytest.raises(KeyError):
        registries.register({"layers": ["linear"]})
    assert registries.views == RegistryViews.fresh(Capacities())
