"""What befalls a Redis server, and what its users see of it."""

import subprocess
import sys
import time
from threading import Event, Thread

import pytest

from esper_ray.bus.errors import BusUnavailable, MemoryFull, StreamFull
from esper_ray.bus.events import EventKind
from esper_ray.bus.opening import open_bus
from esper_ray.bus.streams import RULES, Stream, StreamRules
from esper_ray.errors import UserError
from tests.esper_ray.bus.patience import LONG_S, until
from tests.esper_ray.bus.servers import Server, needs_redis
from tests.esper_ray.bus.test_bus import handle_all

pytestmark = needs_redis
COMMANDS, REPORTS = Stream.COMMANDS, Stream.REPORTS
TIMEOUT_S = 1.1


@pytest.fixture
def own(tmp_path):
    """A server for this test alone."""
    with Server(tmp_path) as running:
        yield running


def until_it_works(do):
    """What something gives once the bus is there again."""
    ends = time.monotonic() + LONG_S
    while True:
        try:
            return do()
        except BusUnavailable:
            if time.monotonic() > ends:
                raise
            time.sleep(0.02)


class Sender(Thread):
    """Sends numbers until it is ended, each again until it is acknowledged."""

    def __init__(self, bus):
        super().__init__(daemon=True)
        self.bus, self.sent, self.failures, self.ended = bus, [], 0, Event()

    def run(self):
        while not self.ended.is_set():
            try:
                self.bus.send(REPORTS, b"%d" % len(self.sent))
            except BusUnavailable:
                self.failures += 1
                time.sleep(0.005)
            else:
                self.sent.append(b"%d" % len(self.sent))

    def wait_for(self, count):
        for _ in until(lambda: len(self.sent) >= count):
            time.sleep(0.005)

    def end(self):
        self.ended.set()
        self.join(LONG_S)


def kill(own, sender):
    own.kill()
    own.start()


def pause(own, sender):
    """Until whoever sends has noticed."""
    failures = sender.failures
    own.pause()
    try:
        for _ in until(lambda: sender.failures > failures):
            time.sleep(0.01)
    finally:
        own.go_on()


@pytest.mark.parametrize("faults", [(kill, kill, kill), (pause, kill, pause)])
def test_a_server_that_is_killed_or_paused_under_load_loses_nothing_that_was_acknowledged(own, faults):
    with open_bus(own.url, timeout_s=TIMEOUT_S) as sending, open_bus(own.url) as reading:
        reading.join(REPORTS, "learner")
        sender = Sender(sending)
        sender.start()
        handled = {}
        for fault in faults:
            sender.wait_for(len(sender.sent) + 20)
            for delivery in reading.receive(REPORTS, "learner", "c", count=10):
                assert reading.acknowledge(delivery)
                handled[delivery.entry_id] = delivery.payload
            fault(own, sender)
            until_it_works(lambda: reading.state(REPORTS))
        sender.wait_for(len(sender.sent) + 20)
        sender.end()
        while deliveries := reading.receive(REPORTS, "learner", "c"):
            for delivery in deliveries:
                assert reading.acknowledge(delivery)
                assert delivery.entry_id not in handled, "what is acknowledged stays so"
                handled[delivery.entry_id] = delivery.payload
        assert {*handled.values()} >= {*sender.sent}
        # What was on its way as the server died or did not answer may be there twice, and nothing else.
        assert len(handled) <= len(sender.sent) + sender.failures


def test_entries_in_somebodys_hands_outlive_the_server(own):
    with open_bus(own.url, claim_after_s=0.15) as bus:
        bus.send(COMMANDS, b"x")
        (held,) = bus.receive(COMMANDS, "executor", "a")
        own.kill()
        with pytest.raises(BusUnavailable, match="cannot be reached"):
            bus.acknowledge(held)
        own.start()
        (again,) = until_it_works(lambda: bus.receive(COMMANDS, "executor", "b", wait_s=LONG_S))
        assert (again.entry_id, again.payload, again.count) == (held.entry_id, b"x", 2)


def test_a_server_that_is_paused_is_an_error_and_then_goes_on(own):
    with open_bus(own.url, timeout_s=TIMEOUT_S, claim_after_s=0.15) as bus:
        bus.send(COMMANDS, b"before")
        own.pause()
        try:
            with pytest.raises(
                BusUnavailable, match=r"did not answer within 1.1 s; what was sent may have arrived or not"
            ):
                bus.send(COMMANDS, b"meanwhile")
            with pytest.raises(BusUnavailable, match="did not answer"):
                bus.receive(COMMANDS, "executor", "a", wait_s=0.5)
        finally:
            own.go_on()
        bus.send(COMMANDS, b"after")
        handled = []
        for _ in until(lambda: len(handled) >= 3):  # those sent meanwhile arrived, those read meanwhile are claimed
            handled.extend(handle_all(bus, COMMANDS, "executor", "b", wait_s=2 * bus.claim_after_s))
        assert sorted(handled) == [b"after", b"before", b"meanwhile"]


