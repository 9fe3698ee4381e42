"""Any sequence of calls: both buses do the same, and nothing that a required group has not handled ever goes."""

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from esper_ray.bus.errors import StreamFull
from esper_ray.bus.in_process import InProcessBus
from esper_ray.bus.interface import MOST_DELIVERIES
from esper_ray.bus.streams import Stream, StreamRules
from tests.esper_ray.bus.servers import needs_redis

REQUIRED = ("a", "b")
RULES = {
    Stream.REPORTS: StreamRules(REQUIRED, capacity=6),
    Stream.TELEMETRY: StreamRules(capacity=6, keeps_all=False),
}
streams = st.sampled_from(sorted(RULES))
groups = st.sampled_from([*REQUIRED, "optional"])
consumers = st.sampled_from(["x", "y"])
_names = itertools.count()


class InProcess:
    """The bus of this process, on a clock of its own."""

    def __init__(self):
        self.seconds = 0.0
        self.events = []
        self.bus = InProcessBus(rules=RULES, on_event=self.events.append, clock=lambda: self.seconds)

    def grow_old(self):
        self.seconds += self.bus.claim_after_s + 1


class OnRedis:
    """The bus on a server, where what is pending is told to be old."""

    def __init__(self, url):
        from esper_ray.bus.redis_bus import RedisBus

        self.events = []
        self.name = f"machine{next(_names)}"
        self.bus = RedisBus(url, name=self.name, rules=RULES, on_event=self.events.append)

    def grow_old(self):
        client = self.bus._server.client
        for stream in RULES:
            key = f"{self.name}:{stream}"
            for group in client.xinfo_groups(key) if client.exists(key) else ():
                for pending in client.xpending_range(key, group["name"], "-", "+", 1000):
                    client.xclaim(
                        key,
                        group["name"],
                        pending["consumer"],
                        0,
                        [pending["message_id"]],
                        idle=round(1e3 * self.bus.claim_after_s) + 1000,
                        retrycount=pending["times_delivered"],
                        justid=True,
                    )


class Calls(RuleBasedStateMachine):
    """The same calls to all buses."""

    open_buses = staticmethod(lambda: [InProcess()])

    @initialize()
    def begin(self):
        self.kinds = self.open_buses()
        self.sent = {stream: [] for stream in RULES}
        self.held = []
        self.handled = {(stream, group): set() for stream in RULES for group in [*REQUIRED, "optional"]}

    def teardown(self):
        for kind in getattr(self, "kinds", ()):
            kind.bus.close()

    def same(self, results, shown=lambda result: result):
        """That of the first, once all are the same."""
        assert all(shown(result) == shown(results[0]) for result in results), results
        return results[0]

    @rule(stream=streams)
    def send(self, stream):
        payload = b"%d" % len(self.sent[stream])
        entries = []
        for kind in self.kinds:
            try:
                entries.append(kind.bus.send(stream, payload))
            except StreamFull:
                entries.append(None)
        self.same(entries, lambda entry: entry is None)
        if entries[0] is not None:
            self.sent[stream].append(payload)
        else:
            assert stream is Stream.REPORTS
            state = self.kinds[0].bus.state(stream)
            assert state.entries == state.capacity

    @rule(stream=streams, group=groups)
    def join(self, stream, group):
        for kind in self.kinds:
            kind.bus.join(stream, group)

    @rule(stream=streams, group=groups, consumer=consumers, count=st.integers(1, 4))
    def receive(self, stream, group, consumer, count):
        received = [kind.bus.receive(stream, group, consumer, count=count) for kind in self.kinds]
        self.same(received, lambda given: [(delivery.payload, delivery.count) for delivery in given])
        assert all(delivery.count <= MOST_DELIVERIES for delivery in received[0])
        assert len(received[0]) <= count
        self.held += zip(*received, strict=True)

    @rule(data=st.data())
    def acknowledge(self, data):
        if self.held:
            held = data.draw(st.sampled_from(self.held))
            self.same([kind.bus.acknowledge(one) for kind, one in zip(self.kinds, held, strict=True)])
            self.handled[held[0].stream, held[0].group].add(held[0].payload)

    @rule(data=st.data())
    def renew(self, data):
        if self.held:
            held = data.draw(st.sampled_from(self.held))
            self.same([kind.bus.renew(one) for kind, one in zip(self.kinds, held, strict=True)])

    @rule()
    def grow_old(self):
        for kind in self.kinds:
            kind.grow_old()

    @rule(stream=streams, group=groups, times=st.integers(2, MOST_DELIVERIES + 1))
    def neglect(self, stream, group, times):
        """Take what is there again and again, and never acknowledge it."""
        for _ in range(times):
            self.grow_old()
            self.receive(stream, group, "x", 4)

    @rule(stream=streams)
    def trim(self, stream):
        self.same([kind.bus.trim(stream) for kind in self.kinds])

    @rule(stream=streams, group=groups)
    def discard(self, stream, group):
        letters = [kind.bus.dead_letters(stream, group, 1) for kind in self.kinds]
        self.same(letters, lambda given: [(letter.payload, letter.count) for letter in given])
        if letters[0]:
            for kind, (letter,) in zip(self.kinds, letters, strict=True):
                assert kind.bus.discard(stream, group, letter)
            self.handled[stream, group].add(letters[0][0].payload)

    @invariant()
    def states_are_the_same(self):
        for stream in RULES:
            self.same([kind.bus.state(stream) for kind in self.kinds])
        self.same([[(event.kind, event.group) for event in kind.events] for kind in self.kinds])

    @invariant()
    def nothing_is_lost(self):
        """What a required group has not handled is still there for it: unread, pending, or a dead letter."""
        for group in REQUIRED:
            state = self.kinds[0].bus.state(Stream.REPORTS)
            open_entries = len(self.sent[Stream.REPORTS]) - len(self.handled[Stream.REPORTS, group])
            if group not in state.groups:
                assert state.entries == len(self.sent[Stream.REPORTS])
                continue
            it = state.groups[group]
            assert it.pending + it.unread + it.dead >= open_entries


def run(buses):
    machine = type("Machine", (Calls,), {"open_buses": staticmethod(buses)})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=settings.default.max_examples // 5, stateful_step_count=30)
    )


def test_in_process():
    run(lambda: [InProcess()])


@needs_redis
def test_on_redis_as_in_process(server):
    run(lambda: [InProcess(), OnRedis(server.url)])
