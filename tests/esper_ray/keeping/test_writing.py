"""What is written is whole, or as it was before; where nothing can be written is said in one line."""

import os
import threading

import pytest
from matplotlib.figure import Figure

from benchmarks.full_disk import files_of_at_most
from esper_ray.errors import UserError
from esper_ray.keeping.writing import (
    check_writable,
    make_directories,
    new_directory,
    remove_empty,
    replace_bytes,
    replace_figure,
    replace_text,
)
from tests.esper_ray.keeping.places import mounted, read_only

LARGE = b"x" * 200_000


def fill(path):
    with new_directory(path) as directory:
        (directory / "small").write_bytes(b"x")
        (directory / "large").write_bytes(LARGE)


WRITERS = {
    "file": lambda path: replace_bytes(path, LARGE),
    "picture": lambda path: replace_figure(path.with_suffix(".png"), Figure(dpi=1000)),
    "directory": fill,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_what_does_not_fit_leaves_what_was_there_and_nothing_else(tmp_path, write):
    (tmp_path / "before").write_text("kept")
    with files_of_at_most(10_000), pytest.raises(UserError, match=r"cannot write .*large") as refused:
        write(tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["before"]
    with files_of_at_most(10_000), pytest.raises(UserError):
        replace_bytes(tmp_path / "before", LARGE)
    assert (tmp_path / "before").read_text() == "kept"


def test_a_full_disk_is_named(tmp_path):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        replace_text(disk / "result", "before")
        for write in WRITERS.values():
            with pytest.raises(UserError, match="No space left on device"):
                write(disk / "new")
        with pytest.raises(UserError, match="No space left on device"):
            replace_bytes(disk / "result", LARGE)
        assert {path.name: path.read_text() for path in disk.iterdir()} == {"result": "before"}


def test_a_place_that_takes_no_files_is_found_without_leaving_one(tmp_path):
    check_writable(tmp_path / "report")
    assert not list(tmp_path.iterdir())
    for write in (check_writable, lambda path: replace_text(path, "")):  # what is written first has a longer name
        with pytest.raises(UserError, match="File name too long"):
            write(tmp_path / ("x" * 245))
        write(tmp_path / ("x" * 230))
    with read_only(tmp_path / "disk") as disk:
        with pytest.raises(UserError, match=f"cannot write {disk}/report: "):
            check_writable(disk / "report")
        with pytest.raises(UserError, match=f"cannot write {disk / 'a'}: "):
            make_directories(disk / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file is in the way"):
        make_directories(tmp_path / "file" / "deeper")


def test_only_directories_that_were_made_are_removed_and_only_empty_ones(tmp_path):
    made = make_directories(tmp_path / "a" / "b" / "c")
    assert made == [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"]
    assert make_directories(tmp_path / "a" / "b") == []
    (tmp_path / "a" / "mine").touch()
    remove_empty(made)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine"]


def test_two_writers_of_one_file_leave_the_whole_text_of_one(tmp_path):
    texts = [str(writer) * 50_000 for writer in range(4)]

    def write(text):
        for _ in range(20):
            replace_text(tmp_path / "report", text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "report").exists():
            assert (tmp_path / "report").read_text() in texts
    assert os.listdir(tmp_path) == ["report"]