def test_a_server_whose_memory_is_full_refuses_to_take_and_gives_what_it_has(tmp_path):
    with Server(tmp_path, maxmemory="4mb") as own, open_bus(own.url, claim_after_s=0.15) as bus:
        bus.join(COMMANDS, "executor")
        client, sent = bus._server.client, []

        def fill():
            while len(sent) < 100:
                payload = b"%d" % len(sent) + bytes(100_000)
                bus.send(COMMANDS, payload)
                sent.append(payload)

        with pytest.raises(MemoryFull, match="nothing was sent"):
            fill()
        before = client.info("memory")["used_memory"]
        for _ in range(20):
            with pytest.raises(MemoryFull):
                fill()
        assert client.info("memory")["used_memory"] < before + 200_000
        client.config_set("maxmemory", 1)  # not even a byte is left
        with pytest.raises(MemoryFull):
            bus.join(COMMANDS, "another")
        with pytest.raises(MemoryFull):
            bus.send(Stream.TELEMETRY, b"x")
        held = bus.receive(COMMANDS, "executor", "dies", count=2)
        assert all(bus.renew(delivery) for delivery in held)
        claimed = []
        for _ in until(lambda: len(claimed) >= 2):
            received = bus.receive(COMMANDS, "executor", "lives", wait_s=0.02)
            claimed.extend(one for one in received if one.count > 1)
        assert {one.entry_id for one in held} <= {one.entry_id for one in claimed}
        assert all(bus.acknowledge(one) for one in claimed)
        assert bus.state(COMMANDS).entries == len(sent)
        handled = {one.payload for one in claimed}
        client.config_set("maxmemory", "4mb")
        bus.send(COMMANDS, bytes(100_000))  # there is room again
        for _ in until(lambda: handled == {*sent, bytes(100_000)}):
            handled.update(handle_all(bus, COMMANDS, "executor", wait_s=2 * bus.claim_after_s))


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_throws_away_is_refused(tmp_path, policy):
    refusal = pytest.raises(UserError, match=f"has maxmemory-policy {policy}.*Set maxmemory-policy noeviction")
    with Server(tmp_path, maxmemory_policy=policy) as own, refusal:
        open_bus(own.url)


def test_a_password_is_asked_for_and_never_shown(tmp_path):
    with Server(tmp_path, requirepass="right") as own:
        with open_bus(own.url.replace("//", "//:right@")) as bus:
            bus.send(COMMANDS, b"x")
        for word in ("//", "//:secret@", "//somebody:secret@"):
            with pytest.raises(BusUnavailable, match="refuses") as refused:
                open_bus(own.url.replace("//", word))
            assert "secret" not in str(refused.value)


def test_a_flush_makes_groups_anew(own):
    events = []
    with open_bus(own.url, on_event=events.append) as bus:
        bus.send(COMMANDS, b"gone")
        (held,) = bus.receive(COMMANDS, "executor", "c")
        bus._server.client.flushall()
        assert not bus.renew(held)
        assert not bus.acknowledge(held)
        assert "executor" not in bus.state(COMMANDS).groups
        bus.send(COMMANDS, b"new")
        assert handle_all(bus, COMMANDS, "executor") == [b"new"]
        assert [event.kind for event in events] == [EventKind.GROUP_REMADE]


def test_who_waits_during_a_flush_gets_what_comes(own):
    with open_bus(own.url) as bus:
        bus.join(COMMANDS, "executor")
        got = []
        reader = Thread(target=lambda: got.extend(bus.receive(COMMANDS, "executor", "c", wait_s=LONG_S)))
        reader.start()
        client = bus._server.client
        for _ in until(lambda: client.info("clients")["blocked_clients"]):
            time.sleep(0.005)
        client.flushall()
        bus.send(COMMANDS, b"new")
        reader.join(LONG_S)
        assert [delivery.payload for delivery in got] == [b"new"]


