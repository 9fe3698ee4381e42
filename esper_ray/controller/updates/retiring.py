"""Policies that decide no more, until they have answered what they were asked before."""

from __future__ import annotations

from threading import Lock, Timer

from esper_ray.controller.isolated_policy import IsolatedPolicy

RETIRING_SECONDS = 5.0
"""For which they go on."""


class Retiring:
    """Ends policies a moment later."""

    def __init__(self) -> None:
        self._turn = Lock()
        self._timers: dict[IsolatedPolicy, Timer] = {}

    def add(self, policy: IsolatedPolicy) -> None:
        """End a policy, a moment from now."""
        timer = Timer(RETIRING_SECONDS, self._end, (policy,))
        timer.daemon = True
        with self._turn:
            self._timers[policy] = timer
        timer.start()

    def _end(self, policy: IsolatedPolicy) -> None:
        policy.close()
        with self._turn:
            self._timers.pop(policy, None)

    def close(self) -> None:
        """End all of them now."""
        with self._turn:
            timers, self._timers = self._timers, {}
        for policy, timer in timers.items():
            timer.cancel()
            policy.close()
