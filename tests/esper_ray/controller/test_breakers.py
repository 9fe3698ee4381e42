import random
from threading import Barrier, Thread

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from esper_ray.controller.breakers import BreakerConfig, BreakerOpenError, BreakerState, CircuitBreaker, RetryConfig
from esper_ray.errors import UserError


class Clock:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds

    def sleep(self, seconds):
        self.seconds += seconds


class Model:
    """The breaker's rules, a call at a time: what was admitted when, and what became of it."""

    def __init__(self):
        self.state, self.count, self.cooled_at, self.trial = "closed", 0, None, None
        self.calls, self.changes = {}, 0

    def pass_time(self, now):
        if self.state == "open" and now >= self.cooled_at:
            self.state, self.count, self.trial = "half_open", 0, None
        if self.trial is not None and now >= self.cooled_at:
            self.trial = None

    def admits(self, now):
        self.pass_time(now)
        return self.state == "closed" or (self.state == "half_open" and self.trial is None)

    def begin(self, call, now):
        if self.state == "half_open":
            self.trial, self.cooled_at = call, now + 30.0
        self.calls[call] = (self.state, self.changes)

    def become(self, state, now):
        self.state, self.count, self.trial = state, 0, None
        self.changes, self.cooled_at = self.changes + 1, now + 30.0

    def end(self, call, succeeded, now):
        self.pass_time(now)
        began = self.calls.pop(call, None)
        if began is None or began[1] != self.changes or (began[0] == "half_open" and self.trial != call):
            return
        self.trial = None
        if self.state == "closed":
            self.count = 0 if succeeded else self.count + 1
            if self.count == 3:
                self.become("open", now)
        elif not succeeded:
            self.become("open", now)
        else:
            self.count += 1
            if self.count == 2:
                self.become("closed", now)


class BreakerLife(RuleBasedStateMachine):
    permits = Bundle("permits")

    def __init__(self):
        super().__init__()
        self.clock, self.model = Clock(), Model()
        self.breaker = CircuitBreaker("bus", now=self.clock)
        self.number = 0

    @rule(target=permits)
    def acquire(self):
        admitted = self.model.admits(self.clock())
        permit = self.breaker.try_acquire()
        assert (permit is not None) == admitted
        if permit is None:
            return None, None
        self.number += 1
        self.model.begin(self.number, self.clock())
        return self.number, permit

    @rule(call=permits, succeeded=st.booleans())
    def record(self, call, succeeded):
        """Any call's outcome, also a second time or late."""
        number, permit = call
        if permit is not None:
            self.model.end(number, succeeded, self.clock())
            self.breaker.record(permit, succeeded=succeeded)

    @rule(succeeded=st.booleans(), times=st.sampled_from([1, 1, 2, 3]))
    def call(self, succeeded, times):
        for _ in range(times):
            number, permit = self.acquire()
            if permit is not None:
                self.model.end(number, succeeded, self.clock())
                self.breaker.record(permit, succeeded=succeeded)

    @rule(seconds=st.sampled_from([0.0, 1.0, 29.0, 30.0, 600.0]))
    def wait(self, seconds):
        self.clock.sleep(seconds)

    @invariant()
    def state(self):
        self.model.pass_time(self.clock())
        assert self.breaker.state == self.model.state


TestBreakerLife = BreakerLife.TestCase


def opened(clock):
    breaker = CircuitBreaker("catalogue", now=clock)
    for _ in range(3):
        breaker.record(breaker.try_acquire(), succeeded=False)
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_a_trial_that_nobody_tells_the_outcome_of_is_given_up():
    clock = Clock()
    breaker = opened(clock)
    clock.sleep(30.0)
    lost = breaker.try_acquire()
    clock.sleep(29.9)
    assert breaker.try_acquire() is None
    clock.sleep(0.1)
    trial = breaker.try_acquire()
    breaker.record(lost, succeeded=False)
    assert breaker.state is BreakerState.HALF_OPEN
    breaker.record(trial, succeeded=True)
    breaker.record(breaker.try_acquire(), succeeded=True)
    assert breaker.state is BreakerState.CLOSED


def test_of_many_threads_one_has_the_trial():
    clock = Clock()
    breaker = opened(clock)
    clock.sleep(30.0)
    together, found = Barrier(8), []

    def ask():
        together.wait()
        found.append(breaker.try_acquire())

    threads = [Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(permit is not None for permit in found) == 1


def test_it_is_not_held_during_a_call():
    """What is called asks the breaker itself: with a lock held it would wait for ever."""
    breaker = CircuitBreaker("bus")
    assert breaker.call(lambda: breaker.call(lambda: breaker.state, RetryConfig(), ()), RetryConfig(), ()) == "closed"


def failing(times, error=OSError):
    """Fails so many times, then answers; says how often it was called."""
    calls = []

    def function():
        calls.append(None)
        if len(calls) <= times:
            raise error(f"failure {len(calls)}")
        return "answer"

    return function, calls


def test_retries_are_one_call_to_the_breaker():
    clock = Clock()
    breaker = CircuitBreaker("bus", now=clock)
    function, calls = failing(2)
    assert breaker.call(function, RetryConfig(), (OSError,), clock.sleep) == "answer"
    assert len(calls) == 3
    assert clock() == 100.0 + 0.05 + 0.1
    for opens in (False, False, True):
        function, calls = failing(9)
        with pytest.raises(OSError, match="failure 3"):
            breaker.call(function, RetryConfig(), (OSError,), clock.sleep)
        assert len(calls) == 3
        assert (breaker.state is BreakerState.OPEN) == opens
    with pytest.raises(BreakerOpenError, match="bus"):
        breaker.call(function, RetryConfig(), (OSError,), clock.sleep)
    assert len(calls) == 3


def test_other_errors_are_not_tried_again():
    breaker = CircuitBreaker("bus", now=Clock())
    for error in (ValueError, KeyboardInterrupt):
        function, calls = failing(1, error)
        with pytest.raises(error):
            breaker.call(function, RetryConfig(), (OSError,))
        assert len(calls) == 1


def test_no_attempt_begins_after_the_time_for_all():
    clock = Clock()
    breaker = CircuitBreaker("bus", now=clock)
    function, calls = failing(9)
    with pytest.raises(OSError, match="failure 4"):
        breaker.call(function, RetryConfig(attempts=100, seconds=0.7), (OSError,), clock.sleep)
    assert len(calls) == 4
    assert clock() == pytest.approx(100.0 + 0.05 + 0.1 + 0.2)


def test_waiting_leaves_the_process_randomness_as_it_is():
    before = random.getstate()
    clock = Clock()
    CircuitBreaker("bus", now=clock).call(failing(2)[0], RetryConfig(), (OSError,), clock.sleep)
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("config", "wrong"), [(BreakerConfig, {"failures": 0}), (RetryConfig, {"seconds": -1.0})], ids=str
)
def test_numbers_out_of_range_are_refused(config, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        config(**wrong)


def test_a_trial_that_was_not_made_is_left_to_the_next():
    clock = Clock()
    breaker = CircuitBreaker("bus", now=clock)
    for _ in range(3):
        breaker.record(breaker.try_acquire(), succeeded=False)
    clock.seconds += 30.0
    permit = breaker.try_acquire()
    assert breaker.try_acquire() is None
    breaker.give_back(permit)
    breaker.record(permit, succeeded=False)  # is told already
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.try_acquire() is not None
