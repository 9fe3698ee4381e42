"""Recorded episodes on disk: bounded, written by one process at a time, read by any number meanwhile.

A store is a directory of safetensors shards, each of whole episodes, and an index that says which there are. The index
is written last and at once, so that a write that is cut off leaves what was there before. Shards are mapped into memory
and never change; one that is dropped stays readable to whoever has it open.

Steps are decisions: every column of an episode has the leading axis ``[T]``, T the number of them.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from policies.replacing import UNFINISHED, replacing

USUAL_CAPACITY = 1_000_000
"""Steps."""
INDEX_FILE = "index.json"
_SHARD = re.compile(r"\d{8}\.safetensors")
"""Names of shards, which count them."""


@dataclass(frozen=True)
class Episode:
    """One episode of one host.

    Attributes:
        host: Seed of the host, which says on which side of a split all of its episodes are.
        steps: Columns ``[T, ...]`` by name.
    """

    host: int
    steps: Mapping[str, Tensor]

    def __len__(self) -> int:
        """T."""
        return len(next(iter(self.steps.values())))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Strict):
    """What the index says of a shard.

    Attributes:
        file: Its name.
        world: What a reader needs to know to understand the observations, as text.
        source: Who decided.
        exemplary: Whether the decisions are examples to follow, and not only cases to learn risks from.
        hosts: Of its episodes.
        lengths: T of each.
        sha256: Of the file, hexadecimal.
    """

    file: Annotated[str, Field(pattern=f"^{_SHARD.pattern}$")]
    world: str
    source: str
    exemplary: bool
    hosts: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...]
    lengths: tuple[Annotated[int, Field(ge=1)], ...]
    sha256: str

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if len(self.hosts) != len(self.lengths):
            raise ValueError(f"{self.file} has {len(self.hosts)} hosts for {len(self.lengths)} episodes")
        return self

    @property
    def steps(self) -> int:
        """Of all its episodes."""
        return sum(self.lengths)


class Index(_Strict):
    """What there is in a store.

    Attributes:
        format: Of index and shards.
        capacity: Steps that it holds at most.
        written: Shards that were ever written.
        shards: Those that are kept, the oldest first.
    """

    format: Literal["esper-ray replay 1"] = "esper-ray replay 1"
    capacity: Annotated[int, Field(ge=1)]
    written: Annotated[int, Field(ge=0)] = 0
    shards: tuple[Shard, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """That of the store in a directory.

        Raises:
            OSError: it cannot be read.
            ValueError: it is something else.
        """
        content = (path / INDEX_FILE).read_bytes()
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "content"
            raise ValueError(
                f"{path / INDEX_FILE} is no index of recorded episodes: {where}: {problem['msg']}"
            ) from error

    @property
    def steps(self) -> int:
        """Of all shards."""
        return sum(shard.steps for shard in self.shards)

    def with_newest(self, shard: Shard) -> Index:
        """The index with one more shard, and without the oldest ones that there is then no room for."""
        shards = (*self.shards, shard)
        while sum(kept.steps for kept in shards) > self.capacity:
            shards = shards[1:]
        return Index(capacity=self.capacity, written=self.written + 1, shards=shards)


class ReplayStore:
    """Where episodes are added.

    Args:
        path: A directory that exists; a store is made in it if it is empty.
        capacity: Steps that it holds at most, the oldest shards being dropped; by default those of the store that there
            is, or a million.

    Attributes:
        path: As given.
        capacity: Steps that it holds at most.

    Raises:
        OSError: it cannot be read or written.
        ValueError: the directory holds something else or a damaged index, or the store has another capacity.
    """

    def __init__(self, path: Path, capacity: int | None = None) -> None:
        self.path = path
        visible = {other.name for other in path.iterdir() if not other.name.startswith(".")}
        if visible and INDEX_FILE not in visible:  # of a store that another process is making it is the first
            raise ValueError(f"{path} holds something else: choose another directory for recorded episodes")
        with self._locked():
            if not (path / INDEX_FILE).exists():
                self._write(Index(capacity=capacity or USUAL_CAPACITY))
            self.capacity = Index.read(path).capacity
        if capacity not in (None, self.capacity):
            raise ValueError(
                f"{path} was made to hold {self.capacity} steps at most, not {capacity}: begin another store"
            )

    def append(self, world: str, source: str, episodes: Sequence[Episode], exemplary: bool = True) -> None:
        """Add episodes as one shard; they are on disk when this returns.

        Args:
            world: What a reader needs to know to understand the observations, as text.
            source: Who decided.
            episodes: At least one, all with the same columns.
            exemplary: Whether the decisions are examples to follow, and not only cases to learn risks from.

        Raises:
            OSError: it cannot be written; nothing is added.
            ValueError: columns that do not fit each other or the world's, or more steps than there is room for;
                nothing is added.
        """
        _check(episodes)
        lengths = tuple(len(episode) for episode in episodes)
        if sum(lengths) > self.capacity:
            raise ValueError(
                f"{sum(lengths)} steps do not fit into {self.path}, which holds {self.capacity} at most: add fewer "
                "episodes at a time"
            )
        columns = {name: torch.cat([episode.steps[name] for episode in episodes]) for name in episodes[0].steps}
        with self._locked():
            index = Index.read(self.path)
            self._check_like_others(index, world, columns)
            file = f"{index.written:08d}.safetensors"
            content = safetensors.torch.save({name: column.contiguous() for name, column in columns.items()})
            with replacing(self.path / file) as unfinished:
                unfinished.write_bytes(content)
            shard = Shard(
                file=file,
                world=world,
                source=source,
                exemplary=exemplary,
                hosts=tuple(episode.host for episode in episodes),
                lengths=lengths,
                sha256=hashlib.sha256(content).hexdigest(),
            )
            self._write(index.with_newest(shard))

    def _check_like_others(self, index: Index, world: str, columns: Mapping[str, Tensor]) -> None:
        """Hold columns to those of the world's newest shard."""
        others = [shard for shard in index.shards if shard.world == world]
        if others:
            _check_same(_open(self.path, others[-1]), columns, f"{self.path} has of this world")

    def _write(self, index: Index) -> None:
        with replacing(self.path / INDEX_FILE) as unfinished:
            unfinished.write_text(index.model_dump_json())
        # What a cut-off write left goes too: whoever has the lock is the only one that writes.
        kept = {shard.file for shard in index.shards}
        for path in self.path.iterdir():
            if path.name.endswith(UNFINISHED) or (_SHARD.fullmatch(path.name) and path.name not in kept):
                with suppress(FileNotFoundError):
                    path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.path / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _check(episodes: Sequence[Episode]) -> None:
    if not episodes:
        raise ValueError("there are no episodes to add")
    for episode in episodes:
        if not episode.steps or len({len(column) for column in episode.steps.values()}) != 1 or not len(episode):
            lengths = ", ".join(f"{name} {len(column)}" for name, column in episode.steps.items())
            raise ValueError(f"every column of an episode needs as many steps, at least one, got {lengths or 'none'}")
        _check_same(episodes[0].steps, episode.steps, "the first episode has")


