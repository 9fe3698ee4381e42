"""What holds of every bus."""

import time
from threading import Event, Thread

import pytest

from esper_ray.bus.errors import BusUnavailable, NotSent, StreamFull
from esper_ray.bus.events import EventKind
from esper_ray.bus.in_process import InProcessBus
from esper_ray.bus.interface import MOST_DELIVERIES
from esper_ray.bus.renewing import Renewed
from esper_ray.bus.streams import RULES, Stream
from tests.esper_ray.bus.patience import LONG_S, until

COMMANDS, REPORTS, TELEMETRY = Stream.COMMANDS, Stream.REPORTS, Stream.TELEMETRY
PAYLOADS = [b"", b"one", b"\x00\xff\r\n*3\r\n", bytes(range(256))]


def kinds(events):
    return [event.kind for event in events]


def handle_all(bus, stream, group, consumer="c", wait_s=0.0):
    """Payloads of all that is there; each is acknowledged."""
    handled = []
    while deliveries := bus.receive(stream, group, consumer, wait_s=wait_s):
        for delivery in deliveries:
            assert bus.acknowledge(delivery)
            handled.append(delivery.payload)
    return handled


def test_what_is_sent_arrives_once_and_in_order_at_every_group(bus):
    for payload in PAYLOADS:
        bus.send(COMMANDS, payload)
    for group in ("executor", "audit", "another"):
        assert handle_all(bus, COMMANDS, group) == PAYLOADS
        assert handle_all(bus, COMMANDS, group) == []


def test_streams_know_nothing_of_each_other(bus):
    for stream in Stream:
        bus.send(stream, stream.encode())
    for stream in Stream:
        assert handle_all(bus, stream, "group") == [stream.encode()]


def test_consumers_of_a_group_share_its_entries(bus):
    sent = [b"%d" % number for number in range(8)]
    for payload in sent:
        bus.send(COMMANDS, payload)
    taken = [bus.receive(COMMANDS, "executor", name, count=3) for name in ("a", "b", "c")]
    assert [len(part) for part in taken] == [3, 3, 2]
    assert [delivery.payload for part in taken for delivery in part] == sent
    assert {delivery.count for part in taken for delivery in part} == {1}
    assert [delivery.consumer for delivery in taken[1]] == ["b"] * 3


def test_who_waits_gets_what_is_sent_meanwhile(bus):
    bus.join(COMMANDS, "executor")
    got = []
    reader = Thread(target=lambda: got.extend(bus.receive(COMMANDS, "executor", "a", wait_s=LONG_S)))
    reader.start()
    bus.send(COMMANDS, b"now")
    reader.join(LONG_S)
    assert [delivery.payload for delivery in got] == [b"now"]
    assert bus.receive(COMMANDS, "executor", "a", wait_s=0.01) == ()


def test_who_waits_while_the_bus_is_closed_is_told_so(bus):
    bus.join(COMMANDS, "executor")
    said = []

    def wait():
        try:
            while True:
                bus.receive(COMMANDS, "executor", "a", wait_s=LONG_S)
        except Exception as error:
            said.append(repr(error))

    reader = Thread(target=wait)
    reader.start()
    bus.receive(COMMANDS, "executor", "b", wait_s=0.05)
    bus.close()
    reader.join(LONG_S)
    assert said == [repr(BusUnavailable("the bus is closed"))]


def test_what_a_dead_consumer_had_in_its_hands_goes_to_another(bus):
    bus.send(COMMANDS, b"effect done, not acknowledged")
    (dead,) = bus.receive(COMMANDS, "executor", "dies")
    assert bus.receive(COMMANDS, "executor", "lives") == ()
    (again,) = bus.receive(COMMANDS, "executor", "lives", wait_s=LONG_S)
    assert (again.entry_id, again.payload, again.count) == (dead.entry_id, dead.payload, 2)
    assert not bus.renew(dead)
    assert bus.acknowledge(again)
    assert not bus.acknowledge(again)
    assert not bus.acknowledge(dead)
    assert bus.state(COMMANDS).groups["executor"].pending == 0


def test_a_consumer_that_comes_back_gets_its_own(bus):
    bus.send(COMMANDS, b"x")
    bus.receive(COMMANDS, "executor", "a")
    (again,) = bus.receive(COMMANDS, "executor", "a", wait_s=LONG_S)
    assert (again.payload, again.count) == (b"x", 2)


