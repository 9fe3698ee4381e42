"""A store is bounded, survives whatever happens to its writer, and gives every step back as it was recorded."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.strategic.replay_store import Episode, Index, Replay, ReplayStore, held_out, minibatches
from tests.places import ROOT

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def episode(host, length, width=3):
    """One whose every number says which step it is of."""
    marks = torch.arange(length) + 1000 * host
    return Episode(host, {"x": marks.float().unsqueeze(1).expand(-1, width).clone(), "y": marks})


def recorded(path, *appends, capacity=10_000, world="w"):
    """A store with appends, each a list of lengths; hosts are numbered on."""
    store, host = ReplayStore(path, capacity), 0
    for lengths in appends:
        store.append(world, "someone", [episode(host + at, length) for at, length in enumerate(lengths)])
        host += len(lengths)
    return store


def marks(path, world="w"):
    return Replay.open(path).worlds[world].column("y").tolist()


@settings(max_examples=40, deadline=None)
@given(st.lists(LENGTHS, min_size=1, max_size=6), st.integers(36, 60))
def test_a_store_keeps_the_newest_whole_shards_that_there_is_room_for(tmp_path_factory, appends, capacity):
    path = tmp_path_factory.mktemp("s")
    recorded(path, *appends, capacity=capacity)
    sizes = [sum(lengths) for lengths in appends]
    kept = max(k for k in range(len(sizes) + 1) if sum(sizes[len(sizes) - k :]) <= capacity)
    first = sum(len(lengths) for lengths in appends[: len(appends) - kept])
    lengths = [length for of in appends[len(appends) - kept :] for length in of]
    wanted = [1000 * (first + at) + step for at, length in enumerate(lengths) for step in range(length)]
    assert marks(path) == wanted
    assert len(list(path.glob("*.safetensors"))) == kept
    assert Index.read(path).steps == len(wanted) <= capacity


@settings(max_examples=40, deadline=None)
@given(st.lists(LENGTHS, min_size=1, max_size=4), st.data())
def test_rows_come_back_in_the_order_in_which_they_are_asked_for(tmp_path_factory, appends, data):
    path = tmp_path_factory.mktemp("s")
    recorded(path, *appends)
    record = Replay.open(path).worlds["w"]
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(record) - 1), min_size=1, max_size=12)))
    taken = record.take(rows)
    assert taken["y"].tolist() == record.column("y")[rows].tolist()
    assert torch.equal(taken["x"][:, 0], taken["y"].float())
    at = data.draw(st.integers(0, len(record.hosts) - 1))
    assert (record.column("y")[record.rows_of([at])] // 1000).unique().tolist() == [record.hosts[at]]


def test_more_than_there_is_room_for_is_refused_and_nothing_is_lost(tmp_path):
    store = recorded(tmp_path, [5], capacity=8)
    with pytest.raises(ValueError, match=r"9 steps do not fit .* holds 8 at most"):
        store.append("w", "someone", [episode(1, 9)])
    assert marks(tmp_path) == list(range(5))


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ({}, "needs as many steps, at least one, got none"),
        ({"x": torch.zeros(0, 3), "y": torch.zeros(0, dtype=torch.int64)}, "at least one"),
        ({"x": torch.zeros(2, 3), "y": torch.zeros(3, dtype=torch.int64)}, "got x 2, y 3"),
        ({"x": torch.zeros(2, 4), "y": torch.zeros(2, dtype=torch.int64)}, r"x is torch.float32 \[4\], but"),
        ({"x": torch.zeros(2, 3), "y": torch.zeros(2)}, r"y is torch.float32 \[\], but"),
        ({"x": torch.zeros(2, 3)}, "y is absent, but"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, steps, problem):
    store = recorded(tmp_path, [2])
    with pytest.raises(ValueError, match=problem):
        store.append("w", "someone", [Episode(1, steps)])
    assert marks(tmp_path) == [0, 1]


def test_a_store_keeps_its_capacity(tmp_path):
    recorded(tmp_path, [5], capacity=8)
    assert ReplayStore(tmp_path).capacity == ReplayStore(tmp_path, 8).capacity == 8
    with pytest.raises(ValueError, match="was made to hold 8 steps at most, not 9"):
        ReplayStore(tmp_path, 9)


def test_another_world_may_have_other_columns(tmp_path):
    store = recorded(tmp_path, [2])
    store.append("v", "someone", [episode(7, 3, width=5)])
    worlds = Replay.open(tmp_path).worlds
    assert {name: of.column("x").shape for name, of in worlds.items()} == {"w": (2, 3), "v": (3, 5)}


WRITER = """
import sys, torch
from pathlib import Path
from policies.strategic.replay_store import Episode, ReplayStore
store = ReplayStore(Path(sys.argv[1]), int(sys.argv[2]))
for host in range(int(sys.argv[3])):
    y = torch.arange(500) + 1000 * host
    store.append("w", "writer", [Episode(host, {"x": y.float().unsqueeze(1).repeat(1, 200), "y": y})])
    print(host, flush=True)
