"""A copy of a run that outlives its machine, on any file system that pyarrow knows."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from esper_ray.errors import UserError
from esper_ray.keeping.export import CARD_FILE
from esper_ray.keeping.lock import LOCK_FILE
from esper_ray.keeping.run_directory import CONFIG_FILE, INDEX_FILE, RLLIB_STATE, RunDirectory, checked_index
from esper_ray.keeping.writing import make_directories, new_directory
from esper_ray.reading import parse_json
from policies.replacing import UNFINISHED

WHOLE_AT_ONCE = frozenset({"s3", "gcs", "abfs"})
"""Object stores: what is written appears when it is complete. Elsewhere it is written aside and then renamed."""
ATTEMPTS = 5
"""At fetching a copy that its sender changes meanwhile."""


class Mirror:
    """Keeps a run directory's copy up to date.

    The index of checkpoints is sent after the checkpoints that it names, and what it no longer names is deleted after
    it: whenever the sender dies, the copy is a run that can be resumed.

    Args:
        uri: Directory: a path, or a URI such as ``s3://bucket/run``.
        filesystem: Where ``uri`` is a path of; by default the one that its scheme names.

    Raises:
        UserError: no such file system.
    """

    def __init__(self, uri: str, filesystem: FileSystem | None = None) -> None:
        self.uri = uri
        try:
            if filesystem is not None:
                self._fs, self._root = filesystem, uri
            elif "://" in uri:
                self._fs, self._root = FileSystem.from_uri(uri)
            else:
                self._fs, self._root = LocalFileSystem(), str(Path(uri).expanduser().resolve())
        except (ArrowException, OSError, ValueError) as error:
            raise UserError(f"{uri} names no file system that can be used: {error}") from error
        self._sent: dict[str, tuple[int, int]] = {}

    def check_apart(self, run: RunDirectory) -> None:
        """Refuse a copy in the run's directory, which would be copied too, or around it.

        Raises:
            UserError: it is one.
        """
        root = Path(self._root).resolve()
        overlap = root == run.path or root in run.path.parents or run.path in root.parents
        if self._fs.type_name == "local" and overlap:
            raise UserError(
                f"--storage {self.uri} and the run directory {run.path} overlap: choose one beside the other"
            )

    def send(self, run: RunDirectory) -> None:
        """Bring the copy up to date.

        Raises:
            OSError: the storage cannot be written; the copy is as whole as before.
        """
        files = {path.relative_to(run.path).as_posix(): path for path in _finished(run.path)}
        for name, path in files.items():
            if name != INDEX_FILE:
                self._send(name, path)
        if INDEX_FILE in files:
            self._send(INDEX_FILE, files[INDEX_FILE])
        for name in self._names("checkpoints"):
            if name not in files:
                self._fs.delete_file(f"{self._root}/{name}")
                self._sent.pop(name, None)

    def fetch(self, path: Path) -> None:
        """Make a run directory of the copy; ``path`` appears when it is complete.

        Raises:
            UserError: there is no run, it cannot be read, or ``path`` cannot be written.
        """
        if CONFIG_FILE not in self.names():
            raise UserError(f"{self.uri} holds no run: it has no {CONFIG_FILE}")
        make_directories(path.parent)
        with new_directory(path) as unfinished:
            self.copy(unfinished)

    def copy(self, path: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Write files of the copy into a directory of this machine, as they are together at one time.

        Args:
            path: The directory.
            wanted: Which files, by their path in the copy.

        Raises:
            UserError: they cannot be read.
        """
        try:
            for _ in range(ATTEMPTS):
                before = self._index()
                try:
                    self._copy_files((name for name in self._names("") if wanted(name)), path)
                except FileNotFoundError:
                    if self._index() == before:
                        raise
                if self._index() == before:
                    return
                shutil.rmtree(path / "checkpoints", ignore_errors=True)  # its sender has gone on: other ones by now
        except (ArrowException, OSError) as error:
            raise UserError(f"cannot fetch {self.uri}: {error}") from error
        raise UserError(f"cannot fetch {self.uri}: its training replaces checkpoints faster than they can be copied")

    def _copy_files(self, names: Iterable[str], path: Path) -> None:
        for name in names:
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._fs.open_input_stream(f"{self._root}/{name}") as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)

    def _index(self) -> bytes | None:
        """Of the checkpoints, as it is now; None if there is none."""
        if self._fs.get_file_info(f"{self._root}/{INDEX_FILE}").type != FileType.File:
            return None
        with self._fs.open_input_stream(f"{self._root}/{INDEX_FILE}") as file:
            content: bytes = file.read()
        return content

    def names(self) -> list[str]:
        """Complete files, by their path in the copy.

        Raises:
            UserError: the storage cannot be read.
        """
        try:
            return self._names("")
        except (ArrowException, OSError) as error:
            raise UserError(f"cannot read {self.uri}: {error}") from error

    def iteration(self) -> int | None:
        """Iterations done at the latest checkpoint of the copy, 0 before the first; None if there is nothing at all.

        Raises:
            UserError: it cannot be read, or its index is damaged, or missing where there are checkpoints: the next
                :meth:`send` would delete them.
        """
        where, remedy = f"{self.uri}/{INDEX_FILE}", "restore it, or choose another --storage"
        try:
            names, content = self._names(""), self._index()
        except (ArrowException, OSError) as error:
            raise UserError(f"cannot read {self.uri}: {error}") from error
        if content is None:
            if any(name.startswith("checkpoints/") for name in names):
                raise UserError(f"{where} is missing, and without it nobody knows what the checkpoints are: {remedy}")
            return 0 if names else None
        damaged = f"{where} is damaged, {remedy}"
        index = checked_index(parse_json(content, f"{damaged}: it"), damaged)
        return index["latest"].iteration if index else 0

    def _send(self, name: str, path: Path) -> None:
        state = path.stat()
        version = (state.st_size, state.st_mtime_ns)
        if self._sent.get(name) == version:
            return
        target = f"{self._root}/{name}"
        aside = target if self._fs.type_name in WHOLE_AT_ONCE else f"{target}{UNFINISHED}"
        self._fs.create_dir(target.rpartition("/")[0], recursive=True)
        with path.open("rb") as source, self._fs.open_output_stream(aside) as file:
            shutil.copyfileobj(source, file)
        if aside != target:
            self._fs.move(aside, target)
        self._sent[name] = version

    def _names(self, folder: str) -> list[str]:
        """Complete files under a folder of the copy, by their path in it."""
        base = f"{self._root}/{folder}".rstrip("/")
        found = self._fs.get_file_info(FileSelector(base, allow_not_found=True, recursive=True))
        paths = (info.path for info in found if info.type == FileType.File)
        root = self._root.strip("/")
        return [path.strip("/").removeprefix(f"{root}/") for path in paths if not path.endswith(UNFINISHED)]


