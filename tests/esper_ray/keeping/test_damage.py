"""Whatever is wrong with a run's files is said in one line, and nothing of the run is changed."""

import itertools
import json
import os
import shutil
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.full_disk import files_of_at_most
from esper_ray.cli import parse
from esper_ray.errors import UserError
from esper_ray.keeping import export, run_directory
from esper_ray.keeping.export import write_export
from esper_ray.keeping.run_directory import POLICY_FILE, RLLIB_STATE, RunDirectory
from esper_ray.measuring.trained import Trained
from esper_ray.presets import DEBUG
from policies.bundle import PolicySettings
from policies.factory import build_policy
from policies.weights import save_weights
from tests.esper_ray.keeping.places import mounted, read_only

POLICY = build_policy("learned", PolicySettings(DEBUG.env.make_task().slots, DEBUG.env.max_epochs, DEBUG.network))


def checkpoint_of(iteration):
    """Writes a checkpoint whose policy says which it is."""

    def write(path):
        (path / RLLIB_STATE).mkdir()
        (path / RLLIB_STATE / "state.pkl").write_bytes(b"pickled")
        state = POLICY.state_dict()
        name = next(iter(state))
        save_weights(state | {name: torch.full_like(state[name], float(iteration))}, path / POLICY_FILE)

    return write


