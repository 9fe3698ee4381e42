"""Who works in a directory: one process at a time, and which."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from esper_ray.errors import UserError
from esper_ray.keeping.writing import make_directories, remove_empty, writing
from esper_ray.reading import checked, parse_json

LOCK_FILE = ".lock"


@dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
        host: Name of its machine.
        pid: Its number there.
        started: When, in clock ticks since that machine's start, which tells it from a later process of the same
            number; None where the system does not say it.
    """

    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    started: int | None

    @classmethod
    def this(cls) -> Owner:
        """The one that runs this."""
        return cls(socket.gethostname(), os.getpid(), _start(os.getpid()))

    def is_dead(self) -> bool:
        """Whether it has ended; only its own machine can tell."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it is somebody else's
        return _start(self.pid) != self.started


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keep other processes out of a directory, which is made if it is not there; what was made and stays empty goes.

    Raises:
        UserError: another process has it, or it cannot be written.
    """
    made = make_directories(directory)
    try:
        with locked(directory / LOCK_FILE, directory):
            yield
    finally:
        remove_empty(made)


@contextmanager
def locked(lock: Path, what: Path) -> Iterator[None]:
    """Hold a lock file. One whose owner died on this machine is taken over.

    Args:
        lock: The file; it says who the owner is.
        what: Is locked by it, for messages.

    Raises:
        UserError: another process holds it, or may hold it on another machine; or it cannot be written.
    """
    with writing(lock):
        while not (_made(lock) or _taken_over(lock, what)):
            pass  # its owner gave it back meanwhile
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _made(lock: Path) -> bool:
    try:
        file = lock.open("x")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(dumps(asdict(Owner.this())))
    except OSError:
        lock.unlink()
        raise
    return True


def _taken_over(lock: Path, what: Path) -> bool:
    """Take the lock of a process that is dead; false if the file is another one, or gone, by now."""
    try:
        file = lock.open("r+", errors="replace")
    except FileNotFoundError:
        return False
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # among those that find the same dead owner
        _refuse_living(file.read(), lock, what)
        file.seek(0)
        file.truncate()
        file.write(dumps(asdict(Owner.this())))
        file.flush()
        # Whoever read the owner's name, then saw it die, may have come after its last act, which removed the file.
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file.fileno()), lock.stat())
        return False


def _refuse_living(content: str, lock: Path, what: Path) -> None:
    by_hand = f"if no other esper-ray works there, remove {lock}"
    unknown = f"{what} may be in use: {lock} does not say by whom; {by_hand}"
    owner = checked(parse_json(content, f"{unknown}: it"), TypeAdapter(Owner), unknown)
    if owner.is_dead():
        return
    by = f"{what} is in use by process {owner.pid} on {owner.host}"
    if owner.host == socket.gethostname():
        raise UserError(f"{by}: wait until it ends, or stop it")
    raise UserError(f"{by}, and whether that still runs cannot be seen from here: {by_hand}")


def _start(pid: int) -> int | None:
    """When a process started; None if it has ended, or where the system does not say it."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(fields[18])
