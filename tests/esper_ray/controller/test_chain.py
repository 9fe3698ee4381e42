"""Whatever becomes of a store's files, it is whole or refused: never silently less, never silently other."""

import sqlite3
import struct
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.damaged_store import LOG, NAMES, content_of, cut, filled, flipped, flips, is_whole, put
from benchmarks.full_disk import files_of_at_most
from esper_ray.controller.chain import GENESIS, Broken, Head, digest
from esper_ray.controller.head_file import HEAD_FILE, PLACE, HeadFile
from esper_ray.controller.records import FILE, Record, Records, Unreadable, read_only
from esper_ray.controller.store import Store, give_order
from esper_ray.controller.tables import PAGE
from tests.esper_ray.controller.test_store import CALM, decision, refusal

CUTS, FLIPS = 30, 40
"""Of each file here; ``python -m benchmarks.damage`` makes more."""
VALUES = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    """The same after its service has ended: all is in the file."""
    directory = tmp_path_factory.mktemp("rest")
    _, content = filled(directory)
    assert not (directory / LOG).exists()
    return {name: (directory / name).read_bytes() for name in (FILE, HEAD_FILE)}, content


def test_a_store_at_work_is_whole(tmp_path, store):
    files, content = store
    assert is_whole(tmp_path, files, content)
    with Store(tmp_path):
        assert [run for run, *_ in content_of(tmp_path)] == ["run", "other"]