def is_uri(place: str) -> bool:
    """Whether a place is a URI, and not a path of this machine."""
    return "://" in place


@contextmanager
def at_hand(place: str) -> Iterator[Path]:
    """A run directory or an export, wherever it lies, as a directory of this machine.

    What lies at a URI is copied into a temporary folder, without the state that only training needs: that is large, and
    pickled.

    Args:
        place: A path, which is used as it is, or a URI such as ``s3://bucket/run``.

    Yields:
        The directory; a copy is gone after the context.

    Raises:
        UserError: the URI cannot be read, or holds neither.
    """
    if not is_uri(place):
        yield Path(place)
        return
    copy = Mirror(place)
    names = copy.names()
    if not {CONFIG_FILE, CARD_FILE} & set(names):
        raise UserError(f"{place} holds neither a run nor an export: it has no {CONFIG_FILE} and no {CARD_FILE}")
    url = urlsplit(place)
    parts = [part for part in (url.hostname or "", *url.path.split("/")) if part not in ("", ".", "..")]
    with tempfile.TemporaryDirectory(prefix="esper-") as folder:
        path = Path(folder, *parts)  # named as there, for tables and messages
        copy.copy(path, lambda name: RLLIB_STATE not in name.split("/"))
        yield path


def _finished(directory: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(directory):
        subfolders[:] = [name for name in subfolders if not name.endswith(UNFINISHED)]
        yield from (Path(folder, name) for name in names if not name.endswith((UNFINISHED, LOCK_FILE)))