def _check_same(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Compare columns by name, shape behind the steps, and type."""
    kinds = [
        {name: f"{column.dtype} {list(column.shape[1:])}" for name, column in of.items()} for of in (wanted, found)
    ]
    if kinds[0] != kinds[1]:
        names = [name for name in {**wanted, **found} if kinds[0].get(name) != kinds[1].get(name)]
        raise ValueError(
            f"column {names[0]} is {kinds[1].get(names[0], 'absent')}, but {where} {kinds[0].get(names[0], 'none')}"
        )


def _open(path: Path, shard: Shard) -> dict[str, Tensor]:
    """A shard's columns, mapped into memory.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not what the index says.
    """
    file = path / shard.file
    with file.open("rb") as content:
        intact = hashlib.file_digest(content, "sha256").hexdigest() == shard.sha256
    columns: dict[str, Tensor] = {}
    try:
        with safe_open(file, "pt") as tensors:
            columns = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, RuntimeError):  # the latter is torch's of a file that is not there
        file.stat()  # it was a moment ago
        intact = False
    if not intact or any(len(column) != shard.steps for column in columns.values()):
        raise ValueError(
            f"{file} is not the shard that was written: it is damaged, or foreign; collect into a new store"
        )
    return columns


@dataclass(frozen=True)
class WorldRecord:
    """All episodes of one world in a store, their steps numbered as rows from 0 to R − 1.

    Attributes:
        world: As given to :meth:`ReplayStore.append`.
        sources: Who decided, by episode.
        exemplary: Whether the decisions are examples to follow, by episode.
        hosts: By episode.
        lengths: T of each episode.
        shards: Columns of each shard, in order.
    """

    world: str
    sources: tuple[str, ...]
    exemplary: tuple[bool, ...]
    hosts: tuple[int, ...]
    lengths: tuple[int, ...]
    shards: tuple[Mapping[str, Tensor], ...]

    def __len__(self) -> int:
        """R."""
        return sum(self.lengths)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns."""
        return tuple(self.shards[0])

    def column(self, name: str) -> Tensor:
        """A column of all steps, ``[R, ...]``, in memory."""
        return torch.cat([shard[name] for shard in self.shards])

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """Every column at some rows, int64 ``[B]``, in their order: ``[B, ...]``; only these are read from disk."""
        shard = torch.searchsorted(self._first_rows, rows, right=True) - 1
        within, order = rows - self._first_rows[shard], torch.argsort(shard, stable=True)
        parts = [(self.shards[k], within[shard == k]) for k in shard.unique().tolist()]
        back = torch.argsort(order)
        return {name: torch.cat([columns[name][at] for columns, at in parts])[back] for name in self.names}

    def rows_of(self, episodes: Sequence[int]) -> Tensor:
        """The rows of some episodes, int64, in their order."""
        first = np.cumsum([0, *self.lengths]).tolist()
        parts = [torch.arange(first[episode], first[episode + 1]) for episode in episodes]
        return torch.cat([torch.zeros(0, dtype=torch.int64), *parts])

    @property
    def exemplary_rows(self) -> Tensor:
        """Which steps are of exemplary episodes, bool ``[R]``."""
        return torch.tensor(self.exemplary).repeat_interleave(torch.tensor(self.lengths))

    @cached_property
    def _first_rows(self) -> Tensor:
        steps = [len(shard[self.names[0]]) for shard in self.shards[:-1]]
        return torch.tensor([0, *np.cumsum(steps).tolist()], dtype=torch.int64)


@dataclass(frozen=True)
class Replay:
    """What was in a store at one time, to read; whatever becomes of the store.

    Attributes:
        worlds: By world.
        digest: SHA-256 over all that the index says of the shards: two replays with the same are the same.
    """

    worlds: Mapping[str, WorldRecord]
    digest: str

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a store, which another process may be writing to.

        Raises:
            OSError: it cannot be read.
            ValueError: the index or a shard is damaged, or something else; or nothing is recorded yet.
        """
        index = Index.read(path)
        while True:
            try:
                opened = [(shard, _open(path, shard)) for shard in index.shards]
                break
            except FileNotFoundError as error:  # dropped since, or gone
                before, index = index, Index.read(path)
                if index == before:
                    raise ValueError(
                        f"{error.filename}, which the index names, is gone: collect into a new store"
                    ) from error
        if not opened:
            raise ValueError(f"{path} has no recorded episodes yet: collect some")
        digest = hashlib.sha256("\n".join(shard.model_dump_json() for shard in index.shards).encode()).hexdigest()
        worlds = dict.fromkeys(shard.world for shard in index.shards)
        return cls({world: _record(world, opened) for world in worlds}, digest)


def minibatches(rows: Mapping[str, Tensor], size: int, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Every row once, in a random order of batches that are each of one world.

    Args:
        rows: World → rows, int64.
        size: Rows of a batch, at most.
        generator: Draws the order.

    Yields:
        World, and rows ``[B]``.
    """
    batches = [
        (world, batch)
        for world, of in rows.items()
        for batch in of[torch.randperm(len(of), generator=generator)].split(size)
        if len(batch)
    ]
    for at in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[at]


def _record(world: str, opened: Sequence[tuple[Shard, Mapping[str, Tensor]]]) -> WorldRecord:
    parts = [(shard, columns) for shard, columns in opened if shard.world == world]
    return WorldRecord(
        world,
        tuple(shard.source for shard, _ in parts for _ in shard.hosts),
        tuple(shard.exemplary for shard, _ in parts for _ in shard.hosts),
        tuple(host for shard, _ in parts for host in shard.hosts),
        tuple(length for shard, _ in parts for length in shard.lengths),
        tuple(columns for _, columns in parts),
    )


def held_out(host: int, share: float) -> bool:
    """Whether a host's episodes are kept for validation: the same answer in every store, whoever played them.

    Args:
        host: Its seed.
        share: Of all hosts, in [0, 1].
    """
    digest = hashlib.sha256(host.to_bytes(8, "big")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
