"""Every report arrives, whatever happens on its way, and has its effect once."""

import random
import sqlite3
from contextlib import closing
from uuid import UUID

import pytest

from esper_ray.bus.errors import BusUnavailable, NotSent
from esper_ray.bus.in_process import InProcessBus
from esper_ray.bus.streams import RULES, Role, Stream, StreamRules
from esper_ray.controller.emitting import CallingSink, Telemetry
from esper_ray.controller.envelope import Envelope, seal
from esper_ray.controller.keys import KeyRing
from esper_ray.controller.records import FILE, StoreFailed
from esper_ray.controller.reports.delivery import DeliveryConfig, ReportDelivery
from esper_ray.controller.reports.field_report import ReportAck
from esper_ray.controller.reports.outbox import DeliveryState, requeue
from esper_ray.controller.reports.taking import TakesReports, TakingFailed
from esper_ray.controller.store import Store
from tests.esper_ray.bus.patience import until
from tests.esper_ray.bus.servers import Server, needs_redis
from tests.esper_ray.controller.reporting import found, reported
from tests.esper_ray.controller.sealing import NOW, OTHER_SECRET, RING, SECOND, sealed
from tests.esper_ray.controller.test_store import refusal

HOUR = 3600 * SECOND
PENDING, DELIVERED, PARKED = DeliveryState.PENDING, DeliveryState.DELIVERED, DeliveryState.PARKED


class Post:
    """A store with a sender, a bus, and whoever takes reports; all look at one clock."""

    def __init__(self, directory, rules=RULES, config=None):
        self.directory, self.now, self.config, self.told = directory, NOW, config or DeliveryConfig(), []
        self.bus = InProcessBus(rules=rules, claim_after_s=1.0, on_event=lambda _: None, clock=lambda: self.now / 1e9)
        self.telemetry = Telemetry([CallingSink(self.told.append)])
        self.open()
        self.takes = self.taker()

    def open(self):
        self.store = Store(self.directory / "state")
        self.delivery = self.sender(self.bus)

    def sender(self, bus, learner=True):
        if learner:
            bus.join(Stream.REPORTS, Role.LEARNER)
        return ReportDelivery(
            self.store,
            bus,
            lambda: RING,
            config=self.config,
            telemetry=self.telemetry,
            time_ns=lambda: self.now,
            draw=random.Random(0),
        )

    def taker(self, bus=None, take=None):
        def insert(connection, experience):
            connection.execute("CREATE TABLE IF NOT EXISTS effects (report_id TEXT, epoch INTEGER)")
            report = experience.report
            connection.execute("INSERT INTO effects VALUES (?, ?)", (str(report.report_id), report.epoch))

        return TakesReports(
            bus or self.bus,
            lambda: RING,
            self.directory / "taken.sqlite",
            take or insert,
            telemetry=self.telemetry,
            time_ns=lambda: self.now,
        )

    def restart(self):
        self.store.close()
        self.open()

    def pass_s(self, seconds):
        self.now += int(seconds * SECOND)

    def take_all(self):
        times = 0
        while self.takes.step():
            times += 1
        return times

    def settle(self, most=50):
        """Go on until nothing is pending."""
        for _ in range(most):
            self.delivery.step()
            self.take_all()
            self.pass_s(61)
            if not self.of(PENDING):
                return
        pytest.fail(f"{len(self.of(PENDING))} reports are pending for ever")

    @property
    def effects(self):
        try:
            return [key for (key,) in self.takes.connection.execute("SELECT report_id FROM effects")]
        except sqlite3.OperationalError:
            return []

    def of(self, state):
        return found(self.directory / "state", state)

    def names(self, item):
        self.telemetry.close()
        return [reading for reading in self.told if reading.item.name == item]

    def close(self):
        self.takes.close()
        self.store.close()
        self.telemetry.close()


@pytest.fixture
def post(tmp_path):
    with closing(Post(tmp_path)) as made:
        yield made


def drop(bus, stream, group):
    """What a group has still to handle is handled by nobody."""
    dropped = []
    while got := bus.receive(stream, group, "nobody"):
        for delivery in got:
            bus.acknowledge(delivery)
            dropped.append(delivery.payload)
    return dropped