def test_an_entry_that_nobody_handles_becomes_a_dead_letter(bus, events):
    entry = bus.send(COMMANDS, b"poison")
    counts = []
    for _ in until(lambda: events):
        for delivery in bus.receive(COMMANDS, "executor", f"c{len(counts)}", wait_s=0.01):
            counts.append(delivery.count)
    assert counts == list(range(1, MOST_DELIVERIES + 1))
    assert kinds(events) == [EventKind.DEAD_LETTER]
    (letter,) = bus.dead_letters(COMMANDS, "executor")
    assert (letter.entry_id, letter.payload, letter.count) == (entry, b"poison", MOST_DELIVERIES)
    state = bus.state(COMMANDS).groups["executor"]
    assert (state.pending, state.dead) == (0, 1)
    assert bus.trim(COMMANDS) == 1
    assert bus.dead_letters(COMMANDS, "executor") == (letter,)
    assert bus.discard(COMMANDS, "executor", letter)
    assert not bus.discard(COMMANDS, "executor", letter)
    assert bus.dead_letters(COMMANDS, "executor") == ()


def test_poison_does_not_keep_others_from_their_entries(bus, events):
    bus.send(COMMANDS, b"poison")
    handled = []
    for number in range(7):
        bus.send(COMMANDS, b"%d" % number)
    for _ in until(lambda: events):
        for delivery in bus.receive(COMMANDS, "executor", "c", count=1, wait_s=0.02):
            if delivery.payload != b"poison":
                bus.acknowledge(delivery)
                handled.append(delivery.payload)
    assert handled == [b"%d" % number for number in range(7)]
    assert kinds(events) == [EventKind.DEAD_LETTER]


def test_a_slow_consumer_that_renews_is_not_robbed(monkeypatch):
    """By a clock that moves half a claim's time after every renewal."""
    renewals, renew = [], InProcessBus.renew
    monkeypatch.setattr(InProcessBus, "renew", lambda bus, of: (renew(bus, of), renewals.append(of))[0])
    now = 0.0
    with InProcessBus(claim_after_s=0.06, clock=lambda: now) as bus:
        bus.send(COMMANDS, b"slow")
        (mine,) = bus.receive(COMMANDS, "executor", "slow")
        with Renewed(bus, [mine]) as renewed:
            for _ in range(6):
                seen = len(renewals)
                for _ in until(lambda: len(renewals) > seen + 1):  # noqa: B023 - asked here and now
                    time.sleep(0.001)
                now += bus.claim_after_s / 2
                assert bus.receive(COMMANDS, "executor", "thief") == ()
            assert renewed.lost == ()
        now += bus.claim_after_s
        (taken,) = bus.receive(COMMANDS, "executor", "thief")
        assert taken.count == 2, "nobody renews any more"


def test_a_claim_that_another_has_is_lost_and_not_taken_back(bus):
    bus.send(COMMANDS, b"x")
    (mine,) = bus.receive(COMMANDS, "executor", "slow")
    (theirs,) = bus.receive(COMMANDS, "executor", "quick", wait_s=LONG_S)
    with Renewed(bus, [mine]) as renewed:
        ends = time.monotonic() + LONG_S
        while not renewed.lost and time.monotonic() < ends:
            time.sleep(0.01)
    assert renewed.lost == (mine,)
    assert bus.renew(theirs) or bus.receive(COMMANDS, "executor", "slow", wait_s=LONG_S)


def test_a_group_that_comes_late_reads_from_the_beginning(bus):
    sent = [b"a", b"b", b"c"]
    for payload in sent:
        bus.send(COMMANDS, payload)
    assert bus.receive(COMMANDS, "executor", "slow", count=1)
    assert handle_all(bus, COMMANDS, "late") == sent
    bus.trim(COMMANDS)
    assert handle_all(bus, COMMANDS, "later") == sent


@pytest.mark.parametrize("present", [(), ("learner",), ("service",)])
def test_nothing_goes_while_a_required_group_is_missing(bus, present):
    sent = [b"%d" % number for number in range(8)]
    for payload in sent:
        bus.send(REPORTS, payload)
    for group in (*present, "optional"):
        assert handle_all(bus, REPORTS, group) == sent
    assert bus.trim(REPORTS) == 0
    assert bus.state(REPORTS).missing == tuple(name for name in ("learner", "service") if name not in present)
    with pytest.raises(StreamFull, match="holds 8 entries"):
        bus.send(REPORTS, b"more")
    for group in ("learner", "service"):
        assert handle_all(bus, REPORTS, group) == (sent if group not in present else [])
    bus.send(REPORTS, b"more")
    assert bus.state(REPORTS).entries == 1


