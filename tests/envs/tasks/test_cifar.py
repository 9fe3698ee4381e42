"""CIFAR-10's files: found, checked, read; and how training images are changed."""

import hashlib
import io
import pickle

import numpy as np
import pytest
import torch

from envs.batched.augmentation import CropAndFlip
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.population.training import TrainingEpoch
from envs.tasks import LazySplits, TaskError, make_task
from envs.tasks.cifar import ARCHIVE, FOLDER, IMPAIRED, MD5, SOURCE, _ArrayUnpickler, cifar_task, read_cifar
from tests.envs.cifar_files import file_content, images_of, write_cifar
from tests.envs.helpers import WAIT, everyone, tiny_env


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("cifar")
    md5 = write_cifar(path)
    return path, md5


@pytest.fixture(scope="module")
def splits(made):
    return read_cifar(*made)


# ---------------------------------------------------------------------- files
def test_every_image_comes_back_once_with_its_label(splits):
    assert [len(splits[name].y) for name in ("train", "validation", "test")] == [190, 10, 40]
    original = [images_of(name, 40) for name in MD5]
    pixels = np.concatenate([data for data, _ in original[:5]]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    both = torch.cat([splits["train"].x, splits["validation"].x])
    labels = torch.cat([splits["train"].y, splits["validation"].y])
    assert both.dtype == torch.float32
    assert both.shape == (200, 32, 32, 3)
    # Standardising keeps the order of images by their mean of one channel, so sorting pairs them up.
    order, original_order = both[..., 0].mean((1, 2)).argsort(), pixels[..., 0].mean((1, 2)).argsort()
    scaled = (both[order] - both.mean((0, 1, 2))) / both.std((0, 1, 2))
    wanted = torch.from_numpy(pixels[original_order].astype(np.float32))
    wanted = (wanted - wanted.mean((0, 1, 2))) / wanted.std((0, 1, 2))
    torch.testing.assert_close(scaled, wanted, atol=1e-4, rtol=1e-4)
    assert labels[order].tolist() == np.concatenate([labels for _, labels in original[:5]])[original_order].tolist()


def test_pixels_are_standardised_with_the_training_images_alone_and_the_split_is_stratified(splits):
    train = splits["train"]
    torch.testing.assert_close(train.x.mean((0, 1, 2)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(train.x.std((0, 1, 2), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    assert torch.bincount(splits["validation"].y).tolist() == [1] * 10
    assert torch.bincount(splits["test"].y).tolist() == [4] * 10


def test_the_archive_gives_the_same_as_the_folder_and_is_not_extracted(tmp_path, splits):
    again = read_cifar(tmp_path, write_cifar(tmp_path, archive=True))
    assert all(again[name].x.equal(split.x) and again[name].y.equal(split.y) for name, split in splits.items())
    assert [path.name for path in tmp_path.iterdir()] == [ARCHIVE]


def test_absent_data_are_named_with_where_they_were_looked_for_and_where_they_come_from(tmp_path):
    with pytest.raises(TaskError) as error:
        read_cifar(tmp_path, MD5)
    for part in (str(tmp_path / FOLDER), str(tmp_path / ARCHIVE), SOURCE, "--data-dir"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_differs_in_one_byte_is_named(tmp_path):
    md5 = write_cifar(tmp_path)
    changed = bytearray((tmp_path / FOLDER / "data_batch_3").read_bytes())
    changed[-100] ^= 1
    (tmp_path / FOLDER / "data_batch_3").write_bytes(changed)
    with pytest.raises(TaskError, match=rf"data_batch_3 .* not {md5['data_batch_3']}"):
        read_cifar(tmp_path, md5)
    (tmp_path / FOLDER / "data_batch_3").unlink()
    with pytest.raises(TaskError, match=r"data_batch_3 is missing"):
        read_cifar(tmp_path, md5)


def test_a_cut_archive_or_one_without_the_files_is_named(tmp_path):
    md5 = write_cifar(tmp_path, archive=True)
    archive = tmp_path / ARCHIVE
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TaskError, match=r"cannot be read"):
        read_cifar(tmp_path, md5)
    archive.write_bytes(whole)
    with pytest.raises(TaskError, match=r"extra_batch.*cannot be read|cannot be read.*extra_batch"):
        read_cifar(tmp_path, {**md5, "extra_batch": "0"})


def test_made_files_never_pass_for_the_official_ones(made):
    task = make_task("cifar10", {"data_dir": str(made[0])})
    assert isinstance(task.splits, LazySplits)
    with pytest.raises(TaskError, match="MD5"):
        task.splits["train"]


def test_the_sizes_of_a_task_are_known_without_its_data():
    assert make_task("cifar_scale").slots.num_slots == 5
    with pytest.raises(TaskError, match="no data directory"):
        MorphogenesisVectorEnv(task="cifar_scale")


class _Runs:
    def __reduce__(self):
        return (print, ("a pickle ran this",))


def test_a_pickle_can_make_arrays_and_run_nothing(capsys):
    for protocol in range(2, 5):
        data = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"labels": [0, 1]}
        loaded = _ArrayUnpickler(io.BytesIO(pickle.dumps(data, protocol)), encoding="bytes").load()
        assert np.array_equal(loaded[b"data"], data[b"data"])
    for content in (pickle.dumps(_Runs()), b"cos\nsystem\n(U\x04truetR."):
        with pytest.raises(pickle.UnpicklingError, match="which no array needs"):
            _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "content",
    [
        b"not a pickle",
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8)}, 2),
        pickle.dumps({b"data": np.zeros((2, 3000), np.uint8), b"labels": [0, 1]}, 2),
        pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}, 2),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}, 2),
        pickle.dumps({b"data": np.zeros((0, 3072), np.uint8), b"labels": []}, 2),
        pickle.dumps([1, 2], 2),
    ],
)
def test_a_file_of_another_form_is_refused_by_name_even_with_the_expected_sum(tmp_path, content):
    md5 = write_cifar(tmp_path)
    (tmp_path / FOLDER / "test_batch").write_bytes(content)
    with pytest.raises(TaskError, match="test_batch does not hold"):
        read_cifar(tmp_path, {**md5, "test_batch": hashlib.md5(content).hexdigest()})


