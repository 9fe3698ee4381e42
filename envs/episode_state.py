"""What lives for one episode, and how it starts anew.

Whatever holds such state is an :class:`EpisodeState`, and a reset walks all of them. Arrays are declared once:
they are made from their declaration and start anew from it, so that none can be left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


class EpisodeState(ABC):
    """Something of N hosts that must not outlive their episodes."""

    @abstractmethod
    def start(self, hosts: IntArray) -> None:
        """Begin an episode of these hosts (``[m]`` indices): as if they had never had another one."""


@dataclass(frozen=True)
class _Declared:
    """An array's shape behind the hosts, and what it holds when an episode starts."""

    begins: bool | int | float
    shape: tuple[int, ...]
    per_slot: bool


def per_host(begins: bool | int | float, *shape: int) -> Any:
    """Declare an array ``[N, *shape]`` of :class:`EpisodeArrays`; its type is that of ``begins``."""
    return _Declared(begins, shape, per_slot=False)


def per_slot(begins: bool | int | float) -> Any:
    """Declare an array ``[N, S]`` of :class:`EpisodeArrays`; its type is that of ``begins``."""
    return _Declared(begins, (), per_slot=True)


class EpisodeArrays(EpisodeState):
    """Arrays of N hosts, or of their S slots, that a subclass declares with :func:`per_host` and :func:`per_slot`.

    Args:
        num_hosts: N.
        num_slots: S; of no meaning where nothing is declared per slot.
    """

    _declared: ClassVar[dict[str, _Declared]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = {name: value for name, value in vars(cls).items() if isinstance(value, _Declared)}
        cls._declared = cls._declared | own

    def __init__(self, num_hosts: int, num_slots: int = 0) -> None:
        for name, declared in self._declared.items():
            shape = (num_hosts, num_slots) if declared.per_slot else (num_hosts, *declared.shape)
            begins = declared.begins if isinstance(declared.begins, bool | float) else int(declared.begins)
            setattr(self, name, np.full(shape, begins))

    def start(self, hosts: IntArray) -> None:
        """See :class:`EpisodeState`."""
        for name, declared in self._declared.items():
            getattr(self, name)[hosts] = declared.begins

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of all that is declared, by name."""
        return {name: getattr(self, name).copy() for name in self._declared}

    def set_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what :meth:`arrays` gave.

        Raises:
            ValueError: arrays of other names or shapes.
        """
        for name in self._declared:
            if name not in arrays or arrays[name].shape != getattr(self, name).shape:
                raise ValueError(f"{type(self).__name__} has no array {name!r} of shape {getattr(self, name).shape}")
        for name in self._declared:
            setattr(self, name, arrays[name].astype(getattr(self, name).dtype))

    def _empty(self, slots: BoolArray | tuple[IntArray, IntArray]) -> None:
        """Give everything that is declared per slot its first value in these slots (``[N, S]``, or their indices)."""
        for name, declared in self._declared.items():
            if declared.per_slot:
                getattr(self, name)[slots] = declared.begins
