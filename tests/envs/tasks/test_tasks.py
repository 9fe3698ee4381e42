"""The registry: names, arguments, and tasks that other packages offer."""

import importlib
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.hosts.mlp import MlpHost
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.tasks import LazySplits, Split, TaskError, make_task, resolve_arguments, task_arguments, task_names
from tests.envs.helpers import WAIT, everyone, task_of
from tests.envs.packages import install, with_their_data

MIXTURES = ("digits_mixed", "mnist5k_mixed")

TOYS = """
from dataclasses import replace
from pathlib import Path

from envs.tasks import Task, make_task


def toy(rent: float = 0.03, batches: int = 8, note: str | None = None, folder: Path | None = None) -> Task:
    return replace(make_task("digits"), name=f"{note} {folder}", parameter_rent=rent, batches_per_epoch=batches)


def strict(data_dir: Path) -> Task:
    return toy(folder=data_dir)


def lists(sizes: list[int]) -> Task:
    return toy()


def anything(**settings: str) -> Task:
    return toy()


def nothing():
    pass
"""
ENTRIES = {name: f"toys:{name}" for name in ("toy", "strict", "lists", "anything", "absent", "nothing")}
ENTRIES |= {"digits_mixed": "toys:toy", "unknown_module": "no_such_module:task"}


@pytest.fixture
def toys(tmp_path, monkeypatch):
    install(tmp_path, "toys", ENTRIES, {"toys": TOYS})
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("toys", None)


def test_an_installed_package_adds_tasks_behind_the_built_in_ones(toys):
    assert task_names()[:3] == ("digits", "digits_impaired", "digits_mixed")
    assert set(ENTRIES) <= set(task_names())
    env = MorphogenesisVectorEnv(2, task="toy", task_args={"batches": "1"}, max_epochs=1)
    env.reset(seed=0)
    *_, terminated, _, info = env.step(everyone(env, WAIT))
    assert terminated.all()
    assert (info["committed_accuracy"] > 0).all()


def test_arguments_are_text_converted_by_their_annotation(toys):
    task = make_task("toy", {"rent": "0.5", "batches": "3", "note": "a=b", "folder": "~/here"})
    assert (task.parameter_rent, task.batches_per_epoch) == (0.5, 3)
    assert task.name == f"a=b {Path.home() / 'here'}"
    assert task_arguments("toy") == {"rent": float, "batches": int, "note": str, "folder": Path}
    assert task_arguments("digits") == {}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_mixture_is_drawn_from_the_named_hosts_as_often_as_they_are_named(mixture):
    whole = make_task(mixture)
    chosen = make_task(mixture, {"variants": "late,healthy,late"})
    (late,), (healthy,) = (make_task(mixture, {"variants": name}).variants for name in ("late", "healthy"))
    assert chosen.variants == (late, healthy, late)
    assert late != healthy
    assert chosen.slots == whole.slots
    assert chosen.path_rent == whole.path_rent
    with pytest.raises(TaskError, match="variants names lat: choose among healthy, "):
        make_task(mixture, {"variants": "lat"})


def test_variants_that_their_host_cannot_hold_are_refused():
    """Padded with what is not there: layer norm would count absent features, and wider variants would be cut."""
    rows, images = make_task("tabular"), make_task("digits_mixed")
    (narrow,) = rows.variants
    with pytest.raises(ValueError, match="must have the same width"):
        replace(rows, host=MlpHost(replace(narrow, width=16), 64, 10))
    with pytest.raises(ValueError, match=r"but its variants need .*hidden=\(99, "):
        replace(rows, variants=(narrow, replace(narrow, hidden=(99, *narrow.hidden[1:]))))
    with pytest.raises(ValueError, match="but its variants need"):
        replace(images, variants=(*images.variants, replace(images.variants[0], widths=(99, 1, 1))))


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_deeper_mixture_has_more_convolutions_and_the_same_slots(mixture):
    task, deep = make_task(mixture), make_task(mixture, {"depth": "2"})
    assert deep.slots == task.slots
    for variant, deeper in zip(task.variants, deep.variants, strict=True):
        assert [task.host.slot_width(variant, slot) for slot in range(3)] == list(deeper.widths)
        assert len(deeper.layers) == 2 * len(variant.layers)
        assert sum(deep.host.segment_flops(deeper, (8, 8, 1))) > sum(task.host.segment_flops(variant, (8, 8, 1)))
    with pytest.raises(TaskError, match="depth must be at least 1, got 0"):
        make_task(mixture, {"depth": "0"})


@pytest.mark.parametrize("name", ["text", "text_attending"])
def test_a_deeper_text_task_has_more_layers_and_the_same_slots_and_texts(name):
    task, deep = make_task(name), make_task(name, {"depth": "2"})
    (variant,), (deeper,) = task.variants, deep.variants
    assert (variant.layers, deeper) == ((1, 1, 1), replace(variant, layers=(2, 2, 2)))
    assert deep.slots == task.slots
    assert deep.num_classes == task.num_classes
    assert all(deep.splits[part].x.equal(split.x) for part, split in task.splits.items())
    added = deep.host.parameters(deeper).keys() - task.host.parameters(variant).keys()
    assert {"_".join(key.split("_")[:2]) for key in added} == {f"segment{k}_layer1" for k in range(3)}
    assert make_task(name, {"depth": "1"}).variants == task.variants
    with pytest.raises(TaskError, match="depth must be at least 1, got 0"):
        make_task(name, {"depth": "0"})