def test_the_made_files_are_what_python_reads_from_the_official_ones():
    batch = pickle.loads(file_content("data_batch_2", 10), encoding="bytes")
    assert set(batch) == {b"batch_label", b"labels", b"data"}
    assert batch[b"data"].shape == (10, 3072)
    assert batch[b"labels"] == list(range(10))


def test_hosts_train_on_the_images(splits):
    task = cifar_task("made", IMPAIRED, splits)
    env = MorphogenesisVectorEnv(2, task=task, max_epochs=2)
    env.reset(seed=0)
    losses = []
    for _ in range(2):
        *_, terminated, _, info = env.step(everyone(env, WAIT))
        losses.append(env.progress.loss[:, -1].copy())
    assert terminated.all()
    assert np.isfinite(losses).all()
    assert (info["committed_accuracy"] > 10.0).all()  # brightness gives the classes away


# ---------------------------------------------------------------------- augmentation
def _by_hand(image, down, right, mirrored, padding):
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    crop = padded[padding + down :, padding + right :][: image.shape[0], : image.shape[1]]
    return crop[:, ::-1] if mirrored else crop


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (1, False), (0, True)])
def test_every_code_is_another_crop_or_mirror_image_and_every_one_is_drawn(padding, flip):
    augment, size = CropAndFlip(padding, flip), 2 * padding + 1
    images = np.random.default_rng(0).normal(size=(3, 6, 5, 2)).astype(np.float32)
    wanted = [
        _by_hand(images[1], down, right, mirrored, padding)
        for mirrored in ([False, True] if flip else [False])
        for down in range(-padding, padding + 1)
        for right in range(-padding, padding + 1)
    ]
    codes = torch.arange(len(wanted))
    picked = augment.gather(torch.from_numpy(images), torch.ones_like(codes), codes)
    np.testing.assert_array_equal(picked.numpy(), np.stack(wanted))
    drawn = augment.draw(np.random.default_rng(1), (2000,))
    assert set(drawn.tolist()) == set(range(size**2 * (1 + flip)))


def test_a_negative_padding_is_refused():
    with pytest.raises(ValueError, match="-1"):
        CropAndFlip(padding=-1)


def _batches(env):
    """What each member's network is shown in one epoch, ``[batches, B, M, H, W, C]``."""
    seen = []
    pick = TrainingEpoch._samples
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingEpoch, "_samples", lambda *args: seen.append(pick(*args)) or seen[-1])
        env.step(everyone(env, WAIT))
    return torch.stack(seen).transpose(1, 2)


def test_augmentation_is_reproducible_and_drawn_per_member():
    changes = {"augment": CropAndFlip(padding=1)}
    seeds = [5, 6, 5]
    env = tiny_env(3, task_changes=changes)
    env.reset(seed=seeds)
    first, second = _batches(env), _batches(env)
    assert first[:, :, 0].equal(first[:, :, 2])
    assert not first[:, :, 0].equal(first[:, :, 1])
    assert not first.equal(second)
    env.reset(seed=seeds)
    assert _batches(env).equal(first)
    alone = tiny_env(1, task_changes=changes)
    alone.reset(seed=[6])
    assert _batches(alone)[:, :, 0].equal(first[:, :, 1])


def test_what_a_host_is_shown_are_crops_and_mirror_images_of_the_samples_of_its_batch():
    env = tiny_env(2, task_changes={"augment": CropAndFlip(padding=1)})
    env.reset(seed=0)
    seen, order = _batches(env)[0], env.population._order[:, 0, 0]
    images = env.task.splits["train"].x.numpy()
    changed = 0
    for member in range(2):
        for sample in range(len(order[member])):
            original, shown = images[order[member, sample]], seen[sample, member].numpy()
            candidates = [
                _by_hand(original, down, right, mirrored, 1)
                for mirrored in (False, True)
                for down in (-1, 0, 1)
                for right in (-1, 0, 1)
            ]
            assert any(np.array_equal(shown, candidate) for candidate in candidates)
            changed += not np.array_equal(shown, original)
    assert changed > 20  # of 32


def test_a_task_without_augmentation_shows_its_samples_and_starts_the_same_hosts():
    env, augmented = tiny_env(1), tiny_env(1, task_changes={"augment": CropAndFlip(padding=1)})
    for world in (env, augmented):
        world.reset(seed=3)
    assert env.population.flat.equal(augmented.population.flat)
    np.testing.assert_array_equal(env.population._order, augmented.population._order)
    images = env.task.splits["train"].x
    assert _batches(env)[:, :, 0].equal(images[env.population._order[0, 0].astype(np.int64)])