@pytest.mark.parametrize("name", NAMES)
def test_cut_files_are_whole_or_refused(tmp_path, store, name):
    files, content = store
    length = len(files[name])
    found = [
        is_whole(tmp_path, cut(files, name, at), content)
        for at in sorted({0, 1, 4096, length - 1, *range(length // CUTS, length, length // CUTS)})
        if at < length
    ]
    assert not all(found), "most cuts lose something"


@pytest.mark.parametrize("name", NAMES)
def test_flipped_bits_are_harmless_or_refused(tmp_path, store, name):
    files, content = store
    found = [is_whole(tmp_path, flipped(files, name, at, bit), content) for at, bit in flips(files, name, FLIPS)]
    assert name == HEAD_FILE or not all(found)


def test_a_store_at_rest_that_is_cut_or_has_flipped_bits_is_whole_or_refused(tmp_path, rest):
    files, content = rest
    assert is_whole(tmp_path, files, content)
    length = len(files[FILE])
    assert not any(is_whole(tmp_path, cut(files, FILE, length - at), content) for at in (1, 100, 4096, 5000))
    found = [is_whole(tmp_path, flipped(files, FILE, *one), content) for one in flips(files, FILE, FLIPS)]
    assert set(found) == {True, False}, "a bit of a record is missed in no place, one of free space in each"


@pytest.mark.parametrize("name", NAMES)
def test_without_one_of_its_files_a_store_is_refused(tmp_path, store, name):
    files, content = store
    assert not is_whole(tmp_path, {other: there for other, there in files.items() if other != name}, content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda files: cut(files, LOG, 0), "what was recorded last is gone: the chain ends with"),
        (lambda files: cut(files, FILE, 0), "what was recorded is gone"),
        (lambda files: {FILE: files[FILE], LOG: files[LOG]}, "controller.head is gone"),
        (lambda files: cut(files, HEAD_FILE, 3), "neither of its two places is whole"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_what_to_do(tmp_path, store, damage, said):
    put(tmp_path, damage(store[0]))
    line = refusal(lambda: Store(tmp_path))
    assert said in line
    assert "was left alone" in line
    assert "Put a copy of its whole directory back, or give another directory" in line


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("UPDATE decisions SET log_prob = 0 WHERE sequence = 3", "row 3 of decisions is not as it was written"),
        ("UPDATE deliveries SET fate = 'withheld' WHERE sequence = 4", "row 4 of deliveries is not"),
        ("DELETE FROM decisions WHERE sequence = 2", "row 2 of decisions is gone"),
        ("DELETE FROM runs WHERE run_id = 'other'", "row other of runs is gone"),
        ("UPDATE orders SET paused = 0", "row run of orders is not as it was written"),
        ("INSERT INTO orders VALUES ('new', 0, 1)", "row new of orders was written by no controller"),
        ("DELETE FROM chain WHERE sequence = 5", "entries 5 to 5 of the chain are gone"),
        ("UPDATE chain SET digest = hash WHERE sequence = 5", "entry 5 of the chain is not as it was written"),
        ("DROP INDEX chain_of_rows", "its tables are not as they were made"),
    ],
)
def test_what_was_changed_is_found_at_its_place_and_hides_nothing(tmp_path, store, change, where):
    files, content = store
    put(tmp_path, files)
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
        connection.execute(change)
    with Records.open(tmp_path) as records:
        assert any(where in fault for fault in records.faults())
        found = {run: list(records.records(run)) for run, *_ in content}
    for run, _, _, before in content:
        read = [record for record in found[run] if isinstance(record, Record)]
        assert [record.sequence for record in found[run]] == [record.sequence for record in before]
        assert len(before) - len(read) <= 1
        assert all(record in before for record in read)
    assert "is not as it was written, and was left alone" in refusal(lambda: Store(tmp_path))


def test_a_table_whose_name_for_a_column_is_no_text_is_refused(tmp_path, rest):
    files, content = rest
    at = files[FILE].index(b"memory BLOB NOT NULL,")
    assert not is_whole(tmp_path, flipped(files, FILE, at, 7), content)
    with Records.open(tmp_path) as records:
        refusal(lambda: records.state("run"))


def test_a_state_or_an_order_that_was_changed_is_not_gone_by(tmp_path):
    with Store(tmp_path) as store:
        store.record(decision(), CALM)
        give_order(tmp_path, "run", paused=True)
        with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
            connection.execute("UPDATE orders SET paused = 0")
            connection.execute("UPDATE runs SET memory = x'00'")
            connection.execute("DELETE FROM decisions")
        assert "row run of orders is not as it was written" in refusal(lambda: store.order("run"))
        assert "row run of runs is not as it was written" in refusal(lambda: store.state("run"))
        assert isinstance(store.latest("run"), Unreadable)


def test_where_the_head_cannot_be_written_the_command_does_not_leave_and_nothing_is_lost(tmp_path):
    with Store(tmp_path) as store:
        store.record(decision(0), CALM)
        head = (tmp_path / HEAD_FILE).read_bytes()
        (tmp_path / HEAD_FILE).rename(tmp_path / "away")
        assert f"cannot write {tmp_path / HEAD_FILE}" in refusal(lambda: store.record(decision(1), CALM))
        (tmp_path / "away").rename(tmp_path / HEAD_FILE)
        assert (tmp_path / HEAD_FILE).read_bytes() == head
        assert not store.abort("run 1"), "nothing of it was written"
        store.record(decision(2), CALM)
    with Store(tmp_path) as store:
        assert [record.decision.epoch for record in store.records("run")] == [0, 2]


def test_a_disk_that_is_full_leaves_a_store_that_opens(tmp_path):
    with Store(tmp_path) as store:
        store.record(decision(0), CALM)
        with files_of_at_most(1):
            refusal(lambda: store.record(decision(1), CALM))
            refusal(lambda: store.mark_sent("run 0"))
        store.record(decision(2), CALM)
    with Store(tmp_path) as store:
        assert [record.decision.epoch for record in store.records("run")] == [0, 2]
        assert store.faults() == []


def test_a_service_that_ended_before_it_made_its_tables_left_nothing_to_lose(tmp_path):
    HeadFile(tmp_path / HEAD_FILE).create()
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    with Store(tmp_path) as store:
        store.record(decision(), CALM)
    with Store(tmp_path) as store:
        assert len(list(store.records("run"))) == 1


def test_a_first_start_that_was_cut_off_within_the_step_into_a_log_left_nothing_to_lose(tmp_path):
    """SQLite's journal of its first page lies there still, hot, and whoever may only read cannot roll it back."""
    HeadFile(tmp_path / HEAD_FILE).create()
    path = tmp_path / FILE
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE}")
        connection.execute("PRAGMA journal_mode = WAL")
    # https://sqlite.org/fileformat2.html: magic, records, nonce, pages before, sector, page
    header = bytes.fromhex("d9d505f920a163d7") + struct.pack(">5I", 0, 1, 0, 512, PAGE)
    path.with_name(f"{FILE}-journal").write_bytes(header.ljust(512, bytes(1)))
    with closing(read_only(path)) as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    with Store(tmp_path) as store:
        store.record(decision(), CALM)
    with Store(tmp_path) as store:
        assert store.faults() == []


def test_an_order_does_not_hide_what_a_store_has_lost(tmp_path):
    with Store(tmp_path) as store:
        for at in range(4):
            store.record(decision(at), CALM)
        log = (tmp_path / f"{FILE}-wal").read_bytes()
        kept = {name: (tmp_path / name).read_bytes() for name in (FILE, HEAD_FILE)}
    for name, content in {**kept, f"{FILE}-wal": log[: 2 * len(log) // 3]}.items():
        (tmp_path / name).write_bytes(content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if not path.name.endswith("-shm")}
    for _ in range(6):
        assert "what was recorded last is gone" in refusal(lambda: give_order(tmp_path, "run", paused=True))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if not path.name.endswith("-shm")} == before
    assert "what was recorded last is gone" in refusal(lambda: Store(tmp_path))


def test_a_log_without_its_file_and_head_is_refused(tmp_path):
    with Store(tmp_path) as store:
        store.record(decision(), CALM)
        log = (tmp_path / f"{FILE}-wal").read_bytes()
    for path in list(tmp_path.iterdir()):
        path.unlink()
    (tmp_path / f"{FILE}-wal").write_bytes(log)
    assert "what was recorded is gone" in refusal(lambda: Store(tmp_path))
    assert (tmp_path / f"{FILE}-wal").read_bytes() == log


def test_a_head_file_keeps_the_newest_whichever_place_is_torn(tmp_path):
    file = HeadFile(tmp_path / HEAD_FILE)
    file.create()
    assert file.read() == Head()
    heads = [Head(at, bytes([at]) * 32) for at in range(1, 6)]
    for head in heads:
        file.write(head, durably=head.sequence == 3)
        assert file.read() == head
    file.write(heads[2], durably=True)
    assert file.read() == heads[-1], "it never goes back"
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[: PLACE + 9].ljust(2 * PLACE))
    torn = file.read()
    file.path.write_bytes(bytes(PLACE) + whole[PLACE:])
    assert {torn, file.read()} == {heads[-1], heads[-2]}
    file.path.write_bytes(bytes(2 * PLACE))
    with pytest.raises(Broken):
        file.read()


@given(st.lists(VALUES, max_size=5), st.lists(VALUES, max_size=5))
def test_no_two_rows_share_a_digest(one, other):
    assert (digest(one) == digest(other)) == (repr(one) == repr(other))
    assert len(digest(one)) == len(GENESIS)