def test_a_report_is_sent_taken_once_acknowledged_and_goes_after_a_day(post):
    reported(post.store, 5)
    ids = list(post.of(PENDING))
    assert post.delivery.step() == pytest.approx(0.75, abs=0.25)
    assert post.delivery.step() > 0.0
    assert post.take_all() == 5
    assert post.delivery.step() == float("inf")
    assert post.effects == ids == list(post.of(DELIVERED))
    assert all(entry.attempts == 1 for entry in post.of(DELIVERED).values())
    post.pass_s(86_399)
    post.delivery.step()
    assert len(post.of(DELIVERED)) == 5
    post.pass_s(2)
    post.delivery.step()
    assert found(post.directory / "state") == {}
    post.restart()
    assert post.store.faults() == []
    reported(post.store, 2, first=20)
    post.settle()
    assert len(set(post.effects)) == len(post.effects) == 7, "no id comes again"


def test_what_was_committed_and_not_sent_is_sent_by_the_next_service(post):
    reported(post.store, 3)
    ids = list(post.of(PENDING))
    post.restart()
    post.settle()
    assert post.effects == ids


def test_after_a_crash_between_sending_and_noting_it_arrives_twice_and_counts_once(post, monkeypatch):
    reported(post.store, 3)

    def dies(*_, **__):
        raise StoreFailed("the machine stops")

    monkeypatch.setattr(post.store, "transaction", dies)
    post.delivery.step()
    post.restart()
    assert [entry.attempts for entry in post.of(PENDING).values()] == [0, 0, 0]
    post.settle()
    assert len(post.effects) == 3


def test_a_lost_acknowledgement_is_asked_for_again_and_the_effect_is_once(post):
    reported(post.store, 2)
    post.delivery.step()
    first = post.take_all()
    assert len(drop(post.bus, Stream.ACKS, Role.SERVICE)) == 2
    post.pass_s(1.1)
    post.delivery.step()
    assert (first, post.take_all()) == (2, 2)
    post.delivery.step()
    assert [entry.attempts for entry in post.of(DELIVERED).values()] == [2, 2]
    assert len(post.effects) == 2
    assert len(post.names("tamiyo.report.retried")) == 2


def test_every_attempt_is_sealed_anew(post):
    reported(post.store, 1)
    sent = []
    for _ in range(3):
        post.delivery.step()
        sent += [Envelope.read(content) for content in drop(post.bus, Stream.REPORTS, Role.LEARNER)]
        post.pass_s(5)
    assert len({envelope.nonce for envelope in sent}) == 3
    assert [envelope.timestamp_ns for envelope in sent] == [NOW, NOW + 5 * SECOND, NOW + 10 * SECOND]
    assert len({envelope.payload for envelope in sent}) == 1
    assert {(envelope.type, envelope.audience) for envelope in sent} == {(Stream.REPORTS, "run")}


def test_waits_double_are_drawn_and_end_at_a_minute(post):
    reported(post.store, 1)
    waits = []
    for _ in range(10):
        wait = post.delivery.step()
        waits.append(wait)
        assert post.delivery.step() == wait, "nothing is due before"
        post.pass_s(wait)
    for times, wait in enumerate(waits):
        longest = min(2.0**times, 60.0)
        assert 0.5 * longest <= wait <= longest
    assert len(drop(post.bus, Stream.REPORTS, Role.LEARNER)) == 10


def test_a_clock_that_goes_back_holds_no_report_up(post):
    reported(post.store, 1)
    post.delivery.step()
    post.now -= HOUR
    post.delivery.step()
    assert len(drop(post.bus, Stream.REPORTS, Role.LEARNER)) == 2


def test_what_nobody_takes_is_parked_kept_and_put_back(tmp_path):
    with closing(Post(tmp_path, config=DeliveryConfig(attempts=3))) as post:
        reported(post.store, 2)
        for _ in range(6):
            post.delivery.step()
            post.pass_s(61)
        assert {entry.note for entry in post.of(PARKED).values()} == {
            "it was sent 3 times, and nobody has acknowledged it"
        }
        assert len(drop(post.bus, Stream.REPORTS, Role.LEARNER)) == 6
        assert post.delivery.step() == float("inf")
        one, other = post.of(PARKED)
        state = post.directory / "state"
        assert requeue(state, post.now, one) == (one,), "beside the service"
        assert list(post.of(PENDING)) == [one]
        assert "it is pending, not parked" in refusal(lambda: requeue(state, post.now, one))
        post.settle()
        assert post.effects == [one]
        assert requeue(state, post.now) == (other,)
        assert requeue(state, post.now) == ()
        post.restart()
        post.settle()
        assert post.effects == [one, other]
        assert [reading.value for reading in post.names("tamiyo.reports.parked")][-1] == 0.0
        assert len(post.names("tamiyo.report.parked")) == 2


