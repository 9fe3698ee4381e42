"""One process works in a directory, whoever else starts, and however the one before ended."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from multiprocessing import get_context

import pytest

from esper_ray.errors import UserError
from esper_ray.keeping.lock import LOCK_FILE, Owner, held
from tests.esper_ray.keeping.places import read_only

HOLDS = "import sys, time; from pathlib import Path; from esper_ray.keeping.lock import held\n"
HOLDS += "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``tmp_path / "run"``."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def refusal(directory):
    with pytest.raises(UserError) as refused, held(directory):
        pass
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_directory_that_a_living_process_holds_is_refused_with_its_owner(holder, tmp_path):
    said = refusal(tmp_path / "run")
    assert f"in use by process {holder.pid} on {socket.gethostname()}" in said
    assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == holder.pid
    holder.send_signal(signal.SIGINT)  # it goes as by Ctrl-C, and gives the directory back
    holder.wait()
    assert not (tmp_path / "run").exists()


def test_a_process_cannot_hold_what_it_holds(tmp_path):
    with held(tmp_path):
        assert f"process {os.getpid()}" in refusal(tmp_path)


@pytest.mark.parametrize("reaped", [True, False])
def test_what_a_killed_process_held_is_taken_over(holder, tmp_path, reaped):
    holder.kill()
    if reaped:
        holder.wait()
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, but its parent has not asked yet
    with held(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run" / LOCK_FILE).exists()


@pytest.mark.skipif(Owner.this().started is None, reason="the system does not say when processes started")
def test_a_later_process_of_the_same_number_is_another_one(tmp_path):
    me = asdict(Owner.this())
    (tmp_path / LOCK_FILE).write_text(json.dumps(me | {"started": me["started"] - 1}))
    with held(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text()) == me


OWNERS = ['{"host": "elsewhere", "pid": 1, "started": 5}', "", "{", "\xff\xfe", "[" * 100_000, '{"pid": 1}']
OWNERS += [f'{{"host": "{socket.gethostname()}", "pid": {pid}, "started": 5}}' for pid in (10**30, 2**31, 0, -1)]


@pytest.mark.parametrize("content", OWNERS, ids=range(len(OWNERS)))
def test_where_it_cannot_be_known_the_file_to_remove_is_named_and_kept(tmp_path, content):
    lock = tmp_path / LOCK_FILE
    lock.write_text(content, encoding="latin-1")
    said = refusal(tmp_path)
    assert f"remove {lock} is not" not in said
    assert f"if no other esper-ray works there, remove {lock}" in said
    assert ("process 1 on elsewhere" in said) == ("elsewhere" in content)
    assert lock.read_text(encoding="latin-1") == content


def _hold(directory, ready, over, won):
    ready.wait()
    try:
        with held(directory):
            won.put(os.getpid())
            over.wait()
    except UserError:
        over.wait()


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_start_at_once_one_wins(tmp_path, stale):
    context, crowd = get_context("fork"), 6
    for attempt in range(10):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        if stale:
            dead = subprocess.Popen([sys.executable, "-S", "-c", ""])
            dead.wait()
            (directory / LOCK_FILE).write_text(json.dumps(asdict(Owner(socket.gethostname(), dead.pid, 1))))
        ready, over, won = context.Barrier(crowd), context.Barrier(crowd), context.SimpleQueue()
        processes = [context.Process(target=_hold, args=(directory, ready, over, won)) for _ in range(crowd)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        won.get()
        assert won.empty()
        assert not list(directory.iterdir())


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    with read_only(tmp_path / "disk") as disk:
        for directory in (disk, disk / "deeper"):
            assert f"cannot write {directory}" in refusal(directory)
