"""In whatever order sender, consumer, bus and clock fail, every report has its effect once, and is known to have it."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from esper_ray.bus.errors import BusUnavailable
from esper_ray.bus.streams import RULES, Role, Stream, StreamRules
from esper_ray.controller.reports.delivery import DeliveryConfig
from esper_ray.controller.reports.outbox import requeue
from tests.esper_ray.controller.reporting import found, record, seen
from tests.esper_ray.controller.test_report_delivery import DELIVERED, PARKED, Deaf, Post, drop


class Fallible(RuleBasedStateMachine):
    """A service, a learner and what is between them."""

    @initialize(capacity=st.sampled_from((2, 100)), attempts=st.sampled_from((2, 20)))
    def begin(self, capacity, attempts):
        self.place = Path(tempfile.mkdtemp())
        self.rules = {**RULES, Stream.REPORTS: StreamRules((Role.LEARNER,), capacity=capacity)}
        self.post = Post(self.place, self.rules, DeliveryConfig(attempts=attempts))
        self.epoch = 0
        self.decide(6)
        self.new_bus()
        self.step()

    @rule()
    def new_bus(self):
        """The bus ends, and with it all that is on it."""
        self.post.bus = Deaf(
            rules=self.rules, claim_after_s=1.0, on_event=lambda _: None, clock=lambda: self.post.now / 1e9
        )
        self.post.delivery = self.post.sender(self.post.bus)
        self.new_consumer()

    @rule(count=st.integers(1, 4))
    def decide(self, count):
        for _ in range(count):
            record(self.post.store, seen(self.epoch, 1.0), now=self.post.now)
            self.epoch += 1

    @rule()
    def step(self):
        self.post.delivery.step()

    @rule()
    def take(self):
        self.post.take_all()

    @rule(stream=st.sampled_from((Stream.REPORTS, Stream.ACKS)))
    def lose(self, stream):
        drop(self.post.bus, stream, Role.LEARNER if stream is Stream.REPORTS else Role.SERVICE)

    @rule()
    def take_and_die(self):
        """Between the effect and its acknowledgement."""
        self.post.bus.broken = Stream.ACKS
        try:
            self.post.takes.step()
        except BusUnavailable:
            self.new_consumer()
        self.post.bus.broken = None

    @rule()
    def new_consumer(self):
        self.post.takes.close()
        self.post.takes = self.post.taker()

    @rule()
    def new_service(self):
        bus = self.post.bus
        self.post.restart()
        self.post.delivery = self.post.sender(bus)

    @rule(seconds=st.sampled_from((0.5, 2.0, 61.0, 100_000.0, -3600.0)))
    def pass_time(self, seconds):
        self.post.pass_s(seconds)

    @invariant()
    def nothing_twice(self):
        if hasattr(self, "post"):
            effects = self.post.effects
            assert len(set(effects)) == len(effects)

    def teardown(self):
        if not hasattr(self, "post"):
            return
        try:
            self.post.settle()
            requeue(self.post.directory / "state", self.post.now)
            self.post.settle()
            assert len(self.post.effects) == max(self.epoch - 3, 0)
            assert self.post.of(PARKED) == {}
            assert set(found(self.post.directory / "state")) == set(self.post.of(DELIVERED)) <= set(self.post.effects)
            assert self.post.store.faults() == []
        finally:
            self.post.close()
            shutil.rmtree(self.place)


TestFallible = Fallible.TestCase
TestFallible.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
