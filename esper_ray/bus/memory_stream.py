"""One stream in this process's memory, with Redis' rules; whoever uses it holds a lock."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass, field

from esper_ray.bus.deliveries import DeadLetter, GroupState, StreamState
from esper_ray.bus.errors import GroupMissing
from esper_ray.bus.streams import StreamRules


@dataclass
class _Pending:
    consumer: str
    since: float
    count: int = 1


@dataclass
class _Group:
    last: int = 0
    pending: OrderedDict[int, _Pending] = field(default_factory=OrderedDict)
    """By entry; as an entry that is claimed keeps its place, the oldest is the first."""

    @property
    def needs(self) -> int:
        """The oldest entry that it has still to handle."""
        return min(next(iter(self.pending), self.last + 1), self.last + 1)


@dataclass
class Claimed:
    """What a consumer has taken over from others, and what it came upon.

    Attributes:
        entries: Id, payload and number of deliveries of each.
        buried: Ids of those that lie with the dead letters now.
        unburied: Ids of those that should, and have no room there.
    """

    entries: list[tuple[int, bytes, int]] = field(default_factory=list)
    buried: list[int] = field(default_factory=list)
    unburied: list[int] = field(default_factory=list)


class MemoryStream:
    """Entries, groups, and what each of them has still to handle.

    Args:
        rules: Of the stream.
        most_deliveries: After so many an entry lies with the dead letters.
    """

    def __init__(self, rules: StreamRules, most_deliveries: int) -> None:
        self._rules, self._most_deliveries = rules, most_deliveries
        self._entries: OrderedDict[int, bytes] = OrderedDict()
        self._next = 1
        self._groups: dict[str, _Group] = {}
        self._dead: dict[str, OrderedDict[int, DeadLetter]] = {}
        self._letters = itertools.count(1)

    def append(self, payload: bytes) -> int | None:
        """Its id; None where the stream is full."""
        if len(self._entries) >= self._rules.capacity:
            if self._rules.keeps_all:
                return None
            self._entries.popitem(last=False)
        self._entries[self._next] = payload
        self._next += 1
        return self._next - 1

    def make_group(self, name: str) -> None:
        """It begins with the oldest entry."""
        self._groups.setdefault(name, _Group())

    def remove_group(self, name: str) -> None:
        """With all that it has not handled."""
        self._groups.pop(name, None)

    def _group(self, name: str) -> _Group:
        if name not in self._groups:
            raise GroupMissing(f"there is no group {name}")
        return self._groups[name]

    def has_unread(self, name: str) -> bool:
        """Whether there is something that a group was not given; true without the group, which is to be made first."""
        return name not in self._groups or self._unread(self._groups[name]) > 0

    def _unread(self, group: _Group) -> int:
        return self._next - max(group.last + 1, self._oldest)

    @property
    def _oldest(self) -> int:
        return next(iter(self._entries), self._next)

    def read(self, name: str, consumer: str, count: int, now: float) -> list[tuple[int, bytes]]:
        """What is new to a group, at most ``count``."""
        group = self._group(name)
        first = max(group.last + 1, self._oldest)
        ids = range(first, min(first + count, self._next))
        for entry in ids:
            group.last = entry
            group.pending[entry] = _Pending(consumer, now)
        return [(entry, self._entries[entry]) for entry in ids]

    def claim(self, name: str, consumer: str, count: int, now: float, idle: float) -> Claimed:
        """Take over what was left alone for at least ``idle`` seconds, at most ``count``."""
        group, claimed = self._group(name), Claimed()
        for entry, pending in list(group.pending.items()):
            if len(claimed.entries) == count:
                break
            if now - pending.since < idle:
                continue
            if entry not in self._entries:  # of a stream that lets the oldest go
                del group.pending[entry]
                continue
            if pending.count < self._most_deliveries:
                pending.consumer, pending.since, pending.count = consumer, now, pending.count + 1
                claimed.entries.append((entry, self._entries[entry], pending.count))
            elif self._bury(name, entry, pending.count):
                claimed.buried.append(entry)
                del group.pending[entry]
            else:
                claimed.unburied.append(entry)
                pending.since = now
        return claimed

    def _bury(self, name: str, entry: int, count: int) -> bool:
        letters = self._dead.setdefault(name, OrderedDict())
        if len(letters) >= self._rules.capacity:
            return False
        number = next(self._letters)
        letters[number] = DeadLetter(str(number), str(entry), self._entries[entry], count)
        return True

    def acknowledge(self, name: str, entry: int) -> bool:
        """Whether the group had it to handle."""
        group = self._groups.get(name)
        return group is not None and group.pending.pop(entry, None) is not None

    def renew(self, name: str, entry: int, consumer: str, now: float) -> bool:
        """Whether it is that consumer's."""
        group = self._groups.get(name)
        pending = group.pending.get(entry) if group is not None else None
        if pending is None or pending.consumer != consumer or entry not in self._entries:
            return False
        pending.since = now
        return True

    def trim(self) -> tuple[int, list[tuple[str, int]]]:
        """Let go of what every group has handled.

        Returns:
            How many entries went, and the groups that were removed, each with its lag.
        """
        if not self._groups or self._missing():
            return 0, []
        removed = []
        for name, group in list(self._groups.items()):
            lag = len(group.pending) + self._unread(group)
            if name not in self._rules.required and lag > self._rules.most_lag:
                removed.append((name, lag))
                del self._groups[name]
        gone = 0
        keep_from = min((group.needs for group in self._groups.values()), default=0)
        while self._entries and self._oldest < keep_from:
            self._entries.popitem(last=False)
            gone += 1
        return gone, removed

    def _missing(self) -> tuple[str, ...]:
        return tuple(name for name in self._rules.required if name not in self._groups)

    def dead_letters(self, name: str, count: int) -> tuple[DeadLetter, ...]:
        """The oldest of a group."""
        return tuple(itertools.islice(self._dead.get(name, {}).values(), count))

    def discard(self, name: str, letter: DeadLetter) -> bool:
        """Whether it was there."""
        return self._dead.get(name, OrderedDict()).pop(int(letter.letter_id), None) is not None

    def state(self) -> StreamState:
        """How full it is."""
        groups = {
            name: GroupState(len(group.pending), self._unread(group), len(self._dead.get(name, ())))
            for name, group in self._groups.items()
        }
        return StreamState(len(self._entries), self._rules.capacity, groups, self._missing())