def test_an_entry_stays_until_the_slowest_has_acknowledged_it(bus):
    for number in range(6):
        bus.send(REPORTS, b"%d" % number)
    assert len(handle_all(bus, REPORTS, "service")) == 6
    held = bus.receive(REPORTS, "learner", "slow", count=4)
    assert bus.trim(REPORTS) == 0
    assert bus.acknowledge(held[0])
    assert bus.acknowledge(held[2])
    assert bus.trim(REPORTS) == 1, "the second is pending"
    assert bus.acknowledge(held[1])
    assert bus.trim(REPORTS) == 2
    assert bus.acknowledge(held[3])
    assert bus.trim(REPORTS) == 1, "two are not read"
    assert bus.state(REPORTS).entries == 2
    assert handle_all(bus, REPORTS, "learner") == [b"4", b"5"]


def test_a_read_between_two_looks_at_a_stream_costs_nothing(bus):
    """Readers, acknowledgements and trimming from several threads at once: each entry is handled, none goes before."""
    bus.join(REPORTS, "learner")
    bus.join(REPORTS, "service")
    count, handled, ended = 100, {"learner": set(), "service": set()}, Event()

    def read(group, name):
        while not ended.is_set() and len(handled[group]) < count:
            for delivery in bus.receive(REPORTS, group, name, count=2, wait_s=0.01):
                if delivery.count == 1 and int(delivery.payload) % 9 == 4:
                    continue  # as if this consumer had died: it must be there for the other
                if bus.acknowledge(delivery):
                    handled[group].add(delivery.payload)

    def trim():
        while not ended.is_set():
            bus.trim(REPORTS)
            time.sleep(0.001)

    threads = [Thread(target=read, args=(group, name)) for group in handled for name in "ab"] + [Thread(target=trim)]
    for thread in threads:
        thread.start()
    ends = time.monotonic() + LONG_S
    sent = [b"%d" % number for number in range(count)]
    for payload in sent:
        while time.monotonic() < ends:
            try:
                bus.send(REPORTS, payload)
                break
            except StreamFull:
                time.sleep(0.001)
    for thread in threads[:-1]:
        thread.join(max(ends - time.monotonic(), 0))
    ended.set()
    for thread in threads:
        thread.join(LONG_S)
    assert handled == {"learner": set(sent), "service": set(sent)}


def test_a_full_stream_refuses_and_loses_nothing(bus):
    bus.join(COMMANDS, "executor")
    sent = [b"%d" % number for number in range(8)]
    for payload in sent:
        bus.send(COMMANDS, payload)
    for _ in range(3):
        with pytest.raises(StreamFull, match="required: executor"):
            bus.send(COMMANDS, b"too much")
    (first,) = bus.receive(COMMANDS, "executor", "c", count=1)
    with pytest.raises(StreamFull):
        bus.send(COMMANDS, b"still too much")
    bus.acknowledge(first)
    bus.send(COMMANDS, b"fits")
    with pytest.raises(StreamFull):
        bus.send(COMMANDS, b"too much")
    assert handle_all(bus, COMMANDS, "executor") == [*sent[1:], b"fits"]


def test_too_large_a_payload_is_refused(bus):
    bus.send(REPORTS, bytes(1000))
    with pytest.raises(NotSent, match="1,000 bytes at most, and got 1,001"):
        bus.send(REPORTS, bytes(1001))
    assert bus.state(REPORTS).entries == 1


def test_an_optional_group_that_lags_is_removed_with_an_event(bus, events):
    bus.join(COMMANDS, "lags")
    for number in range(5):
        bus.send(COMMANDS, b"%d" % number)
        handle_all(bus, COMMANDS, "executor")
        if number < 4:
            bus.receive(COMMANDS, "lags", "c", count=1)  # pending counts as well
    assert events == []
    bus.send(COMMANDS, b"5")
    assert [(event.kind, event.stream, event.group) for event in events] == [
        (EventKind.GROUP_REMOVED, COMMANDS, "lags")
    ]
    assert "5 entries behind, and 4 are admitted" in events[0].detail
    assert set(bus.state(COMMANDS).groups) == {"executor"}


def test_a_required_group_that_lags_stays(bus, events):
    bus.join(COMMANDS, "executor")
    for number in range(8):
        bus.send(COMMANDS, b"%d" % number)
    bus.trim(COMMANDS)
    assert set(bus.state(COMMANDS).groups) == {"executor"}
    assert events == []


