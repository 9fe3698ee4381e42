"""A store's files, and what can become of them."""

import random

from esper_ray.controller.head_file import HEAD_FILE
from esper_ray.controller.opening import check_whole
from esper_ray.controller.records import FILE, Records, StoredRun, StoreFailed
from esper_ray.controller.store import Store, give_order
from tests.esper_ray.controller.test_store import decision

LOG = f"{FILE}-wal"
NAMES = (FILE, LOG, HEAD_FILE)


def filled(directory, count=6):
    """The files of a store at work, half of which is in its log; and what it holds."""
    with Store(directory) as store:
        for at in range(count):
            state = StoredRun(memory=b"m%d" % at, hidden=bytes([at]) * 40)
            store.record(decision(at, ("run", "other")[at % 2], packet=bytes([at]) * 3000, log_prob=-at / 7), state)
            store.mark_sent(f"run {at}")
            if at % 3 == 0:
                store.attach_result(f"run {at}", b"applied")
            if at == count // 2:
                give_order(directory, "run", paused=True)
                store.checkpoint()
        return {name: (directory / name).read_bytes() for name in NAMES}, content_of(directory)


def content_of(directory):
    with Records.open(directory) as records:
        runs = records.runs()
        return [(run, records.state(run), records.order(run), list(records.records(run))) for run in runs]


def put(directory, files):
    for name in (*NAMES, f"{FILE}-shm"):
        (directory / name).unlink(missing_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)


def is_whole(directory, files, content):
    """Whether a store is; if not it must be refused in a line, and left as it is."""
    put(directory, files)
    try:
        is_new, refused = check_whole(directory), ""
    except StoreFailed as error:
        is_new, refused = False, str(error)
    assert not is_new, "it is not taken for a new one"
    if refused:
        assert "\n" not in refused
        assert {name: (directory / name).read_bytes() for name in files} == files
        return False
    assert content_of(directory) == content, "silently less or other"
    return True


def cut(files, name, length):
    return {**files, name: files[name][:length]}


def flipped(files, name, at, bit):
    content = bytearray(files[name])
    content[at] ^= 1 << bit
    return {**files, name: bytes(content)}


def flips(files, name, count, seed=0):
    """Places and bits, drawn."""
    draw = random.Random(f"{name} {seed}")
    return [(draw.randrange(len(files[name])), draw.randrange(8)) for _ in range(count)]
