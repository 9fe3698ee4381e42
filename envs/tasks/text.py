"""A character-level language model on the Python documentation that ships with CPython, or on a file."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import numpy.typing as npt
import torch

from envs.hosts.transformer import TransformerHost, TransformerVariant
from envs.slots import SlotConfig
from envs.tasks.base import Split, SplitName, Task, TaskError

CONTEXT = 32
"""Characters that the host sees at a time."""

MAX_WINDOWS: dict[SplitName, int | None] = {"train": None, "validation": 128, "test": 512}
"""Windows of a split, evenly spread over it; None: all. Validation runs in every epoch, and is bounded for that."""

IMPAIRED = TransformerVariant(width=16, heads=4, layers=(1, 1, 1), hidden=(16, 16, 16), attends=(False, False, False))

IntArray = npt.NDArray[np.int64]


def text(text_file: Path | None = None, depth: int = 1) -> Task:
    """A decoder whose layers cannot mix tokens: growing attention turns it from a bigram model into a language model.

    Each prediction sees the last character and nothing before it until a seed with attention grows. Over 150 epochs
    the bare host ends at 31 %, with ATTENTION in the first slot at 36 % and with FLEX_ATTENTION at 37 %; later slots
    gain less, and an MLP seed nothing but its rent.

    Args:
        text_file: UTF-8 text to model; by default the documentation topics of ``pydoc_data``.
        depth: Layers in each of the host's three segments; the slots stay where they are.

    Raises:
        TaskError: the file is missing, or too short to split, or a depth below 1.
    """
    return _text("text", IMPAIRED, text_file, depth)


def text_attending(text_file: Path | None = None, depth: int = 1) -> Task:
    """The host of :func:`text` with attention in every layer: it is best left alone, or nearly so.

    Args:
        text_file: As for :func:`text`.
        depth: As for :func:`text`.

    Raises:
        TaskError: as for :func:`text`.
    """
    return _text("text_attending", replace(IMPAIRED, attends=(True, True, True)), text_file, depth)


def _text(name: str, variant: TransformerVariant, text_file: Path | None, depth: int) -> Task:
    if depth < 1:
        raise TaskError(f"depth must be at least 1, got {depth}")
    variant = replace(variant, layers=(depth,) * len(variant.layers))
    splits, vocabulary = _corpus(text_file)
    return Task(
        name=name,
        host=TransformerHost(variant, vocabulary, CONTEXT),
        variants=(variant,),
        slots=SlotConfig.for_row(len(variant.layers)),
        num_classes=vocabulary,
        splits=splits,
        lr=0.3,
    )


@cache
def _corpus(text_file: Path | None) -> tuple[dict[SplitName, Split], int]:
    """Splits by position (80/10/10, no character in two of them), and the number of different characters.

    A file is read once per process.
    """
    if text_file is not None and not text_file.is_file():
        raise TaskError(f"text_file {text_file} is no file: give a UTF-8 text, or none for the default corpus")
    corpus = "\n".join(topics[name] for name in sorted(topics)) if text_file is None else _read(text_file)
    characters, codes = np.unique(np.frombuffer(corpus.encode("utf-32-le"), np.uint32), return_inverse=True)
    bounds = [0, int(0.8 * len(codes)), int(0.9 * len(codes)), len(codes)]
    if bounds[3] - bounds[2] <= CONTEXT:
        raise TaskError(
            f"text_file {text_file} has {len(codes)} characters: a tenth of them must be more than the context of "
            f"{CONTEXT}, so give a longer text"
        )
    names: tuple[SplitName, ...] = ("train", "validation", "test")
    parts = zip(names, bounds[:-1], bounds[1:], strict=True)
    splits = {name: _windows(codes[start:end].astype(np.int64), MAX_WINDOWS[name]) for name, start, end in parts}
    return splits, len(characters)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(
            f"text_file {path} is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}): convert it, for "
            "instance with iconv -t utf-8"
        ) from error
    except OSError as error:
        raise TaskError(f"text_file {path} cannot be read: {error.strerror}") from error


def _windows(codes: IntArray, limit: int | None) -> Split:
    """Neighbouring windows ``[n, CONTEXT]`` and, as labels, the same one character later."""
    count = (len(codes) - 1) // CONTEXT
    chosen = np.arange(count) if limit is None else np.unique(np.linspace(0, count - 1, min(limit, count)).astype(int))
    index = chosen[:, None] * CONTEXT + np.arange(CONTEXT)
    return Split(torch.from_numpy(codes[index]), torch.from_numpy(codes[index + 1]))