def test_who_comes_late_to_a_parked_report_has_it_all_the_same(tmp_path):
    with closing(Post(tmp_path, config=DeliveryConfig(attempts=1))) as post:
        reported(post.store, 1)
        post.delivery.step()
        post.pass_s(61)
        post.delivery.step()
        assert len(post.of(PARKED)) == 1
        post.take_all()
        post.delivery.step()
        assert len(post.of(DELIVERED)) == 1


def test_a_full_stream_loses_nothing(tmp_path):
    rules = {**RULES, Stream.REPORTS: StreamRules((Role.LEARNER,), capacity=3)}
    with closing(Post(tmp_path, rules)) as post:
        reported(post.store, 10)
        post.delivery.step()
        attempts = [entry.attempts for entry in post.of(PENDING).values()]
        assert attempts == [1] * 3 + [0] * 7, "what the bus refuses is no attempt"
        assert post.delivery.step() > 0.0
        assert [entry.attempts for entry in post.of(PENDING).values()] == attempts, "and it is not asked at once again"
        post.settle()
        assert len(set(post.effects)) == len(post.effects) == 10
        assert len(post.names("tamiyo.reports.held_up")) >= 1


def test_a_stream_that_nobody_reads_is_not_filled(tmp_path):
    with closing(Post(tmp_path, config=DeliveryConfig(most_untaken=3))) as post:
        reported(post.store, 5)
        for _ in range(30):
            post.delivery.step()
            post.pass_s(61)
        assert post.bus.state(Stream.REPORTS).entries == 3
        assert sorted(entry.attempts for entry in post.of(PENDING).values()) == [0, 0, 1, 1, 1], "and nothing is parked"
        post.settle()
        assert len(set(post.effects)) == len(post.effects) == 5


def test_what_there_is_no_learner_for_is_not_sent_before_there_is_one(post):
    post.bus.leave(Stream.REPORTS, Role.LEARNER)
    reported(post.store, 3)
    for _ in range(100):
        post.delivery.step()
        post.pass_s(61)
    assert [entry.attempts for entry in post.of(PENDING).values()] == [0] * 3
    assert post.bus.state(Stream.REPORTS).entries == 0
    assert len(post.names("tamiyo.reports.held_up")) == 1, "it is said once"
    post.bus.join(Stream.REPORTS, Role.LEARNER)
    post.settle()
    assert len(post.effects) == 3


def test_a_bus_that_is_away_for_long_parks_nothing(post):
    reported(post.store, 3)
    closed = InProcessBus()
    closed.close()
    post.delivery = post.sender(closed, learner=False)
    for _ in range(200):
        assert post.delivery.step() > 0.0
        post.pass_s(61)
    assert [entry.attempts for entry in post.of(PENDING).values()] == [0] * 3
    post.delivery = post.sender(post.bus)
    post.settle()
    assert len(post.effects) == 3


def test_what_no_stream_admits_is_parked_alone(tmp_path):
    rules = {**RULES, Stream.REPORTS: StreamRules((Role.LEARNER,), payload_bytes=5000)}
    with closing(Post(tmp_path, rules)) as post:
        reported(post.store, 1, run_id="large", mask=(1,) * 3000)
        reported(post.store, 3)
        post.settle()
        assert len(post.effects) == 3
        (entry,) = post.of(PARKED).values()
        assert entry.report.run_id == "large"
        assert "admits 5,000 bytes at most" in entry.note


def test_more_than_a_batch_is_delivered_and_at_once(post):
    reported(post.store, 40)
    while post.delivery.step() == 0.0:
        pass
    assert post.take_all() == 40
    while post.delivery.step() == 0.0:
        pass
    assert len(post.of(DELIVERED)) == 40


