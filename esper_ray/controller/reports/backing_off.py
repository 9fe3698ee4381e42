"""How long is waited before something is tried again."""

from __future__ import annotations

import random

from esper_ray.controller.message_ages import SECOND_NS


class Backoff:
    """Waits that double, each drawn from its upper half, so that many who wait do not all come back at once.

    Args:
        first_s: The first, at most, seconds.
        most_s: The longest, seconds.
        draw: They are drawn from it.
    """

    def __init__(self, first_s: float, most_s: float, draw: random.Random) -> None:
        self._first_s, self._most_s, self._draw = first_s, most_s, draw

    @property
    def longest_ns(self) -> int:
        """The longest, nanoseconds."""
        return int(self._most_s * SECOND_NS)

    def after(self, times: int) -> int:
        """The wait after it was tried so often, nanoseconds."""
        most = min(self._first_s * 2.0 ** min(times - 1, 60), self._most_s)
        return int(most * self._draw.uniform(0.5, 1.0) * SECOND_NS)


class Pause:
    """Keeps something from being tried again too soon after it failed.

    Args:
        backoff: How long.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff, self._times, self._until_ns = backoff, 0, 0

    def left(self, now_ns: int) -> int:
        """Nanoseconds; 0 where it may be tried. A clock that goes back makes it no longer than it can be."""
        left = self._until_ns - now_ns
        return 0 if left <= 0 or left > self._backoff.longest_ns else left

    def failed(self, now_ns: int) -> bool:
        """It was tried, and failed.

        Returns:
            Whether it had not failed the time before.
        """
        self._times += 1
        self._until_ns = now_ns + self._backoff.after(self._times)
        return self._times == 1

    def succeeded(self) -> None:
        """It was tried, and did not."""
        self._times, self._until_ns = 0, 0
