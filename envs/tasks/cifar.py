"""CIFAR-10 (Krizhevsky 2009): 60,000 colour photographs of 32×32 pixels in ten classes, from the user's own copy.

Nothing is downloaded and nothing is made up: the files are found, checked against the published MD5 sums and read,
or the user is told what is missing.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from envs.batched.augmentation import CropAndFlip
from envs.hosts.cnn import CnnHost, CnnVariant
from envs.slots import SlotConfig
from envs.tasks.base import LazySplits, Split, SplitName, Task, TaskError
from envs.tasks.splits import stratified_split

SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"
FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""Sums of the official files, of which only ``test_batch`` is the test split."""

TEST_FILE = "test_batch"
NUM_CLASSES = 10
SIDE, CHANNELS = 32, 3
VALIDATION_SHARE = 0.05  # 2,500 of 50,000: the standard error of an accuracy is below 1 point

HEALTHY = CnnVariant(widths=(16, 32, 64), kernels=(3, 3, 3))
IMPAIRED = CnnVariant(widths=(16, 32, 64), kernels=(1, 1, 1))
SCALE = CnnVariant(widths=(8, 16, 32, 32, 64), kernels=(3, 1, 1, 1, 1))

Uint8Array = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]


def cifar10(data_dir: Path | None = None) -> Task:
    """A healthy three-block host; the photographs leave it room to grow all the same."""
    return cifar_task("cifar10", HEALTHY, _official_splits(data_dir))


def cifar_impaired(data_dir: Path | None = None) -> Task:
    """A host that cannot mix space: it sees colours only, until something grows."""
    return cifar_task("cifar_impaired", IMPAIRED, _official_splits(data_dir))


def cifar_scale(data_dir: Path | None = None) -> Task:
    """Five blocks, five slots, and seeds that can be grown and shrunk inside; only the first block mixes space."""
    return cifar_task("cifar_scale", SCALE, _official_splits(data_dir), internal_levels=True)


def cifar_task(
    name: str, variant: CnnVariant, splits: Mapping[SplitName, Split], internal_levels: bool = False
) -> Task:
    """A task on images in CIFAR-10's format, with crops and mirror images in training.

    Args:
        name: Of the task.
        variant: The host.
        splits: See :func:`read_cifar`.
        internal_levels: Whether seeds can be grown and shrunk inside.
    """
    return Task(
        name=name,
        host=CnnHost(variant, in_channels=CHANNELS, num_classes=NUM_CLASSES),
        variants=(variant,),
        slots=SlotConfig.for_row(len(variant.widths), internal_levels),
        num_classes=NUM_CLASSES,
        splits=splits,
        batches_per_epoch=16,
        augment=CropAndFlip(),
    )


def read_cifar(data_dir: Path, md5: Mapping[str, str]) -> dict[SplitName, Split]:
    """Read images in CIFAR-10's python version, from the extracted folder or the archive.

    The validation split is a fixed, stratified 5 % of the training files; pixels are standardised per channel with
    the remaining training images' moments.

    Args:
        data_dir: Holds ``cifar-10-batches-py`` or ``cifar-10-python.tar.gz``.
        md5: File name → expected sum: :data:`MD5`, or the sums of your own files in this format, all of which but
            ``test_batch`` (which must be there) are training data.

    Raises:
        TaskError: a file is missing, differs from its sum, or does not hold such images.
    """
    batches = {
        name: _decode(name, content) for name, content in _checked(_contents(data_dir, tuple(md5)), md5, data_dir)
    }
    images = np.concatenate([batches[name][0] for name in md5 if name != TEST_FILE])
    labels = np.concatenate([batches[name][1] for name in md5 if name != TEST_FILE])
    train, validation = stratified_split(labels, VALIDATION_SHARE)
    channels = [images[train, ..., channel] for channel in range(CHANNELS)]
    mean = np.array([channel.mean() for channel in channels], np.float32)
    std = np.array([channel.std() for channel in channels], np.float32)

    def split(chosen: Uint8Array, of: IntArray) -> Split:
        pixels = chosen.astype(np.float32)
        pixels -= mean
        pixels /= std
        return Split(torch.from_numpy(pixels), torch.from_numpy(of))

    return {
        "train": split(images[train], labels[train]),
        "validation": split(images[validation], labels[validation]),
        "test": split(*batches[TEST_FILE]),
    }