def test_damaged_rows_hide_no_later_report_and_are_left_as_they_are(post):
    reported(post.store, 50)
    ids = list(post.of(PENDING))
    with closing(sqlite3.connect(post.directory / "state" / FILE)) as connection, connection:
        for report_id in ids[:20]:
            connection.execute("UPDATE reports SET content = x'00' WHERE report_id = ?", (report_id,))
        connection.execute("UPDATE decisions SET level = 'RED' WHERE sequence = 21")
    for _ in range(20):
        post.delivery.step()
        post.take_all()
    assert post.effects == ids[21:]
    assert len(post.store.faults()) == 21
    refused = post.names("tamiyo.report.refused")
    assert len(refused) == 21, "each is told of once in a while"
    assert {reading.part for reading in refused} == {"unreadable"}


# ------------------------------------------------------------------ acknowledgements that are none
def ack_of(report_id, run_id="run", audience=None, key=RING.signing, now=NOW, payload=None):
    content = (
        ReportAck(report_id=UUID(report_id), run_id=run_id).model_dump_json().encode() if payload is None else payload
    )
    return seal(key, Stream.ACKS, audience or run_id, content, now).content


def test_forged_acknowledgements_change_nothing_and_hold_nobody_up(post):
    reported(post.store, 1)
    (report_id,) = post.of(PENDING)
    post.delivery.step()
    stranger = KeyRing.first(NOW).signing
    forged = {
        "unknown_key": ack_of(report_id, key=stranger),
        "bad_signature": ack_of(report_id)[:-1] + b"\0",
        "missing_signature": b"ack",
        "wrong_type": seal(RING.signing, Stream.REPORTS, "run", b"", NOW).content,
        "stale": ack_of(report_id, now=NOW - 8 * 24 * HOUR),
        "future": ack_of(report_id, now=NOW + HOUR),
        "unreadable": ack_of(report_id, audience="another run"),
    }
    nothing = [ack_of(report_id, payload=b"{}"), ack_of(report_id, run_id="another run"), sealed(OTHER_SECRET)]
    for content in (*forged.values(), *nothing):
        post.bus.send(Stream.ACKS, content)
    post.delivery.step()
    assert list(post.of(PENDING)) == [report_id]
    assert post.bus.state(Stream.ACKS).groups[Role.SERVICE].pending == 0
    post.bus.send(Stream.ACKS, ack_of(report_id))
    post.delivery.step()
    assert list(post.of(DELIVERED)) == [report_id]
    assert {reading.part for reading in post.names("tamiyo.report.refused")} == set(forged)


def test_unknown_and_repeated_acknowledgements_are_harmless_though_nonces_were_lost(post):
    reported(post.store, 2)
    one, other = post.of(PENDING)
    again = ack_of(one)
    for content in (again, again, ack_of("00000000-0000-0000-0000-000000000000"), ack_of(one)):
        post.bus.send(Stream.ACKS, content)
    post.delivery.step()
    assert list(post.of(DELIVERED)) == [one]
    before = post.of(DELIVERED)
    with closing(sqlite3.connect(post.directory / "state" / FILE)) as connection, connection:
        assert connection.execute("DELETE FROM nonces").rowcount == 3
    post.restart()
    post.pass_s(10)
    post.bus.send(Stream.ACKS, again)
    post.delivery.step()
    assert post.of(DELIVERED) == before
    assert list(post.of(PENDING)) == [other]