def test_a_removed_group_begins_again(bus, events):
    bus.join(COMMANDS, "lags")
    for number in range(8):
        bus.send(COMMANDS, b"%d" % number)
        if number == 1:
            handle_all(bus, COMMANDS, "executor")
    bus.join(COMMANDS, "executor")
    bus.trim(COMMANDS)
    assert "lags" not in bus.state(COMMANDS).groups
    assert handle_all(bus, COMMANDS, "lags") == [b"%d" % number for number in range(2, 8)]
    assert kinds(events) == [EventKind.GROUP_REMOVED, EventKind.GROUP_REMADE]


def test_telemetry_lets_the_oldest_go(bus, events):
    bus.join(TELEMETRY, "monitor")
    for number in range(5):
        bus.send(TELEMETRY, b"%d" % number)
    held = bus.receive(TELEMETRY, "monitor", "dies", count=2)
    for number in range(5, 12):
        bus.send(TELEMETRY, b"%d" % number)
    assert bus.state(TELEMETRY).entries == 8
    assert not bus.renew(held[0])
    assert handle_all(bus, TELEMETRY, "monitor") == [b"%d" % number for number in range(4, 12)]
    assert bus.receive(TELEMETRY, "monitor", "c", wait_s=2 * bus.claim_after_s) == ()
    assert bus.state(TELEMETRY).groups["monitor"].pending == 0
    assert events == []


def test_dead_letters_that_are_too_many_hold_the_stream_back(bus, events):
    for group in ("learner", "service"):
        bus.join(REPORTS, group)

    def fail(number):
        bus.send(REPORTS, b"%d" % number)
        handle_all(bus, REPORTS, "service")
        seen = len(events)
        for _ in until(lambda: len(events) > seen):
            bus.receive(REPORTS, "learner", "c", wait_s=0.01)

    for number in range(0, 8, 4):  # each as often as it may be, four at a time
        for more in range(3):
            bus.send(REPORTS, b"%d" % (number + more))
        fail(number + 3)
        for _ in until(lambda: not bus.state(REPORTS).groups["learner"].pending):
            bus.receive(REPORTS, "learner", "c", wait_s=0.01)
    assert kinds(events) == [EventKind.DEAD_LETTER] * 8
    events.clear()
    fail(8)
    assert set(kinds(events)) == {EventKind.DEAD_LETTERS_FULL}
    for _ in range(3):  # in vain, and no delivery
        events.clear()
        for _ in until(lambda: events):
            bus.receive(REPORTS, "learner", "c", wait_s=0.01)
    assert bus.state(REPORTS).entries == 1
    assert bus.state(REPORTS).groups["learner"].pending == 1
    assert bus.discard(REPORTS, "learner", bus.dead_letters(REPORTS, "learner", 1)[0])
    for _ in until(lambda: not bus.state(REPORTS).groups["learner"].pending):
        assert bus.receive(REPORTS, "learner", "c", wait_s=0.01) == ()
    letter = bus.dead_letters(REPORTS, "learner")[-1]
    assert (letter.payload, letter.count) == (b"8", MOST_DELIVERIES)


def test_a_closed_bus_says_so(bus):
    bus.send(COMMANDS, b"x")
    (delivery,) = bus.receive(COMMANDS, "executor", "c")
    bus.close()
    for call in (
        lambda: bus.send(COMMANDS, b"y"),
        lambda: bus.receive(COMMANDS, "executor", "c"),
        lambda: bus.acknowledge(delivery),
        lambda: bus.renew(delivery),
        lambda: bus.trim(COMMANDS),
        lambda: bus.state(COMMANDS),
    ):
        with pytest.raises(BusUnavailable, match="closed"):
            call()


def test_who_is_told_cannot_harm_what_was_done(bus):
    def fail(event):
        raise RuntimeError(event)

    bus._on_event = fail
    bus.join(COMMANDS, "lags")
    for number in range(6):
        bus.send(COMMANDS, b"%d" % number)
        handle_all(bus, COMMANDS, "executor")
    assert set(bus.state(COMMANDS).groups) == {"executor"}


def test_who_asks_for_none_is_told(bus):
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        bus.receive(COMMANDS, "executor", "c", count=0)


def test_every_stream_has_rules_and_only_telemetry_drops():
    assert set(RULES) == set(Stream)
    assert [stream for stream in Stream if not RULES[stream].keeps_all] == [TELEMETRY]
    assert [stream for stream in Stream if not RULES[stream].required] == [COMMANDS, TELEMETRY]
