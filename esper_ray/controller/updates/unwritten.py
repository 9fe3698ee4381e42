"""What is to be written of updates, kept until the disk has it."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock, RLock
from typing import Any

from esper_ray.controller.store import Store
from esper_ray.controller.updates import history
from esper_ray.controller.updates.verdicts import UpdateReason


class Unwritten:
    """Changes in their order. Adding one takes no time; writing them is a disk's matter.

    Args:
        store: To write to.

    Attributes:
        writing: Whoever writes holds it, and may hold it for longer.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._turn, self.writing = store, Lock(), RLock()
        self._changes: list[tuple[int, Mapping[str, Any]]] = []
        self._withdrawn: list[str] = []

    def change(self, sequence: int, columns: Mapping[str, Any]) -> None:
        """Something of an update is to be written."""
        with self._turn:
            self._changes.append((sequence, columns))

    def withdraw(self, envelope: str) -> None:
        """An update could not be written, so that it must not be in the store: nobody knows whether it is."""
        with self._turn:
            self._withdrawn.append(envelope)

    def forget(self, sequence: int) -> None:
        """Nothing more of an update is to be written; only for who holds :attr:`writing`."""
        with self._turn:
            self._changes = [change for change in self._changes if change[0] != sequence]

    def write(self) -> None:
        """Write all of it or nothing.

        Raises:
            StoreFailed: nothing was written; it stays to be.
        """
        with self.writing:
            with self._turn:
                changes, withdrawn = list(self._changes), list(self._withdrawn)
            if not changes and not withdrawn:
                return
            with self._store.transaction() as connection:
                for envelope in withdrawn:
                    history.withdraw(connection, envelope, UpdateReason.STORE_FAILED)
                for sequence, columns in changes:
                    history.change(connection, sequence, **columns)
            with self._turn:
                del self._changes[: len(changes)], self._withdrawn[: len(withdrawn)]