def _official_splits(data_dir: Path | None) -> LazySplits:
    return LazySplits(partial(_read_official, data_dir))


@cache  # one copy per process, however many environments and policies ask for it
def _read_official(data_dir: Path | None) -> dict[SplitName, Split]:
    if data_dir is None:
        raise TaskError(
            f"CIFAR-10 is missing because no data directory was given: name the directory that holds {FOLDER} or "
            f"{ARCHIVE} (from {SOURCE}) with --data-dir, or data_dir in task_args"
        )
    return read_cifar(data_dir, MD5)


# ---------------------------------------------------------------------- files
def _contents(data_dir: Path, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, one after another."""
    folder, archive = data_dir / FOLDER, data_dir / ARCHIVE
    if folder.is_dir():
        for name in names:
            if not (folder / name).is_file():
                raise TaskError(f"CIFAR-10 is incomplete: {folder / name} is missing; the files are from {SOURCE}")
            try:
                yield name, (folder / name).read_bytes()
            except OSError as error:
                raise TaskError(f"{folder / name} cannot be read: {error.strerror}") from error
    elif archive.is_file():
        yield from _members(archive, names)
    else:
        raise TaskError(
            f"CIFAR-10 is missing: there is neither {folder} nor {archive}; get the python version from {SOURCE} "
            "and name the directory that holds it with --data-dir"
        )


def _members(archive: Path, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Read from the archive without extracting anything to disk."""
    try:
        with tarfile.open(archive) as tar:
            for name in names:
                member = tar.extractfile(f"{FOLDER}/{name}")
                if member is None:
                    raise KeyError(name)
                yield name, member.read()
    except (tarfile.TarError, zlib.error, EOFError, KeyError, OSError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise TaskError(f"{archive} cannot be read ({reason}): get it again from {SOURCE}") from error


def _checked(
    contents: Iterator[tuple[str, bytes]], md5: Mapping[str, str], data_dir: Path
) -> Iterator[tuple[str, bytes]]:
    for name, content in contents:
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5[name]:
            raise TaskError(
                f"{FOLDER}/{name} in {data_dir} is not the expected file: its MD5 sum is {found}, not {md5[name]}; "
                f"get it again from {SOURCE}, or read your own images as docs/tasks.md shows"
            )
        yield name, content


class _ArrayUnpickler(pickle.Unpickler):
    """Loads pickles of plain containers and NumPy arrays, and refuses to call anything else.

    A pickle can run any function it names. The MD5 sums don't guard against that, since files with a given sum can
    be made up in pairs; so the three names that an array's pickle needs (and the codec of bytes that Python 3 wrote
    in an old protocol) are all that it gets.
    """

    _ADMITTED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Look a name up among the admitted ones."""
        if (module_name, global_name) not in self._ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which no array needs")
        return self._ADMITTED[module_name, global_name]


def _decode(name: str, content: bytes) -> tuple[Uint8Array, IntArray]:
    """Images ``[n, 32, 32, 3]`` and labels ``[n]`` of one file, stored as ``[n, 3·32·32]``, channels first."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        data, labels = batch[b"data"], np.asarray(batch[b"labels"], np.int64)
        images = data.reshape(len(labels), CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)
        if images.dtype != np.uint8 or labels.min() < 0 or labels.max() >= NUM_CLASSES:
            raise ValueError(f"pixels are {images.dtype}, not uint8, or labels are not all 0 to {NUM_CLASSES - 1}")
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise TaskError(f"{name} does not hold CIFAR-10's images and labels: {reason}") from error
    return images, labels