@pytest.mark.parametrize("mixture", with_their_data(MIXTURES))
def test_some_of_the_classes_are_the_images_of_the_first_digits_in_the_same_splits(mixture):
    every, half = make_task(mixture), make_task(mixture, {"classes": "5"})
    assert half.num_classes == half.host.num_classes == 5
    for name, split in half.splits.items():
        first = every.splits[name].y < 5
        assert split.x.equal(every.splits[name].x[first])
        assert split.y.equal(every.splits[name].y[first])
    for wrong in ("1", "11"):
        with pytest.raises(TaskError, match=f"classes must be 2 to 10, got {wrong}"):
            make_task(mixture, {"classes": wrong})


def test_hosts_learn_faster_or_slower_within_the_spread_and_alike_without_one():
    factors = {}
    for spread in ("1", "3"):
        env = MorphogenesisVectorEnv(200, task=make_task("digits_mixed", {"lr_spread": spread}), max_epochs=1)
        env.reset(seed=0)
        factors[spread] = np.log(env.population.lr_factor) / np.log(3.0)
    assert (factors["1"] == 0.0).all()
    assert (np.abs(factors["3"]) <= 1.0).all()
    # Uniform over the range: 200 draws leave no tenth of it empty.
    assert (np.histogram(factors["3"], bins=10, range=(-1.0, 1.0))[0] > 0).all()
    for wrong in ("0.5", "nan", "inf"):
        with pytest.raises(TaskError, match=f"lr_spread .*must be a number .*, got {wrong}"):
            make_task("digits_mixed", {"lr_spread": wrong})


def test_paths_become_absolute_and_other_arguments_stay_as_they_are(toys, monkeypatch):
    monkeypatch.chdir(toys)
    resolved = resolve_arguments("toy", {"folder": "data", "rent": "5e-1", "note": "data"})
    assert resolved == {"folder": str(toys / "data"), "rent": "5e-1", "note": "data"}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("toys", {}, r"unknown task 'toys': choose one of digits, .*toy"),
        ("toy", {"size": "1"}, r"takes no argument size: it knows rent, batches, note, folder"),
        ("digits", {"size": "1"}, r"takes no argument size: it knows none"),
        ("toy", {"batches": "3.5"}, r"batches of task 'toy' must be of type int, got '3.5'"),
        ("strict", {}, r"needs the argument data_dir"),
        ("lists", {}, r"sizes of task 'lists' must be a keyword annotated as str, int, float or Path"),
        ("anything", {}, r"settings of task 'anything' must be a keyword"),
        ("digits_mixed", {}, r"more than one package offers a task 'digits_mixed': esper-ray, toys:toy"),
        ("absent", {}, r"registered as toys:absent, which cannot be imported"),
        ("unknown_module", {}, r"registered as no_such_module:task, which cannot be imported"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_clear_line(toys, name, arguments, message):
    with pytest.raises(TaskError, match=message) as error:
        make_task(name, arguments)
    assert "\n" not in str(error.value)


def test_two_packages_with_the_same_task_are_named(toys):
    install(toys, "more_toys", {"toy": "more_toys:toy"}, {"more_toys": ""})
    importlib.invalidate_caches()
    with pytest.raises(TaskError, match="more_toys:toy, toys:toy"):
        make_task("toy")


def test_task_arguments_are_for_tasks_given_by_name():
    with pytest.raises(ValueError, match="given by name"):
        MorphogenesisVectorEnv(task=task_of(), task_args={"rent": "1"})


def _load():
    _load.calls += 1
    return task_of().splits


_load.calls = 0


def test_lazy_splits_are_read_once_at_their_first_use():
    _load.calls = 0
    splits = LazySplits(_load)
    copy = pickle.loads(pickle.dumps(splits))
    assert _load.calls == 0
    assert list(splits) == ["train", "validation", "test"]
    assert len(splits) == 3
    assert splits["test"].x.equal(task_of().splits["test"].x)
    assert _load.calls == 1
    assert np.array_equal(copy["train"].y, splits["train"].y)
    assert _load.calls == 2


def test_a_function_that_makes_no_task_is_refused(toys):
    with pytest.raises(TaskError, match=r"'nothing' must return an envs\.tasks\.Task, got None"):
        make_task("nothing")


def _split(x=None, y=None):
    return Split(torch.zeros(4, 8, 8, 1) if x is None else x, torch.arange(4) if y is None else y)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("validation", None, "has no split 'validation': give train, validation, test"),
        ("train", _split(torch.zeros(0, 8, 8, 1), torch.zeros(0, dtype=torch.int64)), "got 0 samples and 0 labels"),
        ("test", _split(y=torch.arange(3)), "got 4 samples and 3 labels"),
        ("train", _split(y=torch.tensor([0, 1, 2, 10])), "must be 0 to 9, as num_classes says, got 0 to 10"),
        ("train", _split(y=torch.tensor([0, 1, 2, -1])), "got -1 to 2"),
        ("train", _split(y=torch.zeros(4)), "must be int64, got torch.float32"),
        ("validation", _split(torch.full((4, 8, 8, 1), torch.nan)), "hold numbers that are not finite"),
    ],
)
def test_data_that_no_host_could_be_trained_on_are_refused_at_the_start(name, split, message):
    task = task_of()
    splits = {**task.splits, name: split}
    if split is None:
        del splits[name]
    with pytest.raises(TaskError, match=message):
        MorphogenesisVectorEnv(1, task=replace(task, splits=splits))


def test_a_text_in_another_encoding_is_refused_and_named(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("Übermäßig viel Text. ".encode("latin-1") * 100)
    with pytest.raises(TaskError, match=r"text is not UTF-8 \(byte 0 is 0xdc\): convert it"):
        make_task("text", {"text_file": str(path)})
