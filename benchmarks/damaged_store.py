"""The files of a controller's store, what can become of them, and whether it is whole then."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from esper_ray.controller.head_file import HEAD_FILE
from esper_ray.controller.opening import check_whole
from esper_ray.controller.records import FILE, Decision, Order, Record, Records, StoredRun, StoreFailed, Unreadable
from esper_ray.controller.store import Store, give_order

LOG = f"{FILE}-wal"
NAMES = (FILE, LOG, HEAD_FILE)

Files = Mapping[str, bytes]
Content = list[tuple[str, StoredRun | None, Order, list[Record | Unreadable]]]


def some_decision(at: int, run_id: str = "run", packet: bytes = b"packet") -> Decision:
    """A decision on an epoch; its command's id is of run and epoch."""
    return Decision(
        run_id=run_id,
        packet_id=str(at),
        epoch=at,
        command_id=f"{run_id} {at}",
        decided_at_ns=at,
        level="GREEN",
        policy_version="heuristic",
        action=(1, 0, 2),
        log_prob=-at / 7,
        proposal=b"proposal",
        mask=(1, 0, 1),
        signals=b"[]",
        breakers=b"{}",
        command=b"command",
        packet=packet,
    )


def filled(directory: Path, count: int = 6) -> tuple[dict[str, bytes], Content]:
    """The files of a store at work, half of which is in its log; and what it holds."""
    with Store(directory) as store:
        for at in range(count):
            state = StoredRun(memory=b"m%d" % at, hidden=bytes([at]) * 40)
            store.record(some_decision(at, ("run", "other")[at % 2], bytes([at]) * 3000), state)
            store.mark_sent(f"run {at}")
            if at % 3 == 0:
                store.attach_result(f"run {at}", b"applied")
            if at == count // 2:
                give_order(directory, "run", paused=True)
                store.checkpoint()
        return {name: (directory / name).read_bytes() for name in NAMES}, content_of(directory)


def content_of(directory: Path) -> Content:
    """All that can be read of a store."""
    with Records.open(directory) as records:
        return [(run, records.state(run), records.order(run), list(records.records(run))) for run in records.runs()]


def put(directory: Path, files: Files) -> None:
    """Make these the files of a store."""
    for name in (*NAMES, f"{FILE}-shm"):
        (directory / name).unlink(missing_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)


def is_whole(directory: Path, files: Files, content: Content) -> bool:
    """Whether a store of these files is as it was written.

    Raises:
        AssertionError: it is less or other without a word, or what was refused was changed.
    """
    put(directory, files)
    try:
        is_new, refused = check_whole(directory), ""
    except StoreFailed as error:
        is_new, refused = False, str(error)
    assert not is_new, "it is taken for a new one"
    if refused:
        assert "\n" not in refused, refused
        assert {name: (directory / name).read_bytes() for name in files} == files, "what was refused was changed"
        return False
    assert content_of(directory) == content, "it is silently less or other"
    return True


def cut(files: Files, name: str, length: int) -> dict[str, bytes]:
    """The files, one of which ends early."""
    return {**files, name: files[name][:length]}


def flipped(files: Files, name: str, at: int, bit: int) -> dict[str, bytes]:
    """The files, one of which has another bit."""
    content = bytearray(files[name])
    content[at] ^= 1 << bit
    return {**files, name: bytes(content)}


def flips(files: Files, name: str, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Places and bits of a file, drawn."""
    draw = random.Random(f"{name} {seed}")
    return [(draw.randrange(len(files[name])), draw.randrange(8)) for _ in range(count)]
