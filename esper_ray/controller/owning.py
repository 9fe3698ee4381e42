"""A state directory belongs to one service at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from esper_ray.controller.records import StoreFailed

LOCK_FILE = ".lock"


def owned(directory: Path) -> IO[str]:
    """The lock of a directory, for as long as the file is open. The system lets go of it when this process ends.

    SQLite's log needs a local disk, so that the system's lock is enough, and no owner is left over after a crash.

    Raises:
        StoreFailed: another one has it.
        OSError: it cannot be written there.
    """
    file = (directory / LOCK_FILE).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise StoreFailed(
            f"{directory} is in use by another controller, process {owner}: stop it, or give another directory"
        ) from None
    except BaseException:
        file.close()
        raise
    return file
