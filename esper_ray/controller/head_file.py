"""Where a store's chain ends, in a file of its own: what SQLite loses without a word is missed then.

The file has two places that are written by turns, each with a checksum: if the machine stops while one is written,
the other one is whole.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from esper_ray.controller.chain import Broken, Head, digest
from esper_ray.keeping.writing import replace_bytes

HEAD_FILE = "controller.head"
PLACE = 4096
"""Bytes of each of the two places: no disk of today writes more at once, so that one that is torn leaves the other."""


class HeadFile:
    """The head of the chain beside it.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """Begin with that of an empty chain.

        Raises:
            UserError: it cannot be written.
        """
        replace_bytes(self.path, 2 * _written(Head()))

    def read(self) -> Head:
        """The head that was written last.

        Raises:
            OSError: there is no such file.
            Broken: nothing of it is whole.
        """
        return _newest(self.path.read_bytes())[1]

    def write(self, head: Head, *, durably: bool) -> None:
        """Put the head of now into the place of the older one; one that is newer stays.

        Args:
            head: Of what is committed.
            durably: Wait until it is on the disk; else the system brings it there in a while.

        Raises:
            OSError: it cannot be written.
            Broken: nothing of what is there is whole.
        """
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # an operator's order comes from another process
            place, last = _newest(os.pread(descriptor, 2 * PLACE, 0))
            if head.sequence > last.sequence:
                os.pwrite(descriptor, _written(head), (1 - place) * PLACE)
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # nobody waits for another one's disk
            if durably:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _written(head: Head) -> bytes:
    said = f"{head.sequence} {head.hash.hex()}"
    return f"{said} {digest((said,)).hex()}\n".encode().ljust(PLACE)


def _newest(content: bytes) -> tuple[int, Head]:
    found: list[tuple[int, int, Head]] = []
    for place in (0, 1):
        here = content[place * PLACE : (place + 1) * PLACE]
        try:
            sequence, hash_, _ = here.decode().split()
            head = Head(int(sequence), bytes.fromhex(hash_))
        except ValueError:
            continue
        if _written(head) == here:
            found.append((head.sequence, place, head))
    if not found:
        raise Broken("the head file cannot be read: neither of its two places is whole")
    _, place, head = max(found, key=lambda one: one[:2])
    return place, head
