"""Arrays as text, for files of JSON that hold many numbers."""

from __future__ import annotations

import base64
import binascii
import io
import lzma
from typing import Any

import numpy as np
import numpy.typing as npt


def pack(array: npt.NDArray[Any]) -> str:
    """An array as one line of text, compressed; its type and shape are kept."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return base64.b64encode(lzma.compress(file.getvalue())).decode("ascii")


def unpack(text: str) -> npt.NDArray[Any]:
    """The inverse of :func:`pack`.

    Raises:
        ValueError: the text is something else.
    """
    try:
        content = lzma.decompress(base64.b64decode(text, validate=True))
        array: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    except (binascii.Error, lzma.LZMAError, ValueError, EOFError) as error:
        raise ValueError(f"this is no packed array: {error}") from error
    return array
