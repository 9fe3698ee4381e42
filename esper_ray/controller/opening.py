"""Before a service writes into a store: it is as it was written, or it is refused."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from esper_ray.controller.chain import Broken, Head
from esper_ray.controller.head_file import HEAD_FILE, HeadFile
from esper_ray.controller.records import FILE, Records, StoreFailed, read_only
from esper_ray.controller.tables import PAGE


def check_whole(directory: Path) -> bool:
    """Read all that a store has, and change nothing of it. Where there is none its head file is made.

    Args:
        directory: Of the store, which nobody else opens to write meanwhile.

    Returns:
        Whether there is none yet.

    Raises:
        StoreFailed: it is not as it was written, or not of this version.
        UserError, OSError: it cannot be read, or the head file cannot be made.
    """
    path, head_file = directory / FILE, HeadFile(directory / HEAD_FILE)
    is_empty = not path.is_file() or path.stat().st_size == 0
    if is_empty and _beside(path, "-wal").exists():
        raise _refused(path, ["what was recorded is gone: there is a log, and the file that it belongs to has nothing"])
    if is_empty and not head_file.path.exists():
        head_file.create()
        return True
    try:
        if head_file.path.exists() and head_file.read() == Head() and _is_blank(path):
            return True  # the service before has ended as it began
    except Broken as error:
        raise _refused(path, [str(error)]) from error
    if is_empty or path.stat().st_size < PAGE:
        raise _refused(path, ["what was recorded is gone: the file has no whole page"])
    with Records.open(directory) as records:
        faults = records.faults()
    if faults:
        raise _refused(path, faults)
    return False


def _is_blank(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size < PAGE:
        return not path.is_file() or path.stat().st_size == 0
    if _beside(path, "-journal").exists():
        return True  # of the step into a log, before there were tables; later ones have the log, and no journal
    with closing(read_only(path)) as connection:
        return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _refused(path: Path, faults: list[str]) -> StoreFailed:
    more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    return StoreFailed(
        f"{path} is not as it was written, and was left alone: {faults[0]}{more}. Put a copy of its whole directory "
        "back, or give another directory; esper-ray control status lists all that is wrong, and --explain RUN shows "
        "what can still be read"
    )