"""


def writer(path, capacity, count):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(capacity), str(count)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_writer_that_is_killed_loses_nothing_that_was_added(tmp_path):
    process = writer(tmp_path, 10**6, 10**6)
    for line in process.stdout:
        if int(line) == 8:
            break
    time.sleep(0.003)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hosts = Replay.open(tmp_path).worlds["w"].hosts
    assert hosts == tuple(range(len(hosts)))
    assert len(hosts) >= 9
    (tmp_path / "99999999.safetensors").write_bytes(b"half")  # as a cut-off write leaves them
    (tmp_path / ".00000001.safetensors.12345678.unfinished").write_bytes(b"half")
    ReplayStore(tmp_path).append("w", "someone", [Episode(77, {"x": torch.zeros(1, 200), "y": torch.zeros(1).long()})])
    record = Replay.open(tmp_path).worlds["w"]
    assert record.hosts == (*hosts, 77)
    assert sorted(path.name for path in tmp_path.glob("*.*")) == sorted(
        [".lock", "index.json", *(shard.file for shard in Index.read(tmp_path).shards)]
    )


def test_a_reader_sees_whole_shards_while_another_process_writes_and_drops(tmp_path):
    process = writer(tmp_path, 2000, 25)
    process.stdout.readline()
    opened = []
    while process.poll() is None:
        opened.append(Replay.open(tmp_path))
    first = {replay.worlds["w"].hosts[0] for replay in opened}
    assert len(first) > 1, "the test saw one state only"
    for replay in opened:
        record = replay.worlds["w"]
        assert record.column("y").tolist() == [1000 * host + step for host in record.hosts for step in range(500)]
        assert len(record) <= 2000


def test_what_was_opened_stays_when_the_store_is_gone(tmp_path):
    store = recorded(tmp_path, [3], capacity=4)
    replay = Replay.open(tmp_path)
    store.append("w", "someone", [episode(9, 4)])
    assert marks(tmp_path) == [9000, 9001, 9002, 9003]
    assert replay.worlds["w"].take(torch.tensor([2, 0]))["y"].tolist() == [2, 0]


@pytest.mark.parametrize("harm", ["flip", "cut", "replace", "empty"])
def test_a_damaged_or_foreign_shard_is_refused_in_one_sentence(tmp_path, harm):
    recorded(tmp_path, [4], [5])
    shard = tmp_path / "00000001.safetensors"
    content = bytearray(shard.read_bytes())
    if harm == "flip":
        content[-1] ^= 1
    elif harm == "cut":
        content = content[:-8]
    elif harm == "replace":
        content = (tmp_path / "00000000.safetensors").read_bytes()
    else:
        content = b""
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"00000001.safetensors is not the shard that was written") as refusal:
        Replay.open(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_shard_that_is_gone_is_named(tmp_path):
    recorded(tmp_path, [4])
    (tmp_path / "00000000.safetensors").unlink()
    with pytest.raises(ValueError, match=r"00000000.safetensors, which the index names, is gone"):
        Replay.open(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"format": "other", "capacity": 1}', '{"capacity": -3}', "\0"])
def test_an_index_of_another_kind_is_refused_by_readers_and_writers(tmp_path, content):
    (tmp_path / "index.json").write_text(content)
    for use in (Replay.open, ReplayStore):
        with pytest.raises(ValueError, match=r"index.json is no index of recorded episodes"):
            use(tmp_path)
    assert (tmp_path / "index.json").read_text() == content


def test_no_store_is_made_among_other_files(tmp_path):
    (tmp_path / "policy.safetensors").write_bytes(b"weights")
    with pytest.raises(ValueError, match="holds something else: choose another directory"):
        ReplayStore(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.safetensors"]


def test_a_store_removes_its_own_files_only(tmp_path):
    store = recorded(tmp_path, [4], capacity=6)
    (tmp_path / "policy.safetensors").write_bytes(b"weights")
    store.append("w", "someone", [episode(1, 5)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "00000001.safetensors",
        "index.json",
        "policy.safetensors",
    ]


def test_an_index_cannot_name_files_elsewhere(tmp_path):
    recorded(tmp_path, [4])
    index = json.loads((tmp_path / "index.json").read_text())
    index["shards"][0]["file"] = "../00000000.safetensors"
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="no index"):
        Replay.open(tmp_path)


def test_an_empty_store_says_so(tmp_path):
    ReplayStore(tmp_path)
    with pytest.raises(ValueError, match="no recorded episodes yet"):
        Replay.open(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), st.integers(0, 30), min_size=1), st.integers(1, 9), st.integers(0, 3))
def test_minibatches_have_every_row_once_and_the_same_ones_for_the_same_seed(counts, size, seed):
    rows = {world: 5 + torch.arange(count) for world, count in counts.items()}

    def draw(seed):
        return [(world, of.tolist()) for world, of in minibatches(rows, size, torch.Generator().manual_seed(seed))]

    batches = draw(seed)
    assert batches == draw(seed)
    for world, of in rows.items():
        assert sorted(row for name, batch in batches if name == world for row in batch) == of.tolist()
    assert all(0 < len(batch) <= size for _, batch in batches)


def test_another_seed_draws_another_order():
    rows = {"w": torch.arange(64)}
    orders = [
        torch.cat([of for _, of in minibatches(rows, 8, torch.Generator().manual_seed(seed))]).tolist()
        for seed in (0, 1)
    ]
    assert orders[0] != orders[1]


def test_a_host_is_on_one_side_for_good_and_growing_the_share_moves_hosts_one_way():
    hosts = range(10**6, 10**6 + 4000)
    small, large = ({host for host in hosts if held_out(host, share)} for share in (0.1, 0.3))
    assert small < large
    assert abs(len(small) / 4000 - 0.1) < 0.02
    assert not any(held_out(host, 0.0) for host in hosts)
    assert all(held_out(host, 1.0) for host in hosts)
    assert held_out(2**63 - 1, 1.0)


def test_the_digest_tells_records_apart(tmp_path):
    store = recorded(tmp_path, [4])
    before = Replay.open(tmp_path).digest
    assert Replay.open(tmp_path).digest == before
    store.append("w", "someone", [episode(5, 2)])
    assert Replay.open(tmp_path).digest != before
