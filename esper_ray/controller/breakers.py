"""Circuit breakers: what has failed several times in a row is left alone for a while, then tried again, once.

Nygard, "Release It!" (2007). A breaker is asked before a call and told afterwards how it went; it is never held during
the call, so that callers do not wait for one another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock
from typing import TypeVar

import tenacity

from envs.ranges import Count, NotNegative, Positive, check_numbers
from esper_ray.errors import UserError

T = TypeVar("T")


class BreakerState(StrEnum):
    """Whether calls are admitted."""

    CLOSED = "closed"
    """All are."""
    OPEN = "open"
    """None is."""
    HALF_OPEN = "half_open"
    """One at a time, as a trial."""


@dataclass(frozen=True)
class BreakerConfig:
    """When a breaker opens and closes."""

    failures: Count = 3
    """Calls in a row that fail before it opens."""
    cool_down_seconds: Positive = 30.0
    """For which it is open, and after which a trial that nobody told the outcome of is given up."""
    successes: Count = 2
    """Trials in a row that succeed before it closes."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)


@dataclass(frozen=True)
class RetryConfig:
    """How often a call is tried before it has failed."""

    attempts: Count = 3
    """At most."""
    first_wait_seconds: NotNegative = 0.05
    """Before the second attempt; it doubles from one to the next."""
    seconds: Positive = 2.0
    """From the first attempt on, after which no other begins."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)


class BreakerOpenError(Exception):
    """A call that was not admitted."""


@dataclass
class Permit:
    """Leave for one call.

    Attributes:
        period: Of the breaker, in which the call began.
        told: Whether its outcome is.
    """

    period: int
    told: bool = False


class CircuitBreaker:
    """Admits calls, or not. Any number of threads may ask.

    Args:
        name: Of what is called, for the error.
        config: When it opens and closes.
        now: Seconds; never goes back.
    """

    def __init__(
        self, name: str, config: BreakerConfig | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.name, self._config, self._now = name, config or BreakerConfig(), now
        self._lock = Lock()
        self._state, self._period, self._since = BreakerState.CLOSED, 0, now()
        self._streak = 0  # failures while it is closed, successes while it is half open
        self._on_trial = False

    @property
    def state(self) -> BreakerState:
        """Now. It is HALF_OPEN once the cool-down is over, though nobody has asked yet."""
        with self._lock:
            self._let_time_pass()
            return self._state

    def try_acquire(self) -> Permit | None:
        """Leave for a call, whose outcome is to be recorded; None where it is not admitted."""
        with self._lock:
            self._let_time_pass()
            if self._state is BreakerState.OPEN or self._on_trial:
                return None
            if self._state is BreakerState.HALF_OPEN:
                self._on_trial, self._since = True, self._now()
            return Permit(self._period)

    def record(self, permit: Permit, *, succeeded: bool) -> None:
        """Tell how a call went.

        Only the first outcome of a permit counts, and none once the breaker has changed, or has given the trial up.
        """
        with self._lock:
            self._let_time_pass()
            if permit.told or permit.period != self._period:
                return
            permit.told, self._on_trial = True, False
            closed = self._state is BreakerState.CLOSED
            self._streak = self._streak + 1 if succeeded is not closed else 0
            if not succeeded and (not closed or self._streak >= self._config.failures):
                self._change(BreakerState.OPEN)
            elif succeeded and not closed and self._streak >= self._config.successes:
                self._change(BreakerState.CLOSED)

    def give_back(self, permit: Permit) -> None:
        """Tell that a call was not made after all: nothing is known, and somebody else may try."""
        with self._lock:
            if not permit.told and permit.period == self._period:
                permit.told, self._on_trial = True, False

    def call(
        self,
        function: Callable[[], T],
        retry: RetryConfig,
        on: tuple[type[Exception], ...],
        sleep: Callable[[float], None] = time.sleep,
    ) -> T:
        """Call something, several times if need be: to the breaker it is one call, which fails if the last does.

        Args:
            function: To be called.
            retry: How often and how long.
            on: Errors after which it is tried again. Any other is raised at once.
            sleep: Waits so many seconds.

        Raises:
            BreakerOpenError: it was not admitted, and not called.
            Exception: the last that it raised.
        """
        permit = self.try_acquire()
        if permit is None:
            raise BreakerOpenError(f"{self.name} has failed too often: it is tried again after a while")
        ends = self._now() + retry.seconds
        # Waits are not drawn: this is called beside somebody's training, whose randomness is left as it is.
        retrying = tenacity.Retrying(
            stop=lambda state: state.attempt_number >= retry.attempts or self._now() + state.upcoming_sleep >= ends,
            wait=tenacity.wait_exponential(multiplier=retry.first_wait_seconds),
            retry=tenacity.retry_if_exception_type(on),
            sleep=sleep,
            reraise=True,
        )
        try:
            result = retrying(function)
        except BaseException:
            self.record(permit, succeeded=False)
            raise
        self.record(permit, succeeded=True)
        return result

    def _let_time_pass(self) -> None:
        cooled = self._now() - self._since >= self._config.cool_down_seconds
        if cooled and (self._state is BreakerState.OPEN or self._on_trial):
            self._change(BreakerState.HALF_OPEN, self._streak)

    def _change(self, state: BreakerState, streak: int = 0) -> None:
        """What was admitted before says nothing any more."""
        self._state, self._streak, self._on_trial = state, streak, False
        self._since, self._period = self._now(), self._period + 1