def iteration_in(weights):
    from safetensors.torch import load

    return int(load(weights.content)[next(iter(POLICY.state_dict()))].flatten()[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three iterations, the best of which is the second."""
    run = RunDirectory.create(tmp_path_factory.mktemp("runs") / "run", DEBUG)
    for iteration, score in ((1, 0.1), (2, 0.9), (3, 0.2)):
        run.save(iteration, score, checkpoint_of(iteration))
    return run.path


def contents(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def read_everything(path):
    """All that commands read of a run; its settings, the latest checkpoint as a resume takes it, both policies."""
    run = RunDirectory.open(path)
    return run.config(), run.checkpoint("latest"), Trained.open(path, "latest"), Trained.open(path, "best")


FILES = ["config.json", "checkpoints/index.json"]
FILES += [f"checkpoints/iteration-000003/{name}" for name in (POLICY_FILE, f"{RLLIB_STATE}/state.pkl", "files.json")]
DAMAGE = {
    "gone": lambda content: None,
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "latin-1": lambda content: "né".encode("latin-1"),
    "of another kind": lambda content: b"[1, 2]",
    "of another kind inside": lambda content: b'{"latest": 3, "best": null}',
    "nested": lambda content: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_in_one_line_and_nothing_is_changed(whole, tmp_path, name, damage):
    path = shutil.copytree(whole, tmp_path / "run")
    content = damage((path / name).read_bytes())
    (path / name).unlink()
    if content is not None:
        (path / name).write_bytes(content)
    before = contents(path)
    with pytest.raises(UserError) as refused:
        read_everything(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 700
    assert str(path) in str(refused.value)
    assert contents(path) == before


@given(place=st.floats(0, 1), change=st.integers(1, 255), name=st.sampled_from(FILES[2:]))
def test_any_changed_byte_of_a_checkpoint_is_found_before_training_goes_on_from_it(whole, place, change, name):
    content = (whole / name).read_bytes()
    at = int(place * (len(content) - 1))
    try:
        (whole / name).write_bytes(content[:at] + bytes([content[at] ^ change]) + content[at + 1 :])
        with pytest.raises(UserError, match=r"is damaged|is not JSON|is not UTF-8"):
            RunDirectory(whole).checkpoint("latest")
    finally:
        (whole / name).write_bytes(content)
    assert RunDirectory(whole).checkpoint("latest")[0].iteration == 3


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that cannot be read, root neither")
def test_a_file_of_a_checkpoint_that_cannot_be_read_is_named(whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "run")
    state = path / "checkpoints" / "iteration-000003" / RLLIB_STATE / "state.pkl"
    state.unlink()
    state.symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=f"cannot read {state}: Input/output error"):
        RunDirectory(path).checkpoint("latest")


def test_a_checkpoint_that_cannot_be_removed_is_named(tmp_path):
    run = RunDirectory.create(tmp_path / "run", DEBUG)
    for iteration, again in ((1, 1), (2, 3)):  # left from before, and no longer kept
        path = run.checkpoints / f"iteration-{iteration:06d}"
        with mounted(path, "size=64k"), pytest.raises(UserError, match=f"cannot write {path}: "):
            run.save(again, 0.5, checkpoint_of(again))
        run.save(again, 0.5, checkpoint_of(again))


@pytest.mark.skipif(not os.geteuid(), reason="root may list every directory")
def test_an_export_into_a_directory_that_cannot_be_listed_is_refused(whole, tmp_path):
    (tmp_path / "out").mkdir(mode=0o300)
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'out'}: Permission denied"):
        write_export(RunDirectory(whole), "latest", tmp_path / "out")


def test_an_export_that_is_interrupted_leaves_nothing(whole, tmp_path, monkeypatch):
    def interrupted(path, text):
        assert (tmp_path / "out" / POLICY_FILE).is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "replace_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_export(RunDirectory(whole), "latest", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["checkpoints/index.json", "checkpoints"])
def test_checkpoints_without_an_index_are_never_trained_over(whole, tmp_path, name):
    path = shutil.copytree(whole, tmp_path / "run")
    shutil.move(path / name, tmp_path / "lost")
    before = contents(path)
    with pytest.raises(UserError, match=r"index\.json is missing, .*nothing was changed"):
        parse(["train", "--run-dir", str(path), "--resume", "--iterations", "9"]).run(None)
    run = RunDirectory.open(path)
    with pytest.raises(UserError, match="is missing"):
        run.save(4, 0.5, checkpoint_of(4))
    with pytest.raises(UserError, match="is not empty"), RunDirectory.started(path, DEBUG):
        pass
    assert contents(path) == before
    shutil.move(tmp_path / "lost", path / name)
    assert run.iterations_done() == 3


# ---------------------------------------------------------------------- beside a writer
def test_a_reader_beside_a_writer_always_gets_one_whole_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "git_commit", lambda: None)  # the writer is to be quick
    run = RunDirectory.create(tmp_path / "run", DEBUG)
    run.save(1, 0.5, checkpoint_of(1))
    writer = os.fork()
    if writer == 0:
        for iteration in itertools.count(2):
            run.save(iteration, 0.5, checkpoint_of(iteration))
    try:
        seen = set()
        while len(seen) < 12:
            for which in ("latest", "best"):
                trained = Trained.open(run.path, which)
                assert iteration_in(trained.weights) == trained.iteration
                seen.add(trained.iteration)
        for number in range(3):
            card = write_export(run, "latest", tmp_path / str(number))
            written = Trained.open(tmp_path / str(number), "latest")
            assert card.iteration == card.latest.iteration == written.iteration == iteration_in(written.weights)
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)


# ---------------------------------------------------------------------- full disks, other places
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_and_says_so(tmp_path):
    with mounted(tmp_path / "disk", "size=500k") as disk:
        run = RunDirectory.create(disk / "run", DEBUG)
        run.save(1, 0.5, checkpoint_of(1))
        before = contents(run.path)
        (disk / "others").write_bytes(b"x" * 350_000)
        with pytest.raises(UserError, match=r"cannot write .*iteration-000002: No space left on device"):
            run.save(2, 0.9, checkpoint_of(2))
        assert contents(run.path) == before
        (disk / "others").unlink()
        run.save(2, 0.9, checkpoint_of(2))
        assert iteration_in(Trained.open(run.path, "latest").weights) == 2


def test_an_export_that_does_not_fit_leaves_nothing(whole, tmp_path):
    run = RunDirectory(whole)
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "new" / "deeper", tmp_path / "there"):
        with files_of_at_most(20_000), pytest.raises(UserError, match="cannot write"):
            write_export(run, "latest", out)
    assert [(path.name, list(path.iterdir())) for path in tmp_path.iterdir()] == [("there", [])]


def test_an_export_goes_where_it_is_sent_and_replaces_no_directory(whole, tmp_path, monkeypatch):
    run = RunDirectory(whole)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    parse(["export", str(whole), "."]).run(SILENT)
    assert Trained.open(tmp_path / "here", "latest").iteration == 3  # by its path: this is still the directory
    with read_only(tmp_path / "disk") as disk, pytest.raises(UserError, match="cannot write"):
        write_export(run, "latest", disk / "out")
    with mounted(tmp_path / "mount", "size=1m") as mount:
        write_export(run, "latest", mount)
        assert sorted(path.name for path in mount.iterdir()) == ["card.json", POLICY_FILE]


class Silent:
    def print(self, *arguments, **keywords):
        pass


SILENT = Silent()


def test_a_run_in_a_place_that_cannot_be_written_is_refused(tmp_path):
    with read_only(tmp_path / "disk") as disk:
        for path in (disk, disk / "run"):
            with pytest.raises(UserError, match="cannot write"):
                parse(["train", "--debug", "--run-dir", str(path)]).run(SILENT)


# ---------------------------------------------------------------------- what is removed
def assert_start_fails(path, meanwhile):
    def start():
        with RunDirectory.started(path, DEBUG) as run:
            assert run.config() == DEBUG
            meanwhile(run)
            raise UserError("no room")

    with pytest.raises(UserError, match="no room"):
        start()


def test_a_start_that_fails_removes_what_it_made_and_nothing_else(tmp_path):
    mine, new = tmp_path / "mine", tmp_path / "new" / "deeper"
    mine.mkdir()
    for path in (mine, new):
        for _ in range(2):  # the same command works again
            assert_start_fails(path, lambda run: None)
    assert [(path.name, list(path.iterdir())) for path in tmp_path.iterdir()] == [("mine", [])]
    assert_start_fails(mine, lambda run: (mine / "notes.txt").write_text("mine"))
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]
    assert_start_fails(new, lambda run: run.save(1, 0.5, checkpoint_of(1)))
    assert RunDirectory.open(new).iterations_done() == 1


def test_a_run_of_a_study_never_removes_what_it_finds(tmp_path):
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        RunDirectory.begun(tmp_path / "seed-0", DEBUG)
    assert (tmp_path / "seed-0" / "notes.txt").read_text() == "mine"


def test_a_users_directory_outlives_a_start_that_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no Ray cluster answers"):
        parse(["train", "--debug", "--run-dir", ".", "--address", "127.0.0.1:1"]).run(SILENT)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- the order of things on disk
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks for open files in /proc")
def test_a_checkpoint_is_on_disk_before_the_index_names_it(tmp_path, monkeypatch):
    run = RunDirectory.create(tmp_path / "run", DEBUG)
    done, fsync, replace = [], os.fsync, os.replace

    def recorded_fsync(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def recorded_replace(source, target):
        done.append(f"replaced {target}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    run.save(1, 0.5, checkpoint_of(1))
    replaced = done.index(f"replaced {run.checkpoints / 'index.json'}")
    synced = [path.rpartition(".unfinished/")[2] for path in done[:replaced] if path.count(".unfinished/")]
    assert {"policy.safetensors", "files.json", "rllib", "rllib/state.pkl"} <= {*synced}
    assert str(run.checkpoints) in done[:replaced]  # the checkpoint's name
    assert any("index.json" in path for path in done[:replaced])
    assert done[-1] == str(run.checkpoints)
    assert json.loads((run.checkpoints / "index.json").read_text())["latest"]["iteration"] == 1