def test_an_acknowledgement_waits_for_a_store_that_cannot_be_written(post, monkeypatch):
    reported(post.store, 1)
    post.delivery.step()
    post.take_all()

    def fails(*_, **__):
        raise StoreFailed("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(post.store, "transaction", fails)
        post.delivery.step()
        assert len(post.of(PENDING)) == 1
    post.pass_s(2)
    post.delivery.step()
    assert len(post.of(DELIVERED)) == 1


# ------------------------------------------------------------------ whoever takes them
class Deaf(InProcessBus):
    """A bus on which one stream fails."""

    broken = None

    def send(self, stream, payload):
        if stream is self.broken:
            raise BusUnavailable("the bus is away")
        return super().send(stream, payload)


def test_a_consumer_that_dies_between_effect_and_acknowledgement_handles_nothing_twice(post):
    bus = post.bus = Deaf(claim_after_s=1.0, on_event=lambda _: None, clock=lambda: post.now / 1e9)
    post.delivery, post.takes = post.sender(bus), post.taker()
    reported(post.store, 1)
    post.delivery.step()
    bus.broken = Stream.ACKS
    with pytest.raises(BusUnavailable):
        post.takes.step()
    assert len(post.effects) == 1
    bus.broken = None
    post.takes.close()
    post.takes = post.taker()
    assert not post.takes.step()
    post.pass_s(1.5)
    assert post.takes.step(), "the same entry comes again"
    post.delivery.step()
    assert len(post.effects) == 1
    assert len(post.of(DELIVERED)) == 1


def test_an_effect_that_fails_is_undone_and_tried_again(post):
    reported(post.store, 2)
    post.delivery.step()
    ill = [True]

    def take(connection, experience):
        connection.execute("CREATE TABLE IF NOT EXISTS effects (report_id TEXT, epoch INTEGER)")
        connection.execute("INSERT INTO effects VALUES (?, 0)", (str(experience.report.report_id),))
        if ill:
            ill.clear()
            raise ValueError("no room for it")

    post.takes.close()
    post.takes = post.taker(take=take)
    with pytest.raises(TakingFailed, match="could not be taken in: no room for it"):
        post.takes.step()
    assert post.effects == []
    post.pass_s(1.5)
    post.take_all()
    assert sorted(post.effects) == sorted(post.of(PENDING))


def test_what_is_no_report_is_told_of_let_go_and_blocks_nothing(post):
    reported(post.store, 1)
    report = seal(RING.signing, Stream.REPORTS, "run", b"no report", NOW).content
    for content in (b"", b"\x80\x04pickle", sealed(OTHER_SECRET, type=b"reports"), sealed(type=b"acks"), report):
        post.bus.send(Stream.REPORTS, content)
    post.delivery.step()
    assert post.take_all() == 6
    assert len(post.effects) == 1
    assert post.bus.state(Stream.REPORTS).groups[Role.LEARNER].pending == 0
    reasons = [reading.part for reading in post.names("tamiyo.report.refused")]
    assert reasons == ["missing_signature", "missing_signature", "unknown_key", "wrong_type", "unreadable"]


def test_a_report_under_another_runs_name_is_no_report(post):
    reported(post.store, 1)
    post.delivery.step()
    (content,) = drop(post.bus, Stream.REPORTS, Role.LEARNER)
    payload = Envelope.read(content).payload
    post.bus.send(Stream.REPORTS, seal(RING.signing, Stream.REPORTS, "another run", payload, NOW).content)
    assert post.take_all() == 1
    assert post.effects == []


# ------------------------------------------------------------------ in a thread, and over a server
def test_in_a_thread_reports_arrive_by_themselves(tmp_path):
    with closing(Post(tmp_path)) as post, post.delivery:
        reported(post.store, 3)
        for _ in until(lambda: len(post.of(DELIVERED)) == 3):
            post.takes.step(0.02)
        assert len(post.effects) == 3
    post.delivery.close()


@needs_redis
def test_over_redis_that_dies_under_way_every_report_arrives_once(tmp_path):
    from esper_ray.bus.redis_bus import RedisBus

    (tmp_path / "redis").mkdir()
    with (
        Server(tmp_path / "redis") as server,
        RedisBus(server.url, claim_after_s=0.5, on_event=lambda _: None) as bus,
        closing(Post(tmp_path)) as post,
    ):
        post.takes.close()
        post.bus, post.takes = bus, post.taker(bus)
        post.delivery = post.sender(bus)
        reported(post.store, 6)
        post.delivery.step()
        assert post.takes.step()
        server.kill()
        post.pass_s(61)
        post.delivery.step()
        with pytest.raises(BusUnavailable):
            post.takes.step()
        server.start()
        for _ in until(lambda: len(post.of(DELIVERED)) == 6):
            post.pass_s(61)
            post.delivery.step()
            while post.takes.step():
                pass
        assert len(set(post.effects)) == len(post.effects) == 6


def test_no_error_of_a_bus_is_taken_for_success(post):
    """``publish → False`` counted as success is on record elsewhere: here sending returns an id, or raises."""
    reported(post.store, 1)

    class Refusing(InProcessBus):
        def send(self, stream, payload):
            raise NotSent("it is too large")

    post.delivery = post.sender(Refusing())
    post.delivery.step()
    assert len(post.of(PARKED)) == 1
    assert post.of(DELIVERED) == {}
