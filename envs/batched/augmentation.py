"""Random changes of the training images, drawn per member and applied to all members' batches in one gather."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class CropAndFlip:
    """Shift by up to ``padding`` pixels each way, and mirror left to right half of the time.

    The usual augmentation for small natural images (He et al. 2015, section 4.2). What a shift uncovers is 0: the
    mean colour of standardised images.

    Attributes:
        padding: Largest shift in pixels.
        flip: Whether to mirror; off for images whose left and right differ in meaning, such as digits.

    Raises:
        ValueError: a negative padding.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding must be 0 or more pixels, got {self.padding}")

    @property
    def _shifts(self) -> int:
        return 2 * self.padding + 1

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
        """One code per sample: which of all shifts and mirrorings it gets, each equally likely.

        Args:
            generator: Source of chance; one number is taken per sample.
            shape: Of the result.
        """
        return generator.integers(self._shifts**2 * (1 + self.flip), size=shape, dtype=np.int32)

    def gather(self, images: Tensor, index: Tensor, codes: Tensor) -> Tensor:
        """Pick images and change each by its code.

        Args:
            images: ``[n, H, W, C]``.
            index: ``[...]`` which images.
            codes: ``[...]`` from :meth:`draw`, on the same device.

        Returns:
            ``[..., H, W, C]``.
        """
        height, width = images.shape[1:3]
        code, across = codes.long(), torch.arange(width, device=images.device)
        mirrored = (code >= self._shifts**2)[..., None]
        down, right = code // self._shifts % self._shifts - self.padding, code % self._shifts - self.padding
        rows = torch.arange(height, device=images.device) + down[..., None]
        columns = torch.where(mirrored, width - 1 - across, across) + right[..., None]
        inside = _within(rows, height)[..., :, None, None] & _within(columns, width)[..., None, :, None]
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        return images[index[..., None, None], rows[..., :, None], columns[..., None, :]] * inside


def _within(position: Tensor, size: int) -> Tensor:
    return (position >= 0) & (position < size)
