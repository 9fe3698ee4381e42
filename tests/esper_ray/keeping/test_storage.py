"""A run's copy elsewhere: equal to the run, and whole whenever its sender dies."""

import datetime
import itertools
from dataclasses import replace

import pytest
from pyarrow.fs import LocalFileSystem, _MockFileSystem
from rich.console import Console

from esper_ray.cli import parse
from esper_ray.errors import UserError
from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.keeping.storage import Mirror
from esper_ray.presets import DEBUG


def checkpoint(content):
    def write(path):
        (path / "rllib").mkdir()
        (path / "rllib" / "state").write_text(content)
        (path / "policy").write_text(content)

    return write


def contents(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture
def run(tmp_path):
    run = RunDirectory.create(tmp_path / "run", DEBUG)
    (run.path / "events.out.tfevents.1").write_text("first")
    return run


@pytest.fixture(params=["path", "file", "mock"])
def mirror(request, tmp_path):
    """The copy, by a plain path, by a URI, and on a file system without directories of this machine."""
    place = tmp_path / "store" / "copy"
    if request.param == "mock":
        return Mirror("bucket/runs/copy", _MockFileSystem(datetime.datetime.now(datetime.UTC)))
    return Mirror(str(place) if request.param == "path" else f"file://{place}")


def test_what_is_fetched_is_what_was_sent_last(run, mirror, tmp_path):
    for iteration, score in ((1, 0.5), (2, 0.1), (3, 0.2)):
        run.save(iteration, score, checkpoint(f"weights {iteration}"))
        with (run.path / "events.out.tfevents.1").open("a") as file:
            file.write("more")
        (run.checkpoints / ".iteration-000004.unfinished").mkdir(exist_ok=True)
        (run.checkpoints / ".iteration-000004.unfinished" / "half").write_text("a checkpoint")
        mirror.send(run)
        assert mirror.iteration() == iteration
    mirror.fetch(tmp_path / "fetched")
    expected = {name: data for name, data in contents(run.path).items() if "unfinished" not in name}
    assert contents(tmp_path / "fetched") == expected
    fetched = RunDirectory.open(tmp_path / "fetched")
    assert {which: fetched.checkpoint(which)[0].iteration for which in ("latest", "best")} == {"latest": 3, "best": 1}


def test_a_file_that_has_not_changed_is_not_sent_again(run, tmp_path):
    mirror = Mirror(str(tmp_path / "copy"))
    run.save(1, 0.5, checkpoint("weights"))
    mirror.send(run)
    sent = {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    mirror.send(run)
    assert {path: path.stat().st_mtime_ns for path in sent} == sent


class Dying:
    """A file system whose connection breaks at one of the changes."""

    type_name = "local"

    def __init__(self, changes):
        self._fs, self._left = LocalFileSystem(), changes

    def __getattr__(self, name):
        if name in ("move", "open_output_stream", "delete_file"):
            self._left -= 1
            if self._left < 0:
                raise OSError("connection lost")
        return getattr(self._fs, name)


def test_the_copy_is_whole_wherever_sending_breaks_off(run, tmp_path):
    place = str(tmp_path / "copy")
    for iteration in (1, 2):
        run.save(iteration, 0.5 - iteration / 10, checkpoint(f"weights {iteration}"))
        Mirror(place).send(run)
    run.save(3, 0.1, checkpoint("weights 3"))
    broken = 0
    for changes in range(40):
        try:
            Mirror(place, Dying(changes)).send(run)
        except OSError:
            broken += 1
        Mirror(place).fetch(tmp_path / f"fetched-{changes}")
        fetched = RunDirectory.open(tmp_path / f"fetched-{changes}")
        for which in ("latest", "best"):
            found, path = fetched.checkpoint(which)
            assert (path / "rllib" / "state").read_text() == f"weights {found.iteration}"
            assert (path / "policy").read_text() == f"weights {found.iteration}"
    assert 5 < broken < 40
    assert fetched.checkpoint("latest")[0].iteration == 3


class Moving:
    """A file system whose run is trained on and sent again before one of its files is read.

    Args:
        reads: Before which.
        send: Trains on and sends.
    """

    type_name = "local"

    def __init__(self, reads, send):
        self._fs, self._left, self._send = LocalFileSystem(), reads, send

    def __getattr__(self, name):
        if name == "open_input_stream":
            self._left -= 1
            if self._left == 0:
                self._send()
        return getattr(self._fs, name)


def test_a_copy_that_is_fetched_while_it_changes_is_of_one_time(run, tmp_path):
    place, iterations = str(tmp_path / "copy"), itertools.count(1)

    def train_on():
        iteration = next(iterations)
        run.save(iteration, iteration / 100, checkpoint(f"weights {iteration}"))
        Mirror(place).send(run)

    train_on()
    for reads in range(1, 12):
        before = run.iterations_done()
        Mirror(place, Moving(reads, train_on)).fetch(tmp_path / f"fetched-{reads}")
        found, path = RunDirectory.open(tmp_path / f"fetched-{reads}").checkpoint("latest")
        assert (path / "policy").read_text() == f"weights {found.iteration}"
        assert found.iteration in (before, before + 1)
    assert next(iterations) > 6  # it did change

    class Racing(Moving):
        def __getattr__(self, name):
            self._left = 1
            return super().__getattr__(name)

    with pytest.raises(UserError, match="replaces checkpoints faster than they can be copied"):
        Mirror(place, Racing(1, train_on)).fetch(tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_what_holds_no_run_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        Mirror(str(tmp_path / "nowhere")).fetch(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert Mirror(str(tmp_path / "nowhere")).iteration() is None
    with pytest.raises(UserError, match="no file system"):
        Mirror("carrier-pigeon://roof/3")


@pytest.mark.parametrize("content", [None, "", "null", "[]", "[1]", '"abc"', '{"latest": 3}', "\ud800", "[" * 100_000])
def test_a_copy_whose_index_is_lost_or_damaged_is_refused_and_keeps_its_checkpoints(run, tmp_path, content):
    run.save(1, 0.5, checkpoint("weights 1"))
    Mirror(str(tmp_path / "copy")).send(run)
    index = tmp_path / "copy" / "checkpoints" / "index.json"
    index.unlink()
    if content is not None:
        index.write_bytes(content.encode(errors="surrogatepass"))
    before, ours = contents(tmp_path / "copy"), contents(run.path)
    storage = ["--storage", str(tmp_path / "copy")]
    for arguments in (["--debug", "--run-dir", str(tmp_path / "new")], ["--resume", "--run-dir", str(run.path)]):
        with pytest.raises(UserError, match=r"index\.json is (missing|damaged).* choose another --storage") as refused:
            parse(["train", *arguments, *storage]).run(Console(quiet=True))
        assert "\n" not in str(refused.value)
    assert (contents(tmp_path / "copy"), contents(run.path)) == (before, ours)
    assert not (tmp_path / "new").exists()


def test_a_new_run_has_no_copy_where_there_are_files_already(tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "config.json").write_text("of a run that sent no more")
    with pytest.raises(UserError, match="holds a run already"):
        parse(["train", "--debug", "--storage", str(tmp_path / "copy")]).run(Console(quiet=True))
    assert Mirror(str(tmp_path / "copy")).iteration() == 0


def test_the_newest_checkpoints_are_kept_beside_the_best(tmp_path):
    config = replace(DEBUG, run=replace(DEBUG.run, keep_checkpoints=2))
    run = RunDirectory.create(tmp_path / "run", config)
    for iteration, score in ((1, 0.9), (2, 0.2), (3, 0.4), (4, 0.5)):
        run.save(iteration, score, checkpoint("weights"), keep=config.run.keep_checkpoints)
    assert sorted(path.name[-1] for path in run.checkpoints.glob("iteration-*")) == ["1", "3", "4"]