def test_what_others_put_there_lies_with_the_dead_letters(own):
    events = []
    with open_bus(own.url, claim_after_s=0.15, on_event=events.append) as bus:
        bus.send(COMMANDS, b"ours")
        client = bus._server.client
        client.xadd("esper:commands", {"other": b"\x80", "payload": b"x"})
        client.xadd("esper:commands", {"other": b"claimed"})
        assert [delivery.payload for delivery in bus.receive(COMMANDS, "executor", "c", count=2)] == [b"ours"]
        client.xreadgroup("executor", "somebody", {"esper:commands": ">"})
        for _ in until(lambda: len(events) >= 2):
            bus.receive(COMMANDS, "executor", "c", wait_s=0.02)
        assert [event.kind for event in events] == [EventKind.DEAD_LETTER] * 2
        assert all("not the bus's own" in event.detail for event in events)
        assert [letter.payload for letter in bus.dead_letters(COMMANDS, "executor")] == [b"x", b""]
        assert client.xrange("esper:commands:dead:executor")[1][1][b"other"] == b"claimed"


def test_what_others_delete_is_told(own):
    events = []
    with open_bus(own.url, claim_after_s=0.15, on_event=events.append) as bus:
        entry = bus.send(COMMANDS, b"x")
        bus.receive(COMMANDS, "executor", "c")
        bus._server.client.xdel("esper:commands", entry)
        for _ in until(lambda: events):
            assert bus.receive(COMMANDS, "executor", "c", wait_s=0.02) == ()
        assert [(event.kind, event.group) for event in events] == [(EventKind.ENTRY_MISSING, "executor")]
        assert bus.state(COMMANDS).groups["executor"].pending == 0


CONSUMER = """
import sys
from esper_ray.bus.opening import open_bus
from esper_ray.bus.streams import Stream
(delivery,) = open_bus(sys.argv[1], claim_after_s=0.15).receive(Stream.COMMANDS, "executor", "dies", wait_s=20)
print(delivery.payload.decode(), flush=True)
sys.stdin.read()
"""


def test_a_process_that_is_killed_before_it_acknowledges(server):
    with open_bus(server.url, claim_after_s=0.15) as bus:
        bus._server.client.flushdb()
        bus.send(COMMANDS, b"effect")
        command = [sys.executable, "-c", CONSUMER, server.url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "effect\n"
            process.kill()
        (again,) = bus.receive(COMMANDS, "executor", "lives", wait_s=LONG_S)
        assert (again.payload, again.count) == (b"effect", 2)
        assert bus.acknowledge(again)


def test_buses_of_other_names_are_others(server):
    with open_bus(server.url, name="one") as one, open_bus(server.url, name="two") as two:
        one.send(COMMANDS, b"x")
        assert two.receive(COMMANDS, "executor", "c") == ()
        assert handle_all(one, COMMANDS, "executor") == [b"x"]


def test_a_read_after_every_command_of_a_trim_costs_nothing(server, monkeypatch):
    sent, taken = [b"%d" % number for number in range(6)], []
    with (
        open_bus(server.url, name="between", claim_after_s=0.15) as bus,
        open_bus(server.url, name="between", claim_after_s=60) as other,
    ):
        other.join(REPORTS, "learner")
        for payload in sent:
            bus.send(REPORTS, payload)
        run = bus._server.client.execute_command

        def run_and_read(*arguments, **options):
            result = run(*arguments, **options)
            taken.extend(other.receive(REPORTS, "learner", "dies", count=1))
            return result

        monkeypatch.setattr(bus._server.client, "execute_command", run_and_read)
        assert bus.trim(REPORTS) == 0
        bus.send(REPORTS, b"6")
        monkeypatch.undo()
        assert taken, "nothing was read in between"
        handled = set()
        for _ in until(lambda: handled == {*sent, b"6"}):
            handled.update(handle_all(bus, REPORTS, "learner", "lives", wait_s=0.05))


def test_scripts_that_the_server_forgot_are_sent_again(server):
    with open_bus(server.url) as bus:
        bus._server.client.flushdb()
        bus.send(COMMANDS, b"x")
        bus._server.client.script_flush()
        bus.send(COMMANDS, b"y")
        assert handle_all(bus, COMMANDS, "executor") == [b"x", b"y"]


def test_streams_are_full_for_all_processes(server):
    rules = {**RULES, COMMANDS: StreamRules(("executor",), capacity=2)}
    with (
        open_bus(server.url, name="full", rules=rules) as one,
        open_bus(server.url, name="full", rules=rules) as two,
    ):
        one.send(COMMANDS, b"a")
        two.send(COMMANDS, b"b")
        for bus in (one, two):
            with pytest.raises(StreamFull):
                bus.send(COMMANDS, b"c")
