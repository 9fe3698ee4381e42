"""Named parameters of many members in one flat ``[M, P]`` tensor: one gradient, one optimiser step, one snapshot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Init(Enum):
    """How a parameter starts."""

    ZEROS = "zeros"
    ONES = "ones"
    HE = "he"  # normal with variance 2 / fan-in, for what feeds a ReLU (He et al. 2015)
    UNIFORM = "uniform"  # within ±1/√fan-in, for linear outputs


@dataclass(frozen=True)
class ParameterSpec:
    """Shape of one member's parameter and how it starts; fan-in is everything but the first axis.

    Attributes:
        shape: Of one member's values.
        init: How they start.
        level: Internal level of the seed from which on the parameter takes part; 0 where it always does.
    """

    shape: tuple[int, ...]
    init: Init
    level: int = 0

    @property
    def size(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    def draw(self, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Fresh values; constants take nothing from the generator."""
        fan_in = max(1, math.prod(self.shape[1:]))
        if self.init is Init.HE:
            return rng.normal(0.0, math.sqrt(2.0 / fan_in), self.shape).astype(np.float32)
        if self.init is Init.UNIFORM:
            return rng.uniform(-1.0, 1.0, self.shape).astype(np.float32) / np.float32(math.sqrt(fan_in))
        return np.full(self.shape, 1.0 if self.init is Init.ONES else 0.0, np.float32)


ParameterSpecs = dict[str, ParameterSpec]


def count_parameters(specs: ParameterSpecs, level: int | None = None) -> int:
    """Number of scalars in all parameters together, or in those that take part at an internal level."""
    return sum(spec.size for spec in specs.values() if level is None or spec.level <= level)


def matrix_flops(specs: ParameterSpecs, places: int, level: int | None = None) -> int:
    """FLOPs of applying every matrix and every kernel once at each of ``places`` pixels, tokens or vectors.

    Args:
        specs: Parameters of one member; those of one axis (biases, norms) count nothing.
        places: Where each is applied.
        level: As in :func:`count_parameters`.
    """
    matrices = {name: spec for name, spec in specs.items() if len(spec.shape) > 1}
    return 2 * places * count_parameters(matrices, level)


def packed(values: Tensor) -> Tensor:
    """Some members' values of one parameter, ``[M, *shape]``, in the order in which they are trained.

    Kernels ``[M, C_out, C_in, k, k]`` become ``[M, k, k, C_in, C_out]``, as the compiled convolution reads them.
    """
    return values.permute(0, 3, 4, 2, 1) if values.dim() == 5 else values


def unpacked(values: Tensor) -> Tensor:
    """The inverse of :func:`packed`, a view."""
    return values.permute(0, 4, 3, 1, 2) if values.dim() == 5 else values


class ParameterLayout:
    """Where each named parameter lies in a flat row.

    A population may mix members of different sizes: its layout is the widest, and a smaller member's values fill
    the leading corner of each axis (a smaller kernel: the centre), the rest being 0 for ever.
    """

    def __init__(self, specs: ParameterSpecs) -> None:
        self.specs = specs
        self.sizes = [spec.size for spec in specs.values()]
        self.size = sum(self.sizes)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """``[M, P]`` → name → ``[M, *shape]``; gradients of all views return in one concatenation."""
        pieces = torch.split(flat, self.sizes, dim=1)
        return {
            name: piece.unflatten(1, spec.shape) if spec.shape else piece.squeeze(1)
            for (name, spec), piece in zip(self.specs.items(), pieces, strict=True)
        }

    def draw(self, specs: ParameterSpecs, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """A fresh row ``[P]`` for a member whose own sizes are ``specs``."""
        return self._embed({name: spec.draw(rng) for name, spec in specs.items()})

    def present(self, specs: ParameterSpecs) -> npt.NDArray[np.float32]:
        """``[P]``: 1 where a member of sizes ``specs`` has a parameter, else 0."""
        return self._embed({name: np.ones(spec.shape, np.float32) for name, spec in specs.items()})

    def _embed(self, values: dict[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        rows = []
        for name, wide in self.specs.items():
            target = np.zeros(wide.shape, np.float32)
            target[corner(wide.shape, values[name].shape)] = values[name]
            rows.append(target.reshape(-1))
        return np.concatenate(rows)

    def norms(self, flat: Tensor) -> Tensor:
        """Euclidean norm of each parameter, ``[M, P]`` → ``[M, num_parameters]``."""
        pieces = flat.split(self.sizes, dim=1)
        return torch.stack([torch.linalg.vector_norm(piece, dim=1) for piece in pieces], dim=1)

    @cached_property
    def _segments(self) -> Tensor:
        return torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))

    def spread(self, per_parameter: Tensor) -> Tensor:
        """A value per parameter, ``[M, num_parameters]``, repeated for each of its scalars: ``[M, P]``."""
        return per_parameter[:, self._segments.to(per_parameter.device)]


def corner(wide: tuple[int, ...], narrow: tuple[int, ...]) -> tuple[slice, ...]:
    """Where a ``narrow`` array lies in a ``wide`` one: leading corner, kernels centred.

    Args:
        wide: Shape.
        narrow: Shape.

    Raises:
        ValueError: the narrow one does not fit.
    """
    if len(wide) != len(narrow) or any(n > w for n, w in zip(narrow, wide, strict=True)):
        raise ValueError(f"a parameter of shape {narrow} does not fit into the population's {wide}")
    spatial = len(wide) - 2 if len(wide) == 4 else len(wide)
    starts = [(w - n) // 2 if axis >= spatial else 0 for axis, (w, n) in enumerate(zip(wide, narrow, strict=True))]
    return tuple(slice(start, start + n) for start, n in zip(starts, narrow, strict=True))
